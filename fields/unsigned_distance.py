"""An unsigned distance on a grid: zero on the surface, positive on both of its sides, so surfaces may be open.

    f(x) = head(||x - c| - r| + network(encoding(x), x)[0])

The first term is the distance to a sphere (to the point c where r is 0), which is what the field begins as. It has no
side: the sphere of a signed distance would leave a closed zero set behind, which an open surface has not. Two heads
keep distances from being negative:

    cut     max(0, g), straight-through: below zero gradients pass as if nothing were cut, so that the network finds
            back.
    fold    |g| (as in Zhou et al., "CAP-UDF", 2022): no volume of zeros. But fits to shapes gave the two sides of a
            surface different signs, and closed a bowl by a thin membrane where the signs had to meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..cuda.native import CPU
from ..geometry.types import Aabb
from .grid_distance import GridDistance, GridDistanceConfig


class Head(Enum):
    """What keeps distances from being negative."""

    CUT = "cut"
    FOLD = "fold"


@dataclass(frozen=True)
class UnsignedDistanceConfig(GridDistanceConfig):
    """The encoding, and sizes of it and of the networks."""

    head: Head = Head.CUT

    def build(self, bounds: Aabb, device: torch.device = CPU) -> UnsignedDistance:
        return UnsignedDistance(self, bounds, device)


class UnsignedDistance(GridDistance):
    """Unsigned distances over ``bounds``, in scene units, and colours, if it has any: the side of a surface that they
    belong to is the viewer's."""

    signed = False
    config: UnsignedDistanceConfig

    def base(self, from_sphere: Tensor) -> tuple[Tensor, Tensor | None]:
        """The distance to the sphere on both of its sides."""
        return from_sphere.abs(), from_sphere.sign()

    def shape(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """The head."""
        if self.config.head is Head.FOLD:
            return raw.abs(), raw.sign()
        return raw + (-raw).relu().detach(), None
