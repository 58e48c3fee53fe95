"""VolSDF: a signed distance seen as a density that falls off around its surface (Yariv et al. 2021), on a hash grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...renderers.opacity import Volsdf
from ..surfaces import SurfaceConfig


@dataclass(frozen=True)
class Config(SurfaceConfig):
    """VolSDF: a signed distance and colours on a hash grid, drawn as a density with a learned width."""

    beta: float = 0.1
    """Width of the density around the surface at the beginning, scene units."""

    def build_law(self) -> nn.Module:
        """What turns distances into alphas."""
        return Volsdf(self.beta)
