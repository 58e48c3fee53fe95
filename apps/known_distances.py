"""Known distances: a field's distances against those that are known at places of their own, whatever a step draws.

What photographs say of a distance is only where light ends; of an unsigned one, not even on which side. Distances to
surfaces that were found before keep it in place while colours are learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..fields.protocols import Distance
from ..geometry.types import Points
from ..renderers.protocols import Step


class KnownDistances:
    """``weight`` times mean |f - d| at ``points`` of the places per step; nothing while no place is known.

    The places are part of a fit's state.
    """

    def __init__(self, weight: float, device: torch.device, points: int = 8192) -> None:
        self.weight, self.points = weight, points
        self.rows = torch.zeros(0, 4, device=device)  # position, distance

    def learn(self, known: Points) -> None:
        """Replace what is known."""
        assert known.distances is not None
        self.rows = torch.cat([known.positions, known.distances[:, None]], 1)

    def __call__(self, step: Step) -> Tensor:
        field = step.field
        assert isinstance(field, Distance)
        if not len(self.rows):
            return self.rows.sum()
        rows = self.rows[step.some(len(self.rows), self.points, step.generator(self.rows.device))]
        return self.weight * (field.distance(rows[:, :3].contiguous()) - rows[:, 3]).abs().mean()

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.rows = state_dict["rows"].to(self.rows.device)
