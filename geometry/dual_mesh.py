"""Meshes of the zero sets of unsigned distances, open or closed: ``dual_mesh(function, bounds, resolution)``.

Each cell that the surface crosses gets a vertex: the place x nearest to all tangent planes that the cell's corners p
predict, q = p - f(p) n(p),

    min_x sum_i (n_i . (x - q_i))^2

by singular values, of which the small ones are left out, around the mean of where the cell's edges are crossed
(Ju et al., "Dual contouring of Hermite data", 2002; from unsigned distances: Zhang, Wonka and Lin, "Surface extraction
from neural unsigned distance fields" (DualMesh-UDF), 2023). Each crossed edge gets a quadrilateral between the four
cells around it. Distances are asked at corners, away from the surface, where an unsigned distance's gradients are good;
corners beyond a boundary have their nearest point on it, and so vertices there come to lie on it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .dual_parts import cut_quads, nearest_to_planes
from .hole_filling import fill_small_holes
from .mesh_cleaning import turned_alike
from .mesh_ops import vertex_normals
from .near_cells import (
    MAX_BYTES,
    Crossings,
    Function,
    Lattice,
    cells_around,
    corners,
    crossings,
    key_of,
    near_cells,
    place_of,
)
from .types import Aabb, Mesh

REACH = 0.75  # cells from a cell's centre, along an axis: planes that touch the surface farther off do not count
FLAT = 0.08  # of the largest eigenvalue: directions with less say nothing
HOLE = 8  # edges around a hole that the surface has not: what is left of errors at single edges of the lattice
BATCH = 1 << 17  # cells at a time


def dual_mesh(
    function: Function, bounds: Aabb, resolution: int, *, chunk: int = 2**18, max_bytes: int = MAX_BYTES
) -> Mesh:
    """The zero set of an unsigned distance inside ``bounds``, as a mesh in world units, with normals.

    Args:
        function: points (N, 3) -> distances (N,) and gradients (N, 3); called without autograd.
        bounds: where to look.
        resolution: cells along their longest edge.
        chunk: points per call.
        max_bytes: cap on the memory of the cells near the surface.

    Returns:
        A Mesh whose neighbouring triangles are turned alike where that is possible, a closed one outwards; it ends
        where the surface does.

    Raises:
        ValueError: the function has no zero set inside the bounds, one that does not fit into ``max_bytes``, or returns
            NaN or other shapes.
    """
    with torch.no_grad():
        lattice, cells = near_cells(function, bounds, resolution, chunk, max_bytes)
        found = crossings(lattice, cells)
        if len(found.axes) == 0:
            raise ValueError(
                "dual_mesh: function: expected gradients that turn round at the surface, got none that do; raise the "
                "resolution, or choose other bounds"
            )
        around = cells_around(cells, found.starts, found.axes)
        used, quads = around.unique(return_inverse=True)
        vertices = _vertices(lattice, cells[used], found, quads)
        mesh = turned_alike(_triangles(vertices, quads, found))
        mesh = fill_small_holes(mesh, HOLE, lambda middles: lattice.ask(middles)[0] < lattice.cell / 2)
    return replace(mesh, normals=vertex_normals(mesh))


def _vertices(lattice: Lattice, cells: Tensor, found: Crossings, quads: Tensor) -> Tensor:
    """(C, 3) world: one in each cell."""
    flat, repeat = quads.reshape(-1), found.points.repeat_interleave(4, 0)
    count = flat.bincount(minlength=len(cells))[:, None]
    means = torch.zeros(len(cells), 3, device=cells.device).index_add_(0, flat, repeat) / count
    places, out = place_of(cells), []
    keys, index = key_of(places[:, None] + corners(cells.device)).unique(return_inverse=True)
    distances, normals = lattice.ask(at := lattice.world(place_of(keys)))
    feet = at - distances[:, None] * normals
    for part in torch.arange(len(cells), device=cells.device).split(BATCH):
        centers, which = lattice.world(places[part] + 0.5), index[part]
        planes, touch = normals[which], feet[which]  # (B, 8, 3)
        counts = (touch - centers[:, None]).abs().amax(2) <= REACH * lattice.cell
        planes = planes * counts[..., None]
        off = (planes * (touch - means[part, None])).sum(2)
        step = nearest_to_planes(planes.transpose(1, 2) @ planes, (planes * off[..., None]).sum(1), FLAT)
        half = 0.49 * lattice.cell  # of two cells, never the same place
        out.append((means[part] + step).clamp(centers - half, centers + half))
    return torch.cat(out)


def _triangles(vertices: Tensor, quads: Tensor, found: Crossings) -> Mesh:
    """Two of each quadrilateral, cut along its shorter diagonal."""
    against = found.normals.gather(1, found.axes[:, None]) < 0
    quads = torch.where(against, quads.flip(1), quads)
    a, b, c, d = (vertices[quads[:, k]] for k in range(4))
    return Mesh(vertices, cut_quads(quads, (a - c).norm(dim=1) > (b - d).norm(dim=1)))
