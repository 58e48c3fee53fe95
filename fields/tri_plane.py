"""A tri-plane: features on the planes xy, xz and yz, side by side (Chan et al., "EG3D", CVPR 2022, who sum them).

Memory grows with the square of the resolution rather than its cube. Several resolutions lie on each plane, coarse ones
for what is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .encodings import Encoding
from .planes import AXES, Plane, in_space


@dataclass(frozen=True)
class TriPlaneConfig:
    """Sizes of the planes."""

    levels: int = 4
    """Resolutions, each twice as fine as the one before, or so."""
    features: int = 4
    """Per plane and level: 1, 2, 4 or 8."""
    base_resolution: int = 32
    finest_resolution: int = 256
    """Cells along an edge of the bounds."""

    def build(self) -> TriPlane:
        return TriPlane(self)


class TriPlane(Encoding):
    """points (N, 3) in [0, 1] -> (N, 3 * levels * features); constant outside of the unit cube."""

    planes: Sequence[Plane]

    def __init__(self, config: TriPlaneConfig) -> None:
        super().__init__()
        sizes = config.levels, config.features, config.base_resolution, config.finest_resolution
        self.planes = nn.ModuleList(Plane(*sizes) for _ in AXES)  # type: ignore[assignment]
        layout = self.planes[0].layout
        self.out_channels, self.resolutions = 3 * layout.out_channels, layout.resolutions

    def forward(self, points: Tensor) -> Tensor:
        return torch.cat([plane(points[:, axes]) for plane, axes in zip(self.planes, AXES, strict=True)], -1)

    def with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        found = [plane.with_gradient(points[:, axes]) for plane, axes in zip(self.planes, AXES, strict=True)]
        jacobians = [in_space(jacobian, axes) for (_, jacobian), axes in zip(found, AXES, strict=True)]
        return torch.cat([features for features, _ in found], -1), torch.cat(jacobians, 1)

    def slopes(self, points: Tensor, slopes: Tensor) -> Tensor:
        parts = zip(self.planes, AXES, slopes.chunk(3, -1), strict=True)
        of_planes = [in_space(plane.slopes(points[:, axes], part.contiguous()), axes) for plane, axes, part in parts]
        return of_planes[0] + of_planes[1] + of_planes[2]
