"""Depth distortion: draws the surfels that a ray meets together (Huang et al., "2D Gaussian Splatting", 2024,
eq. 13)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..protocols import Step


@dataclass(frozen=True)
class DepthDistortion:
    """Mean over pixels that count of sum_{i<j} w_i w_j (m_i - m_j)^2, m depths in normalised device coordinates."""

    weight: float = 1000.0
    """Published: 1000 for bounded scenes, 100 for unbounded ones. 0 leaves it out."""
    begin: float = 0.1
    """Share of the budget before it counts (published: 3,000 of 30,000 steps)."""

    def __call__(self, step: Step) -> Tensor:
        distortions = step.render.distortions
        if distortions is None:
            raise ValueError(
                "depth_distortion: render: expected distortions, got none; use SurfelRenderer(geometry=True)"
            )
        if step.spent < self.begin:
            return distortions.new_zeros(())
        return self.weight * step.mean(distortions)
