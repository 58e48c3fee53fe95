"""What dual contouring of signed and unsigned distances shares: a vertex from planes, triangles from quads."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_to_planes(quadrics: Tensor, right: Tensor, least: float) -> Tensor:
    """(N, 3) the steps x that make sum_i (n_i . x - b_i)^2 least, shortest where planes leave a direction open.

    By singular values (Ju et al., "Dual contouring of Hermite data", 2002, section 2.3).

    Args:
        quadrics: (N, 3, 3) sums of n_i n_i^T.
        right: (N, 3) sums of b_i n_i.
        least: directions whose eigenvalue is smaller than this share of the largest one count as open.
    """
    values, axes = torch.linalg.eigh(quadrics.double())
    inverse = torch.where(values > least * values[:, -1:].clamp_min(1e-12), 1 / values.clamp_min(1e-12), 0)
    return (axes @ (inverse[..., None] * (axes.transpose(1, 2) @ right.double()[..., None])))[..., 0].to(right)


def nearest_within(
    quadrics: Tensor, right: Tensor, steps: Tensor, low: Tensor, high: Tensor, rounds: int = 12
) -> Tensor:
    """The steps (N, 3) of ``nearest_to_planes``, those that leave the box from low (N, 3) to high (N, 3) brought back.

    Not each axis by itself, but to where in the box the planes are nearest: by coordinate descent on the same squares.
    """
    inside = steps.clamp(low, high)
    out = (inside != steps).any(1).nonzero()[:, 0]
    a, b, x, least, most = quadrics[out], right[out], inside[out], low[out], high[out]
    diagonal = a.diagonal(dim1=1, dim2=2)
    open_ = diagonal < 1e-3 * diagonal.amax(1, keepdim=True).clamp_min(1e-20)
    for _ in range(rounds):
        for k in range(3):
            best = x[:, k] + (b[:, k] - (a[:, k] * x).sum(1)) / diagonal[:, k].clamp_min(1e-20)
            best = torch.where(open_[:, k], x[:, k], best)
            x[:, k] = torch.minimum(torch.maximum(best, least[:, k]), most[:, k])
    return inside.index_copy_(0, out, x)


def cut_quads(quads: Tensor, across: Tensor) -> Tensor:
    """Two triangles (2 N, 3) of each quadrilateral (N, 4): cut from its first corner, or ``across`` (N,) bool."""
    quads = torch.where(across[:, None], quads.roll(1, 1), quads)
    return torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
