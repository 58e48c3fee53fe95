"""UDF: an unsigned distance, for open surfaces, that rays see from both sides (after NeUDF, Liu et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from ...fields.encodings import HashGridConfig
from ...fields.networks import MlpConfig
from ...fields.unsigned_distance import UnsignedDistanceConfig
from ...renderers.losses.eikonal import Eikonal
from ...renderers.opacity import Unsigned
from ...renderers.protocols import Loss
from ..devices import CPU
from ..first_sheet import FirstSheet
from ..known_distances import KnownDistances
from ..run import SceneFacts
from ..surfaces import SurfaceConfig


@dataclass(frozen=True)
class Config(SurfaceConfig):
    """UDF: an unsigned distance and colours on a hash grid, drawn by a law that loses light as a ray comes near."""

    field: UnsignedDistanceConfig = field(  # type: ignore[assignment]
        default_factory=lambda: UnsignedDistanceConfig(
            grid=HashGridConfig(levels=6, features=4, log2_size=17, finest_resolution=256),
            network=MlpConfig(width=64, hidden_layers=2),
            radius=0.0,
        )
    )
    eikonal: Eikonal = Eikonal(weight=0.0)
    """Known distances say it already, and on the surface itself there is no gradient."""
    sharpness: float = 200.0
    """Of the surface at the beginning, per scene unit."""
    first: FirstSheet = FirstSheet()  # type: ignore[assignment]
    """Where the fit begins."""
    known: float = 10.0
    """Weight of the distances that are known from then on; 0 = photographs alone."""

    def build_law(self) -> nn.Module:
        """What turns distances into alphas."""
        law = Unsigned(self.sharpness)
        law.needs_gradients = self.eikonal.weight != 0 or self.curvature.weight != 0
        return law

    def build_losses(self, facts: SceneFacts, device: torch.device = CPU) -> dict[str, Loss]:
        """``SurfaceConfig``'s, and that what is known of the surfaces stays so."""
        known: dict[str, Loss] = {"known": KnownDistances(self.known, device)} if self.known != 0 else {}
        return super().build_losses(facts, device) | known
