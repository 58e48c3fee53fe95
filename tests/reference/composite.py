"""Compositing, pruning in torch: one ray after the other, each line as in the formula."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def composite(alphas: Tensor, values: list[Tensor], ray_offsets: Tensor, min_transmittance: float = 0.0):
    """-> weights (S,), opacities (R,), outputs [(R, C)]."""
    weights, opacities, outputs = [], [], [[] for _ in values]
    bounds = ray_offsets.tolist()
    for begin, end in itertools.pairwise(bounds):
        alpha = alphas[begin:end]
        before = torch.cat([alpha.new_ones(1), torch.cumprod(1 - alpha, 0)])[: end - begin]
        w = alpha * before * (before >= min_transmittance)
        weights.append(w)
        opacities.append(w.sum())
        for out, v in zip(outputs, values, strict=True):
            out.append((w[:, None] * v[begin:end]).sum(0))
    return torch.cat(weights), torch.stack(opacities), [torch.stack(out) for out in outputs]


def prune(alphas: Tensor, ray_offsets: Tensor, min_transmittance: float, min_alpha: float) -> tuple[Tensor, Tensor]:
    """-> kept (K,), new ray_offsets."""
    bounds, kept, offsets = ray_offsets.tolist(), [], [0]
    for begin, end in itertools.pairwise(bounds):
        before = 1.0
        for i in range(begin, end):
            if before >= min_transmittance and alphas[i] >= min_alpha:
                kept.append(i)
            before *= 1 - float(alphas[i])
        offsets.append(len(kept))
    return torch.tensor(kept, dtype=torch.int32), torch.tensor(offsets, dtype=torch.int32)
