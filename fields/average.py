"""A running mean of a field's parameters: what is kept of a fit whose steps never become small.

    mean <- d mean + (1 - d) parameters,   d = min(decay, (n + 1) / (n + 10)) at the n-th update

A learning rate that stays high looks further around, and the mean of where it went is better than any one place (Polyak
and Juditsky 1992). A young mean forgets faster, so that it does not remember the start.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..cuda.checks import check_range


class Average:
    """The mean of ``field``'s parameters over the last ``1 / (1 - decay)`` updates or so."""

    def __init__(self, field: nn.Module, decay: float = 0.95) -> None:
        check_range("Average", "decay", decay, 0, 1)
        self.field, self.decay, self.updates = field, decay, 0
        self.means = {name: parameter.detach().clone() for name, parameter in field.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters into the mean as they are now."""
        self.updates += 1
        decay = min(self.decay, (self.updates + 1) / (self.updates + 10))
        for name, parameter in self.field.named_parameters():
            self.means[name].lerp_(parameter, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Means by the parameters' names, and the number of updates."""
        return {**self.means, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state_dict()`` was taken."""
        self.updates = int(state["updates"])
        for name, mean in self.means.items():
            mean.copy_(state[name])
