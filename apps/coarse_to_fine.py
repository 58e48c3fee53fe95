"""Coarse to fine: the levels of a hash grid learn one after the other, so that cameras see a smooth scene first.

A gradient to a camera's pose is as good as the scene is smooth over the pose's error: what fine levels hold would tie
each photograph to where its camera is said to be (Lin et al. 2021, "BARF", for frequencies). A level that waits keeps
its first values, which are next to nothing, so the field is queried as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fields.encodings import HashGrid
from .devices import CPU
from .fit import Report


@dataclass(frozen=True)
class CoarseToFineConfig:
    """When levels join in; used where poses are refined."""

    levels: int = 3
    """That learn from the start."""
    until: float = 0.5
    """Share of the budget after which all do; 0 = from the start."""


class CoarseToFine:
    """Holds back levels of ``encoding``, whose table ``optimizer`` steps. Called after each step."""

    def __init__(self, encoding: HashGrid, optimizer: torch.optim.Optimizer, config: CoarseToFineConfig) -> None:
        self.encoding, self.config = encoding, config
        self.levels = self._levels(0.0)
        optimizer.register_step_pre_hook(self._hold)

    def _levels(self, spent: float) -> int:
        """That learn once this share of the budget is spent."""
        most, first = self.encoding.layout.levels, self.config.levels
        if spent >= self.config.until or first >= most:
            return most
        return first + int((most - first) * spent / self.config.until)

    def __call__(self, report: Report) -> None:
        self.levels = self._levels(report.spent)

    def _hold(self, *_: Any) -> None:
        gradient, layout = self.encoding.table.grad, self.encoding.layout
        if gradient is not None and self.levels < layout.levels:
            gradient[layout.offsets[self.levels] :].zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {"levels": torch.tensor(self.levels, device=CPU)}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.levels = int(state_dict["levels"])
