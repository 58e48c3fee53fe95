"""A signed distance on a grid: negative inside, positive outside, zero on the surface.

    f(x) = |x - c| - r + network(encoding(x), x)[0]

The first two terms are a sphere, which is what the field begins as.

Source: Müller et al., "Instant Neural Graphics Primitives", 2022; Atzmon and Lipman, "SAL", 2020, for the sphere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..cuda.native import CPU
from ..geometry.types import Aabb
from .grid_distance import GridDistance, GridDistanceConfig


@dataclass(frozen=True)
class SignedDistanceConfig(GridDistanceConfig):
    """The encoding, and sizes of it and of the networks."""

    def build(self, bounds: Aabb, device: torch.device = CPU) -> SignedDistance:
        return SignedDistance(self, bounds, device)


class SignedDistance(GridDistance):
    """Signed distances over ``bounds``, in scene units, and colours, if it has any."""

    signed = True
