"""Gaussians that look alike at every distance and size: Mip-Splatting's two filters (Yu et al. 2024) on ``splat``.

In the image, opacities shrink as the blur widens an ellipse (``antialias``). In space, every Gaussian is convolved with
what the photograph that sees it best could show (``fields/mip_gaussians.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ...datasets.scene import Scene
from ...fields.mip_gaussians import MipGaussianField
from ...renderers.splat import SplatConfig
from ..devices import CPU
from ..fit import Budget, Job, Report
from ..image_batches import ImageBatches
from . import splat


@dataclass(frozen=True)
class Config(splat.Config):
    """3D Gaussians with Mip-Splatting's filters: no aliasing when zooming in or out."""

    field_type = MipGaussianField

    draw: SplatConfig = field(default_factory=lambda: SplatConfig(blur=0.1, antialias=True))
    filter_share: float = 0.2**0.5
    """Standard deviation of the filter in space, in pixels of the photograph that sees a Gaussian best."""
    filter_every: int = 100
    """Steps between looks at what photographs see."""

    def build(self, scene: Scene, seed: int = 0, device: torch.device = CPU, budget: Budget | None = None) -> Job:
        """As ``splat``'s, with filters for its first Gaussians."""
        job = super().build(scene, seed, device, budget)
        self._set_filters(job)
        return job

    def after_step(self) -> list:
        """``splat``'s, and the filter in space."""
        return [*super().after_step(), self.set_filters]

    def set_filters(self, report: Report) -> None:
        """Now and then, and when there are other Gaussians: how fine the photographs could show each."""
        model = report.job.field
        if report.job.step % self.filter_every == 0 or len(model.filters) != len(model):  # type: ignore[arg-type]
            self._set_filters(report.job)

    def _set_filters(self, job: Job) -> None:
        assert isinstance(job.field, MipGaussianField) and isinstance(job.batches, ImageBatches)
        job.field.set_filters(job.batches.cameras, self.filter_share)
