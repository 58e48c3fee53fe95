"""Gradients that do not favour what lies before the cameras.

A camera puts as many samples into a unit of volume as the inverse square of its distance: so the first thing that
explains a photograph's colours is fog right before its camera, where no other sees it. Scaling gradients there with the
square of the distance evens that out (Philip and Deschaintre, "Floaters No More: Radiance Field Gradient Scaling for
Improved Near-Camera Training", EGSR 2023).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..fields.protocols import FieldOutput


def scaled_near(output: FieldOutput, distances: Tensor, reach: float) -> FieldOutput:
    """The same output, whose gradients are scaled by min(1, (distance / reach)^2).

    Args:
        output: what a field is at N points; values and colours are scaled.
        distances: (N,) from the camera, scene units.
        reach: from where on nothing is scaled, scene units.
    """
    factors = (distances / reach).square().clamp(max=1)
    colors = None if output.colors is None else _Scaled.apply(output.colors, factors)
    return replace(output, values=_Scaled.apply(output.values, factors), colors=colors)


class _Scaled(torch.autograd.Function):
    """(N, ...) as it is, with gradients times (N,) factors."""

    @staticmethod
    def forward(ctx, values, factors):
        ctx.save_for_backward(factors)
        return values.view_as(values)

    @staticmethod
    def backward(ctx, upstream):
        (factors,) = ctx.saved_tensors
        return upstream * factors.view(-1, *[1] * (upstream.dim() - 1)), None
