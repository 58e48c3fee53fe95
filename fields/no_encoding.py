"""No encoding at all: the network sees the place alone, as in Park et al., "DeepSDF", 2019."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .encodings import Encoding


@dataclass(frozen=True)
class NoEncodingConfig:
    """Nothing to choose."""

    def build(self) -> NoEncoding:
        return NoEncoding()


class NoEncoding(Encoding):
    """points (N, 3) -> (N, 0)."""

    out_channels, resolutions = 0, (64,)  # a plain network's details are no finer

    def forward(self, points: Tensor) -> Tensor:
        return points[:, :0]

    def with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return points[:, :0], points.new_zeros(len(points), 0, 3)

    def slopes(self, points: Tensor, slopes: Tensor) -> Tensor:
        return points.new_zeros(len(points), 3)
