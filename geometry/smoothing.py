"""Meshes made smooth: each vertex goes towards the mean of its neighbours, and a little more of the way back.

    x <- x + l L x,  x <- x + m L x,   l = 0.5,   1 / l + 1 / m = 0.1,   L x = mean of the neighbours - x

What is rough is averaged; what is wider than some edges keeps its size, which the first step alone would shrink.

Source: Taubin, "A Signal Processing Approach to Fair Surface Design", SIGGRAPH 1995.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .mesh_ops import boundary_edges, vertex_normals
from .types import Mesh

FORTH = 0.5
BACK = 1 / (0.1 - 1 / FORTH)


def smooth(mesh: Mesh, times: int) -> Mesh:
    """The mesh after ``times`` steps forth and back; colours stay with their vertices, normals are computed anew.

    Boundaries are smoothed as the lines they are, so that they do not creep inwards. Raises ValueError for fewer than
    0 steps.
    """
    if times < 0:
        raise ValueError(f"smooth: times: expected at least 0, got {times}")
    if times == 0 or len(mesh.faces) == 0:
        return mesh
    start, end = _neighbors(mesh.faces, len(mesh.vertices))
    count = start.bincount(minlength=len(mesh.vertices))[:, None]
    places = mesh.vertices.double()
    for _ in range(times):
        for rate in (FORTH, BACK):
            means = torch.zeros_like(places).index_add_(0, start, places[end]) / count.clamp_min(1)
            places = torch.where(count > 0, torch.lerp(places, means, rate), places)
    moved = replace(mesh, vertices=places.to(mesh.vertices))
    return moved if mesh.normals is None else replace(moved, normals=vertex_normals(moved))


def _neighbors(faces: Tensor, vertices: int) -> tuple[Tensor, Tensor]:
    """(E,) (E,) each pair of neighbours, both ways; of a vertex on a boundary, only those along it."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(1).values.unique(dim=0)
    rim = boundary_edges(faces)
    outer = torch.zeros(vertices, dtype=torch.bool, device=faces.device)
    outer[rim.reshape(-1)] = True
    start, end = torch.cat([edges, edges.flip(1)]).T
    inner = ~outer[start]
    ends = torch.cat([rim, rim.flip(1)])
    return torch.cat([start[inner], ends[:, 0]]), torch.cat([end[inner], ends[:, 1]])
