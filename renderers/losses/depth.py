"""Depth loss: the expected depth along the ray against a measured one (Deng et al. 2022, "Depth-supervised NeRF", use
the same quantity; here robustly). Pixels without a measured depth (0, NaN, infinite) and masked pixels do not count.

The expected depth is d = sum_i w_i t_i / A with A = sum_i w_i, so dd/dw_i = (t_i - d) / A: weight moves along the ray
towards the measured depth, and the sum of weights is left to the colours. Each pixel counts by its A, taken as a
constant, which keeps gradients bounded where little is met.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..protocols import Step


def depth_error(depths: Tensor, target: Tensor, huber: float = 0.0, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """depths, target (*P,) along the ray -> errors (*P,), 0 where the target is unknown; and known (*P,) bool.

    An error is the absolute difference e, or Huber's e^2 / 2h below ``huber`` = h and e - h / 2 above; of the inverse
    depths on request.
    """
    known = target.isfinite() & (target > 0)
    wanted = torch.where(known, target, 1.0)
    found = torch.where(known, depths, 1.0)
    if inverse:
        wanted, found = 1 / wanted, 1 / found.clamp(min=1e-3)
    error = (found - wanted).abs()
    if huber > 0:
        error = torch.where(error < huber, error.square() / (2 * huber), error - huber / 2)
    return torch.where(known, error, 0.0), known


@dataclass(frozen=True)
class Depth:
    """How much measured depths count, in scene units; mean over the pixels that have one, each by its own weight."""

    weight: float = 0.0
    """0 leaves it out."""
    huber: float = 0.0
    """Difference below which the loss is quadratic, scene units; 0 = absolute difference throughout."""
    inverse: bool = False
    """Compare 1 / depth: where backgrounds are far away, and their depths uncertain."""

    needs: ClassVar[str] = "depths"  # of the targets

    def __call__(self, step: Step) -> Tensor:
        depths, alphas, target = step.render.pixels.depths, step.render.pixels.alphas, step.target.depths
        if depths is None or alphas is None or target is None:
            which = "target" if target is None else "render"
            raise ValueError(f"depth: {which}: expected depths, got none; use a view that has them, or drop the loss")
        error, known = depth_error(depths, target, self.huber, self.inverse)
        if step.target.depth_weights is not None:
            error = error * step.target.depth_weights
        return self.weight * step.mean(error * alphas.detach(), known)
