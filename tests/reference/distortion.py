"""The distortion loss in torch: every pair of a ray's samples."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def distortion(weights: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor) -> Tensor:
    """-> (R,)."""
    bounds, losses = ray_offsets.tolist(), []
    for begin, end in itertools.pairwise(bounds):
        w, m = weights[begin:end], (t_starts[begin:end] + t_ends[begin:end]) / 2
        pairs = (w[:, None] * w[None] * (m[:, None] - m[None]).abs()).sum()
        losses.append(pairs + (w * w * (t_ends - t_starts)[begin:end]).sum() / 3)
    return torch.stack(losses)
