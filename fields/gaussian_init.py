"""Gaussians to begin with: one per point, as large as the gaps between points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry.gaussians import SH_C0, Gaussians
from ..geometry.types import Aabb, Mesh


def from_points(
    points: Tensor, colors: Tensor, *, degree: int = 3, opacity: float = 0.1, share: float = 1.0
) -> Gaussians:
    """Round Gaussians at points (G, 3) with colours (G, 3) in [0, 1].

    Their standard deviation is ``share`` times the root mean square distance to the three nearest others (Kerbl et al.
    2023), at most a tenth of the points' extent.
    """
    from scipy.spatial import cKDTree

    G = points.shape[0]
    gap = torch.full((G,), 1e-2, device=points.device)
    if G > 3:
        places = points.detach().cpu().numpy()
        near, _ = cKDTree(places).query(places, k=4, workers=-1)
        gap = torch.from_numpy(near[:, 1:]).square().mean(-1).sqrt().to(points)
        gap = gap.clamp(1e-7, float((points.amax(0) - points.amin(0)).norm()) / 10 + 1e-7)
    sh = torch.zeros(G, (degree + 1) ** 2, 3, device=points.device)
    sh[:, 0] = (colors - 0.5) / SH_C0
    quats = torch.zeros(G, 4, device=points.device)
    quats[:, 0] = 1
    return Gaussians(
        points.float().clone(),
        quats,
        (gap * share).log()[:, None].repeat(1, 3).float(),
        torch.full((G,), math.log(opacity / (1 - opacity)), device=points.device),
        sh,
    )


def random_points(bounds: Aabb, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, 3) points in the bounds, and as many grey colours."""
    unit = torch.rand(count, 3, generator=generator, device=generator.device).to(bounds.low)
    return bounds.low + unit * bounds.extent, torch.full_like(unit, 0.5)


def mesh_points(mesh: Mesh, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, 3) points of a mesh's surface, uniform by area, and its colours there (grey if it has none)."""
    corners = mesh.vertices[mesh.faces]
    areas = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1)
    if not len(areas) or not bool(areas.sum() > 0):
        raise ValueError("mesh_points: mesh: expected a surface, got no triangle with an area; give another mesh")
    face = torch.multinomial(areas, count, replacement=True, generator=generator)
    u, v = torch.rand(2, count, generator=generator, device=generator.device).to(areas)
    flip = u + v > 1
    u, v = torch.where(flip, 1 - u, u), torch.where(flip, 1 - v, v)
    weights = torch.stack([1 - u - v, u, v], -1)[..., None]
    colors = torch.full((count, 3), 0.5, device=areas.device)
    if mesh.colors is not None:
        colors = (mesh.colors[mesh.faces[face]] * weights).sum(1)
    return (corners[face] * weights).sum(1), colors
