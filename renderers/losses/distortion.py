"""Distortion loss: draws the weights of a ray together, against floaters (Mip-NeRF 360, Barron et al. 2022, eq. 15)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...cuda.distortion import distortion
from ..protocols import Step


@dataclass(frozen=True)
class Distortion:
    """Mean over rays whose pixels count of sum_ij w_i w_j |m_i - m_j| + sum_i w_i^2 dt_i / 3, in scene units."""

    weight: float = 0.0
    """0 leaves it out."""

    def __call__(self, step: Step) -> Tensor:
        samples, weights = step.render.samples, step.render.weights
        if samples is None or weights is None:
            raise ValueError("distortion: render: expected samples and weights, got none; use a ray-marching renderer")
        return self.weight * step.mean(distortion(weights, samples.t_starts, samples.t_ends, samples.ray_offsets))
