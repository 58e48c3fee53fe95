"""3D Gaussian Splatting as first published: clone, split and prune by image gradients (Kerbl et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...datasets.scene import Scene
from ...fields import density_control
from ...fields.gaussians import GaussianField
from ...fields.optimizer import Adam
from ...renderers.losses.primitives import MeanOpacity, MeanScale
from ...renderers.splat import SplatRenderer
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


class Statistics:
    """What the renderer sums up between two rounds of density control, while ``counting``."""

    def __init__(self, count: int, renderer: SplatRenderer) -> None:
        self.renderer = renderer
        self.resets = self.reset_at = 0  # how many were due, and the last one's step
        self.clear(count)

    def clear(self, count: int) -> None:
        self.sums = torch.zeros(count, 4, device=self.renderer.device)
        self.count(True)

    def count(self, counting: bool) -> None:
        """Let the renderer add to the sums, or not."""
        self.counting = counting
        self.renderer.statistics = self.sums if counting else None

    def state_dict(self) -> dict[str, Tensor]:
        whole = {"resets": self.resets, "reset_at": self.reset_at, "counting": self.counting}
        return {"sums": self.sums, **{k: torch.tensor(int(v), device=CPU) for k, v in whole.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums, self.resets = state_dict["sums"].to(self.sums.device), int(state_dict["resets"])
        self.reset_at = int(state_dict.get("reset_at", 0))
        self.count(bool(state_dict.get("counting", True)))


@dataclass(frozen=True)
class Config(splat.Config):
    """3D Gaussian Splatting with the published density control, under a hard cap."""

    first: FirstGaussians = field(default_factory=lambda: FirstGaussians(opacity=0.1, scale=1.0))
    classic: ClassicControl = ClassicControl()
    opacity: MeanOpacity = MeanOpacity(weight=0.0)
    scale: MeanScale = MeanScale(weight=0.0)

    def build(self, scene: Scene, seed: int = 0, device: torch.device = CPU, budget: Budget | None = None) -> Job:
        """As ``splat``'s, with the sums that density control goes by."""
        job = super().build(scene, seed, device, budget)
        job.parts = {**job.parts, "statistics": Statistics(len(job.field), job.renderer)}  # type: ignore[arg-type]
        return job

    def control_density(self, report: Report) -> None:
        job, c, sums = report.job, self.classic, report.job.parts["statistics"]
        assert isinstance(job.field, GaussianField) and isinstance(job.optimizer, Adam)
        assert isinstance(sums, Statistics)
        if c.begin <= report.spent < c.end:
            if job.step % c.every == 0:
                self._densify(report, sums)
                self._reset_opacities(report, sums)
            sums.count(True)
        else:
            sums.count(False)

    def _reset_opacities(self, report: Report, sums: Statistics) -> None:
        job, c = report.job, self.classic
        assert isinstance(job.field, GaussianField) and isinstance(job.optimizer, Adam)
        due = int(report.spent / c.reset_every) if c.reset_every else 0
        if due > sums.resets and job.step - sums.reset_at >= c.reset_steps:
            sums.resets, sums.reset_at = due, job.step
            density_control.reset_opacities(job.field, job.optimizer)

    def _densify(self, report: Report, sums: Statistics) -> None:
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
