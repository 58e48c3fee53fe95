"""Sparsity loss: away from what photographs show, a distance is large (Long et al., "SparseNeuS", 2022, eq. 9).

    exp(-tau |f(x)|),   x anywhere

Surfaces that no ray sees cost nothing otherwise, and a mesh has them: crumbs inside of objects and behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...fields.protocols import Field
from ..protocols import Step


def sparsity(distances: Tensor, tau: float) -> Tensor:
    """distances (N,), tau per scene unit -> (): mean of exp(-tau |f|); 0 for no points."""
    return torch.exp(-tau * distances.abs()).sum() / max(len(distances), 1)


@dataclass(frozen=True)
class Sparsity:
    """How much it counts, at random places of the field's bounds."""

    weight: float = 0.0
    """0 leaves it out."""
    tau: float = 50.0
    """Per scene unit: a place counts as empty from a few times 1 / tau from the surface."""
    points: int = 4096
    """Places per step."""

    def __call__(self, step: Step) -> Tensor:
        if not isinstance(step.field, Field):
            raise ValueError("sparsity: field: expected one that can be asked at points, got none; use a distance")
        low, extent = step.field.bounds.low, step.field.bounds.extent
        generator = step.generator(low.device)
        random = torch.rand(self.points, 3, generator=generator, device=low.device, dtype=low.dtype)
        return self.weight * sparsity(step.field.query(low + extent * random).values, self.tau)
