"""Curvature loss: normals change little along the surface (Rosu and Behnke, "PermutoSDF", 2023, eq. 8).

    (n(x) . n(x + h t) - 1)^2,   t a random tangent: n x (a random direction), made unit

Of two first derivatives rather than of a Laplacian from values (Li et al., "Neuralangelo", 2023), so that analytic
gradients will do. Those of a grid jump from cell to cell, and a step within a cell would not see it: so h is about a
cell here. Annealed, as in both: it shapes the surface while that is found, and then leaves it its details.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...fields.protocols import Field
from ..protocols import Step


def bending(normals: Tensor, shifted: Tensor, sides: bool = True) -> Tensor:
    """normals, shifted (N, 3) unit -> (): mean of (n . m - 1)^2, 0 for none. Without ``sides``, -n is n."""
    cosines = (normals * shifted).sum(-1)
    return ((cosines if sides else cosines.abs()) - 1).square().sum() / max(len(normals), 1)


def tangents(normals: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 3) random unit vectors at right angles to unit normals (N, 3)."""
    random = torch.randn(normals.shape, generator=generator, device=normals.device, dtype=normals.dtype)
    return normalize(torch.linalg.cross(normals, random), dim=-1)


@dataclass(frozen=True)
class Curvature:
    """How much it counts, at some of the places where a step asked the field."""

    weight: float = 0.0
    """0 leaves it out."""
    shift: float = 4e-3
    """How far along the surface normals are compared, scene units."""
    until: float = 0.6
    """Share of the budget over which it fades to nothing; 0 = it stays."""
    points: int = 4096
    """Places per step."""

    def __call__(self, step: Step) -> Tensor:
        output, field = step.render.output, step.field
        if output is None or output.gradients is None or not isinstance(field, Field):
            raise ValueError("curvature: render: expected gradients of distances, got none; use a law that needs them")
        left = 1 - step.spent / self.until if self.until > 0 else 1.0
        if left <= 0 or not len(output.gradients):
            return output.values.new_zeros(())
        generator = step.generator(output.values.device)
        chosen = step.some(len(output.gradients), self.points, generator)
        normals = normalize(output.gradients[chosen], dim=-1)
        places = step.positions[chosen] + self.shift * tangents(normals.detach(), generator)
        shifted = field.query(places, gradients=True).gradients
        assert shifted is not None
        return left * self.weight * bending(normals, normalize(shifted, dim=-1), getattr(field, "signed", True))
