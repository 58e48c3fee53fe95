"""NeuS: a signed distance whose law lets rays see surfaces where they enter them (Wang et al. 2021), on a hash grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...renderers.opacity import Neus
from ..fit import Report
from ..surfaces import SurfaceConfig


@dataclass(frozen=True)
class Config(SurfaceConfig):
    """NeuS: a signed distance and colours on a hash grid, drawn by a law that makes its zero level the surface."""

    sharpness: float = 120.0
    """Of the surface at the beginning, per scene unit."""
    anneal: float = 0.1
    """Share of the budget after which rays see only surfaces that they enter."""

    def build_law(self) -> nn.Module:
        """What turns distances into alphas."""
        return Neus(self.sharpness)

    def after_step(self) -> list:
        """``ngp``'s, and the law's annealing."""
        return [*super().after_step(), self.anneal_law]

    def anneal_law(self, report: Report) -> None:
        """Let rays see less and less of what they leave."""
        report.job.renderer.opacity.annealing.fill_(min(1.0, report.spent / self.anneal) if self.anneal else 1.0)
