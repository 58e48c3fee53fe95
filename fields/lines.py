"""Features on a line: a table interpolated linearly over one axis, of which factored grids are products."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Line(nn.Module):
    """(N,) in [0, 1] -> features and their derivatives, (N, C) each; constant outside. Differentiable (once)."""

    def __init__(self, channels: int, resolution: int, middle: float = 1.0, spread: float = 0.1) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(resolution + 1, channels).normal_(middle, spread))

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        cells = len(self.table) - 1
        at = cells * places.clamp(0, 1)
        cell = at.detach().nan_to_num().long().clamp(max=cells - 1)
        low, high = self.table.index_select(0, cell), self.table.index_select(0, cell + 1)
        rise, inside = high - low, (places >= 0) & (places <= 1)
        return low + (at - cell)[:, None] * rise, rise * (cells * inside.to(rise.dtype))[:, None]
