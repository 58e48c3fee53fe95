"""Surface points: a distance is zero where the data knows of a surface (Fu et al., "Geo-Neus", 2022, eq. 12), and its
gradient is the normal, where that is known (Gropp et al., "Implicit Geometric Regularization", 2020, eq. 2).

Points are those of structure from motion, or whatever came with the photographs. They are not exact, and some are far
astray: so the difference is absolute, and beyond ``reach`` it has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...fields.protocols import Field
from ..protocols import Step


def normal_difference(gradients: Tensor, normals: Tensor) -> Tensor:
    """gradients, normals (N, 3) -> (N,): |gradient - normal|."""
    return (gradients - normals).norm(dim=-1)


@dataclass(frozen=True)
class SurfacePoints:
    """How much points count that lie on surfaces."""

    weight: float = 0.0
    """0 leaves it out."""
    normals: float = 0.1
    """How much their normals count beside that, where they have any; of signed distances alone."""
    reach: float = float("inf")
    """Scene units from the surface from which on a point counts as astray."""
    points: int = 4096
    """Of them per step."""

    needs_scene: ClassVar[str] = "points"

    def __call__(self, step: Step) -> Tensor:
        known, field = step.known, step.field
        if known is None or not isinstance(field, Field):
            raise ValueError("surface_points: step: expected points on surfaces, got none; drop the loss")
        generator = step.generator(known.positions.device)
        some = known[step.some(len(known), self.points, generator)]
        sided = some.normals is not None and self.normals > 0 and getattr(field, "signed", True)
        output = field.query(some.positions, gradients=sided)
        near = output.values.detach().abs() < self.reach
        error = output.values.abs().clamp(max=self.reach)
        if sided:
            assert output.gradients is not None and some.normals is not None
            error = error + self.normals * torch.where(near, normal_difference(output.gradients, some.normals), 0.0)
        return self.weight * error.sum() / max(len(some), 1)
