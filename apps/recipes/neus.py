"""A signed distance fitted to photographs: surfaces without holes or fog (NeuS, Wang et al. 2021), on a hash grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from ...fields.encodings import HashGridConfig
from ...fields.signed_distance import SignedDistanceConfig
from ...renderers.losses.eikonal import Eikonal
from ...renderers.losses.opacity import Opacity
from ...renderers.opacity import Neus
from ...renderers.protocols import Loss
from ...renderers.volume import MarchConfig
from ..fit import Report
from ..run import SceneFacts
from . import ngp


@dataclass(frozen=True)
class Config(ngp.Config):
    """NeuS: a signed distance and colours on a hash grid, drawn by a law that makes its zero level the surface."""

    default_steps: ClassVar[int] = 5000

    field: SignedDistanceConfig = field(
        default_factory=lambda: SignedDistanceConfig(
            grid=HashGridConfig(levels=8, features=4, log2_size=17, finest_resolution=1024)
        )
    )
    march: MarchConfig = MarchConfig(min_transmittance=1e-3)
    optimizer: ngp.OptimizerConfig = ngp.OptimizerConfig(learning_rate=1e-2, final_fraction=0.05)
    eikonal: Eikonal = Eikonal(weight=0.1)
    opacity: Opacity = Opacity(weight=0.1)
    """Against the photographs' alpha, where they have any."""
    sharpness: float = 20.0
    """Of the surface at the beginning, per scene unit."""
    anneal: float = 0.2
    """Share of the budget after which rays see only surfaces that they enter."""
    average_every: int = 0

    def build_law(self) -> nn.Module:
        """What turns distances into alphas."""
        return Neus(self.sharpness)

    def build_losses(self, facts: SceneFacts) -> dict[str, Loss]:
        """``ngp``'s, without opacity where photographs say nothing of it, and that distances are distances."""
        losses = super().build_losses(facts)
        if not facts.has_alpha:
            losses.pop("opacity", None)
        return losses | {"eikonal": self.eikonal}

    def after_step(self) -> list:
        """``ngp``'s, and the law's annealing."""
        return [*super().after_step(), self.anneal_law]

    def anneal_law(self, report: Report) -> None:
        """Let rays see less and less of what they leave."""
        law = report.job.renderer.opacity
        law.annealing = min(1.0, report.spent / self.anneal) if self.anneal else 1.0
