"""UDF: an unsigned distance, for open surfaces, that rays see from both sides (after NeUDF, Liu et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ...fields.encodings import HashGridConfig
from ...fields.networks import MlpConfig
from ...fields.unsigned_distance import Head, UnsignedDistanceConfig
from ...renderers.opacity import Unsigned
from ..surfaces import SurfaceConfig


@dataclass(frozen=True)
class Config(SurfaceConfig):
    """UDF: an unsigned distance and colours on a hash grid, drawn by a law that loses light as a ray comes near."""

    field: UnsignedDistanceConfig = field(  # type: ignore[assignment]
        default_factory=lambda: UnsignedDistanceConfig(
            grid=HashGridConfig(levels=6, features=4, log2_size=17, finest_resolution=256),
            network=MlpConfig(width=64, hidden_layers=2),
            head=Head.FOLD,
        )
    )
    sharpness: float = 60.0
    """Of the surface at the beginning, per scene unit."""

    def build_law(self) -> nn.Module:
        """What turns distances into alphas."""
        return Unsigned(self.sharpness)
