"""3D Gaussian Splatting as first published: clone, split and prune by image gradients (Kerbl et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ...datasets.scene import Scene
from ...fields import density_control
from ...fields.gaussians import GaussianField
from ...fields.optimizer import Adam
from ...renderers.losses.primitives import MeanOpacity, MeanScale
from ..devices import CPU
from ..first_gaussians import FirstGaussians
from ..fit import Budget, Job, Report
from . import splat


@dataclass(frozen=True)
class ClassicControl:
    """When Gaussians are cloned, split and pruned."""

    every: int = 100
    begin: float = 500 / 30_000
    """Share of the budget before the first."""
    end: float = 0.5
    """Share of the budget after the last."""
    threshold: float = 2e-4
    """Mean gradient to a Gaussian's place in an image of width 2, above which there is too little detail."""
    absolute: bool = False
    """Sum gradients' absolute values over the pixels (AbsGS, Ye et al. 2024); its threshold is 8e-4."""
    large: float = 0.01
    """Scale above which a Gaussian is split rather than cloned; scene units."""
    too_large: float = 0.1
    """Scale above which a Gaussian is dropped once opacities have been reset; scene units."""
    min_opacity: float = 0.005
    reset_every: float = 0.1
    """Share of the budget between resets of the opacities; 0 = none."""
    reset_steps: int = 0
    """Steps between resets, at least: what is needed must come back before the next round prunes."""


@dataclass(frozen=True)
class Config(splat.Config):
    """3D Gaussian Splatting with the published density control, under a hard cap."""

    first: FirstGaussians = field(default_factory=lambda: FirstGaussians(opacity=0.1, scale=1.0))
    rates: splat.RatesConfig = splat.RatesConfig(quats=1e-3, log_scales=5e-3, higher_bands=0.05)
    classic: ClassicControl = ClassicControl()
    opacity: MeanOpacity = MeanOpacity(weight=0.0)
    scale: MeanScale = MeanScale(weight=0.0)

    def build(self, scene: Scene, seed: int = 0, device: torch.device = CPU, budget: Budget | None = None) -> Job:
        """As ``splat``'s, with the sums that density control goes by."""
        job = super().build(scene, seed, device, budget)
        statistics = density_control.Statistics(len(job.field), device)  # type: ignore[arg-type]
        job.parts = {**job.parts, "statistics": statistics}
        job.renderer.statistics = statistics  # type: ignore[attr-defined]
        return job

    def control_density(self, report: Report) -> None:
        job, c, sums = report.job, self.classic, report.job.parts["statistics"]
        assert isinstance(job.field, GaussianField) and isinstance(job.optimizer, Adam)
        assert isinstance(sums, density_control.Statistics)
        if c.begin <= report.spent < c.end and job.step % c.every == 0:
            self._densify(report, sums)
            self._reset_opacities(report, sums)

    def _reset_opacities(self, report: Report, sums: density_control.Statistics) -> None:
        job, c = report.job, self.classic
        assert isinstance(job.field, GaussianField) and isinstance(job.optimizer, Adam)
        due = int(report.spent / c.reset_every) if c.reset_every else 0
        if due > sums.resets and job.step - sums.reset_at >= c.reset_steps:
            sums.resets, sums.reset_at = due, job.step
            density_control.reset_opacities(job.field, job.optimizer)

    def _densify(self, report: Report, sums: density_control.Statistics) -> None:
        job, c, camera = report.job, self.classic, report.step.view
        assert isinstance(job.field, GaussianField) and isinstance(job.optimizer, Adam)
        gradients = sums.sums.clone()
        gradients[:, :2] *= max(camera.width, camera.height) / 2  # type: ignore[union-attr]
        density_control.densify(
            job.field,
            job.optimizer,
            gradients,
            job.generator,
            threshold=c.threshold,
            large=c.large,
            most=self.most,
            absolute=c.absolute,
        )
        largest = c.too_large if sums.resets else float("inf")
        density_control.prune(job.field, job.optimizer, min_opacity=c.min_opacity, max_scale=largest)
        sums.clear(len(job.field))
