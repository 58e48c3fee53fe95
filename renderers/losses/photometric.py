"""Photometric loss: squared or Huber difference of rendered and photographed colours, masked pixels left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..protocols import Step


def photometric(colors: Tensor, target: Tensor, mask: Tensor | None = None, huber: float = 0.0) -> Tensor:
    """Mean over rays and channels of the squared error, or of Huber's loss if ``huber`` > 0.

    colors (R, 3), target (R, 3), mask (R,) True = counts -> (). Huber's loss is scaled so that it equals the squared
    error below the threshold: small residuals weigh the same in both.
    """
    error = colors - target
    if huber > 0:
        size = error.abs()
        loss = torch.where(size < huber, error.square(), 2 * huber * size - huber**2)
    else:
        loss = error.square()
    if mask is None:
        return loss.mean()
    return (loss * mask[..., None]).sum() / (3 * mask.sum()).clamp(min=1)


@dataclass(frozen=True)
class Photometric:
    """How much, and how, colours count."""

    weight: float = 1.0
    huber: float = 0.0
    """Residual above which the loss grows linearly; 0 = squared error throughout."""

    def __call__(self, step: Step) -> Tensor:
        colors = step.render.pixels.colors
        assert colors is not None
        return self.weight * photometric(colors, step.target_colors, step.target.masks, self.huber)
