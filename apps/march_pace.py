"""Keeps a marching fit's steps equally long: steers the number of rays by the number of samples that they gave.

While space is foggy a ray meets hundreds of intervals: early in a fit they are made longer then, rather than the rays
too few. Later they have their own length, which is what pictures are rendered with, and the rays give way.
"""

from __future__ import annotations

from typing import Any

import torch

from ..renderers.volume import VolumeRenderer
from .batches import PixelBatches
from .devices import CPU
from .fit import Report

MIN_RAYS, MAX_RAYS = 256, 65536
MAX_COARSENESS, COARSE_UNTIL = 8.0, 0.25  # times the intervals' length; share of the budget


class MarchPace:
    """Called after each step; what it steers is ``batches.rays`` and ``renderer.coarseness``."""

    def __init__(
        self, batches: PixelBatches, renderer: VolumeRenderer, samples_per_step: int, growth: float = 1.0
    ) -> None:
        self.batches, self.renderer = batches, renderer
        self.samples_per_step, self.growth = samples_per_step, growth  # growth: at the budget's end, times as many
        self.least_rays = batches.rays

    def __call__(self, report: Report) -> None:
        samples = report.step.render.samples
        longest = max(1.0, MAX_COARSENESS * (1 - report.spent / COARSE_UNTIL))
        count = (0 if samples is None else len(samples)) + self.renderer.background.met
        change = min(max(count / (self.samples_per_step * self.growth**report.spent), 0.5), 2.0)
        longer = self.renderer.coarseness
        few = self.batches.rays <= self.least_rays
        if longer > 1 or few:
            self.renderer.coarseness = min(max(longer * change**0.5, 1.0), longest)
        if longer >= longest or (longer == 1 and not few) or change < 1:
            most = MAX_RAYS if longer == 1 else max(self.least_rays, MIN_RAYS)
            self.batches.rays = int(min(max(self.batches.rays / change, MIN_RAYS), most)) // 64 * 64

    def state_dict(self) -> dict[str, Any]:
        return {
            "rays": torch.tensor(self.batches.rays, device=CPU),
            "coarseness": torch.tensor(self.renderer.coarseness, dtype=torch.float64, device=CPU),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches.rays, self.renderer.coarseness = int(state_dict["rays"]), float(state_dict["coarseness"])
