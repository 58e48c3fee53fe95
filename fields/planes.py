"""Features on a plane: a table interpolated linearly over two axes, from which tri-planes and factored grids are made.

The hash encoding's kernels with two dimensions, and tables large enough that nothing is hashed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cuda.hash_encoding import HashLayout, hash_encode, hash_encode_with_gradient
from ..cuda.hash_slopes import hash_slopes

AXES = ((0, 1), (0, 2), (1, 2))  # of the three planes
MOST = 8191  # cells along an edge


class Plane(nn.Module):
    """(N, 2) in [0, 1] -> (N, levels * features); constant outside."""

    def __init__(self, levels: int, features: int, coarsest: int, finest: int) -> None:
        super().__init__()
        if finest > MOST:
            raise ValueError(f"Plane: resolution: expected at most {MOST}, got {finest}; use a smaller one")
        self.layout = HashLayout.build(levels, features, 26, coarsest, finest, dimensions=2)
        self.table = nn.Parameter(torch.empty(self.layout.entries, features).uniform_(-1e-4, 1e-4))

    def forward(self, points: Tensor) -> Tensor:
        return hash_encode(points, self.table, self.layout, table_grad=self.table.grad)

    def with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C), and their derivatives (N, C, 2)."""
        return hash_encode_with_gradient(points, self.table, self.layout, table_grad=self.table.grad)

    def slopes(self, points: Tensor, slopes: Tensor) -> Tensor:
        """slopes (N, C) . derivatives -> (N, 2), without these."""
        return hash_slopes(points, slopes, self.table, self.layout, table_grad=self.table.grad)


def in_space(derivatives: Tensor, axes: tuple[int, int]) -> Tensor:
    """(*, 2) along two axes -> (*, 3), zero along the third."""
    columns = [torch.zeros_like(derivatives[..., 0])] * 3
    for number, axis in enumerate(axes):
        columns[axis] = derivatives[..., number]
    return torch.stack(columns, -1)
