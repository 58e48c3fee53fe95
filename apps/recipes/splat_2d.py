"""2D Gaussians (Huang et al. 2024): discs that lie in surfaces, for meshes and normals; clone, split and prune."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ...datasets.scene import Scene
from ...fields.gaussians import GaussianField
from ...fields.surfels import flatten, surfels
from ...renderers.losses.depth_distortion import DepthDistortion
from ...renderers.losses.normal_consistency import NormalConsistency
from ...renderers.surfels import SurfelConfig, SurfelRenderer
from ..first_gaussians import Beginning
from ..fit import Budget, Report
from . import splat_classic
from .splat_classic import ClassicControl


@dataclass(frozen=True)
class Config(splat_classic.Config):
    """2D Gaussians (surfels) with depth distortion and normal consistency, under a hard cap."""

    draw: SurfelConfig = SurfelConfig()  # type: ignore[assignment]
    classic: ClassicControl = field(default_factory=lambda: ClassicControl(min_opacity=0.05, reset_steps=500))
    distortion: DepthDistortion = DepthDistortion()
    normals: NormalConsistency = NormalConsistency()

    def make_renderer(self, color: tuple[float, float, float], draw: Any, random: bool) -> SurfelRenderer:
        """A renderer of surfels; of their geometry, if a loss looks at it."""
        return SurfelRenderer(color, draw, random=random, geometry=bool(self.distortion.weight or self.normals.weight))

    def beginning(self, scene: Scene, seed: int, device: torch.device, budget: Budget) -> Beginning:
        """``splat``'s, flat."""
        begin = super().beginning(scene, seed, device, budget)
        return begin._replace(gaussians=surfels(begin.gaussians))

    def terms(self) -> dict[str, Any]:
        return {**super().terms(), "distortion": self.distortion, "normals": self.normals}

    def after_step(self) -> list:
        """``splat_classic``'s; splits leave surfels as thin as they were."""
        return [*super().after_step(), self.keep_flat]

    def keep_flat(self, report: Report) -> None:
        assert isinstance(report.job.field, GaussianField)
        flatten(report.job.field.log_scales)
