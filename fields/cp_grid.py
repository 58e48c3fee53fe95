"""A grid factored into vectors: products of features on three lines (the CP decomposition of Chen et al., "TensoRF",
ECCV 2022, eq. 3). Small and smooth; what lies askew to the axes takes many components.

Of each component one line begins near zero and the others near one, so that features begin near zero, and learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .encodings import Encoding
from .lines import Line


@dataclass(frozen=True)
class CpGridConfig:
    """Sizes of the factors."""

    components: int = 96
    """Products of three lines."""
    resolution: int = 256
    """Cells along an edge of the bounds."""

    def build(self) -> CpGrid:
        return CpGrid(self)


class CpGrid(Encoding):
    """points (N, 3) in [0, 1] -> (N, components); constant outside of the unit cube."""

    lines: Sequence[Line]

    def __init__(self, config: CpGridConfig) -> None:
        super().__init__()
        self.lines = nn.ModuleList(Line(config.components, config.resolution, spread=0.3) for _ in range(3))  # type: ignore[assignment]
        with torch.no_grad():
            for axis, line in enumerate(self.lines):
                line.table[:, axis::3] *= 1e-3
        self.out_channels, self.resolutions = config.components, (config.resolution,)

    def forward(self, points: Tensor) -> Tensor:
        x, y, z = (line(place)[0] for line, place in zip(self.lines, points.unbind(-1), strict=True))
        return x * y * z

    def with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        (x, dx), (y, dy), (z, dz) = (line(p) for line, p in zip(self.lines, points.unbind(-1), strict=True))
        return x * y * z, torch.stack([dx * y * z, x * dy * z, x * y * dz], -1)
