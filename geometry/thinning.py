"""Noisy points of surfaces, seen from any side, drawn together to the sheets that they lie around.

Points of the two sides of a sheet, each a little off it, become one sheet: every point moves along the normal of the
plane that fits its neighbours best, onto that plane (moving least squares; Alexa et al., "Point set surfaces", 2001).
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 64  # neighbours that count
FEW = 8  # neighbours that a point must have: fewer do not say where a plane is


def thinned(points: Tensor, radius: float, *, rounds: int = 3, least: int = 2) -> tuple[Tensor, Tensor]:
    """Points (N, 3) -> fewer of them (M, 3), on sheets, and unit normals (M, 3) of unknown sign; on the CPU.

    Args:
        points: of surfaces, with noise of less than the radius.
        radius: how far neighbours reach. What is thinner becomes one sheet, what is more bent than that is flattened.
        rounds: of moving.
        least: points that a quarter of a radius must hold; what lies there alone is dropped.
    """
    from scipy.spatial import cKDTree

    at = points.detach().cpu().double()
    _, cell, counts = (at / (radius / 4)).round().long().unique(dim=0, return_inverse=True, return_counts=True)
    at = torch.zeros(len(counts), 3).double().index_add(0, cell, at)[counts >= least] / counts[counts >= least, None]
    normals = torch.zeros_like(at)
    for _ in range(rounds):
        if len(at) < FEW:
            return at[:0].float(), at[:0].float()
        tree = cKDTree(at.numpy())
        near = tree.query(at.numpy(), MOST, distance_upper_bound=radius, workers=torch.get_num_threads())
        far, index = (torch.from_numpy(x) for x in near)
        index[:, 0], far[:, 0] = torch.arange(len(at)), 0.0
        weights = torch.where(far < radius, torch.exp(-((2 * far / radius) ** 2)), 0.0)
        around = at[index.clamp(max=len(at) - 1)]
        middle = (weights[..., None] * around).sum(1) / weights.sum(1, keepdim=True)
        off = (around - middle[:, None]) * weights[..., None].sqrt()
        normals = torch.linalg.eigh(off.transpose(1, 2) @ off).eigenvectors[:, :, 0]
        at = at + ((middle - at) * normals).sum(1, keepdim=True) * normals
        known = (far < radius).sum(1) >= FEW
        at, normals = at[known], normals[known]
    return at.float(), normals.float()
