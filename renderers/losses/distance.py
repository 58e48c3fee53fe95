"""Distance loss: a field's distances against exact ones, at points in space.

    |f - d| / (|d| + softness)

counts what is near the surface most, as the mean absolute percentage error of Müller et al. 2022 ("Instant Neural
Graphics Primitives") does, and beyond ``reach`` only asks for the right side of it, as the truncation of Park et al.
2019 ("DeepSDF") does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...geometry.types import Points
from ..protocols import Step


def distance_error(found: Tensor, true: Tensor, softness: float, reach: float = float("inf")) -> Tensor:
    """found, true (N,) -> (): mean |found - true| / (|true| + softness), both cut at +-reach; 0 for no points."""
    found, true = found.clamp(-reach, reach), true.clamp(-reach, reach)
    return ((found - true).abs() / (true.abs() + softness)).sum() / max(len(true), 1)


@dataclass(frozen=True)
class Distance:
    """How much it counts."""

    weight: float = 1.0
    softness: float = 0.03
    """Distance from the surface, in scene units, that counts half as much as the surface itself."""
    reach: float = float("inf")
    """Distances are cut at this many scene units."""

    def __call__(self, step: Step) -> Tensor:
        view, output = step.view, step.render.output
        if not isinstance(view, Points) or view.distances is None or output is None:
            raise ValueError("distance: view: expected points with distances, got none; fit to a shape")
        return self.weight * distance_error(output.values, view.distances, self.softness, self.reach)
