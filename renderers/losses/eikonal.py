"""Eikonal loss: the gradient of a distance has length 1 (Gropp et al., "Implicit Geometric Regularization", 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..protocols import Step


def eikonal(gradients: Tensor) -> Tensor:
    """gradients (N, 3) -> (): mean of (|g| - 1)^2; 0 for no points."""
    return ((gradients.norm(dim=-1) - 1).square()).sum() / max(len(gradients), 1)


@dataclass(frozen=True)
class Eikonal:
    """How much it counts, at the samples that a step met."""

    weight: float = 0.1

    def __call__(self, step: Step) -> Tensor:
        output = step.render.output
        if output is None or output.gradients is None:
            raise ValueError("eikonal: render: expected gradients of distances, got none; use a law that needs them")
        return self.weight * eikonal(output.gradients)
