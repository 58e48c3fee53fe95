"""Slope loss: a distance's gradient against the exact one, at points in space off the surface.

Away from its surface an exact distance's gradient is known: the unit vector away from the nearest point. Distances
alone leave it to chance between samples, from which an unsigned distance, whose gradient turns round at the surface,
suffers most. On the surface itself an unsigned distance has no gradient, and nothing is asked there.

Source: the normal term of Gropp et al., "Implicit Geometric Regularization", 2020, off the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...geometry.types import Points
from ..protocols import Step


def slope_error(gradients: Tensor, true: Tensor, off: Tensor) -> Tensor:
    """gradients, true (N, 3), off (N,) bool -> (): mean |gradient - true| of those that are off; 0 for none."""
    return ((gradients - true).norm(dim=-1) * off).sum() / off.sum().clamp(min=1)


@dataclass(frozen=True)
class Slope:
    """How much it counts."""

    weight: float = 0.5
    beyond: float = 1e-3
    """Distance from the surface, in scene units, from which on a gradient is asked for."""

    def __call__(self, step: Step) -> Tensor:
        view, output = step.view, step.render.output
        if not isinstance(view, Points) or view.distances is None or view.normals is None or output is None:
            raise ValueError("slope: view: expected points with distances and normals, got none; fit to a shape")
        if output.gradients is None:
            raise ValueError("slope: render: expected gradients of distances, got none; ask the field for them")
        return self.weight * slope_error(output.gradients, view.normals, view.distances.abs() > self.beyond)
