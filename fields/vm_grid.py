"""A grid factored into vectors and matrices: products of a plane's features with a line's (Chen et al., "TensoRF",
ECCV 2022, eq. 5), for each of the three planes and the axis across it.

Planes begin near zero and lines near one, so that the features do, and both learn from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .encodings import Encoding
from .lines import Line
from .planes import AXES, Plane, in_space

ACROSS = (2, 1, 0)  # the axes across the planes
PER_TABLE = 8  # components that one table of a plane holds


@dataclass(frozen=True)
class VmGridConfig:
    """Sizes of the factors."""

    components: int = 16
    """Products per plane: a multiple of 8."""
    resolution: int = 256
    """Cells along an edge of the bounds."""

    def build(self) -> VmGrid:
        return VmGrid(self)


class VmGrid(Encoding):
    """points (N, 3) in [0, 1] -> (N, 3 * components); constant outside of the unit cube."""

    planes: Sequence[Plane]
    lines: Sequence[Line]

    def __init__(self, config: VmGridConfig) -> None:
        super().__init__()
        count, cells = config.components, config.resolution
        if count % PER_TABLE or count < PER_TABLE:
            raise ValueError(f"VmGrid: components: expected a multiple of {PER_TABLE}, got {count}")
        self.planes = nn.ModuleList(Plane(count // PER_TABLE, PER_TABLE, cells, cells) for _ in AXES)  # type: ignore[assignment]
        self.lines = nn.ModuleList(Line(count, cells) for _ in AXES)  # type: ignore[assignment]
        self.out_channels, self.resolutions = 3 * count, (cells,)

    def _factors(self, points: Tensor):
        for plane, line, axes, across in zip(self.planes, self.lines, AXES, ACROSS, strict=True):
            yield plane, axes, across, *line(points[:, across])

    def forward(self, points: Tensor) -> Tensor:
        return torch.cat([plane(points[:, axes]) * on_line for plane, axes, _, on_line, _ in self._factors(points)], -1)

    def with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        features, jacobians = [], []
        for plane, axes, across, on_line, of_line in self._factors(points):
            on_plane, of_plane = plane.with_gradient(points[:, axes])
            features.append(on_plane * on_line)
            jacobian = in_space(of_plane * on_line[..., None], axes)
            jacobians.append(jacobian + _along(on_plane * of_line, across))
        return torch.cat(features, -1), torch.cat(jacobians, 1)

    def slopes(self, points: Tensor, slopes: Tensor) -> Tensor:
        total = torch.zeros_like(points)
        factors = zip(self._factors(points), slopes.chunk(3, -1), strict=True)
        for (plane, axes, across, on_line, of_line), part in factors:
            total = total + in_space(plane.slopes(points[:, axes], part * on_line), axes)
            total = total + _along((part * plane(points[:, axes]) * of_line).sum(-1), across)
        return total


def _along(derivatives: Tensor, axis: int) -> Tensor:
    """(*) along one axis -> (*, 3)."""
    zero = torch.zeros_like(derivatives)
    return torch.stack([derivatives if number == axis else zero for number in range(3)], -1)
