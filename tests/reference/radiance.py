"""A hash-grid radiance field as the composition of the references of its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .hash_encode import hash_encode
from .mlp import mlp


def radiance(
    points: Tensor,
    extras: Tensor,
    table: Tensor,
    layout,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    *,
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor]:
    """points (N, 3), extras (N, K) -> sigmas (N,), colors (N, 3)."""
    geometry = mlp(hash_encode(points, table, layout), density_weights, bfloat16=bfloat16)
    colors = mlp(torch.cat([extras, geometry], -1), color_weights, bfloat16=bfloat16)
    return geometry[:, 0].clamp(max=15).exp(), torch.sigmoid(colors)
