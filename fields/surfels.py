"""Gaussians as surfels, discs of the first two axes: how thin the third is kept, and how a fit of them begins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry.gaussians import Gaussians

LOG_THICKNESS = math.log(1e-4)
"""Of the third axis, scene units: what draws surfels does not look at it, but files, viewers and densities do."""


NEIGHBOURS = 12
"""Points that a first normal is found from."""


def surfels(gaussians: Gaussians) -> Gaussians:
    """The same, flat: the third axis lies across the plane of the nearest other means.

    Huang et al. (2024) turn them at random; where a fit is short, too many then stay as they began.
    """
    log_scales = gaussians.log_scales.clone()
    flatten(log_scales)
    quats = turning_z_to(plane_normals(gaussians.means))
    return Gaussians(gaussians.means, quats, log_scales, gaussians.logit_opacities, gaussians.sh)


def plane_normals(points: Tensor) -> Tensor:
    """Points (G, 3) -> unit normals (G, 3), either way round, of least-squares planes through their neighbours."""
    from scipy.spatial import cKDTree

    if len(points) <= NEIGHBOURS:
        return torch.eye(3).to(points)[2].expand(len(points), 3)
    places = points.detach().cpu().numpy()
    _, near = cKDTree(places).query(places, k=NEIGHBOURS + 1, workers=-1)
    around = points.detach().cpu()[torch.from_numpy(near)]
    around = around - around.mean(1, keepdim=True)
    return torch.linalg.eigh(around.transpose(1, 2) @ around).eigenvectors[..., 0].to(points)


def turning_z_to(axes: Tensor) -> Tensor:
    """Unit axes (G, 3) -> quaternions (G, 4) of the shortest turns of the z axis onto them or their opposites."""
    x, y, z = (axes * torch.where(axes[:, 2:] < 0, -1.0, 1.0)).unbind(-1)
    return torch.nn.functional.normalize(torch.stack([1 + z, -y, x, torch.zeros_like(z)], -1), dim=-1)


@torch.no_grad()
def flatten(log_scales: Tensor) -> None:
    """Give the third column of log_scales (G, 3) the thickness of surfels, in place."""
    log_scales[:, 2] = LOG_THICKNESS
