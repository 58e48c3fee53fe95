"""Coarse to fine: the levels of a hash grid learn one after the other, so that cameras see a smooth scene first.

A gradient to a camera's pose is as good as the scene is smooth over the pose's error: what fine levels hold would tie
each photograph to where its camera is said to be (Lin et al. 2021, "BARF", for frequencies). A level that waits keeps
its first values, which are next to nothing, so the field is queried as ever. Where gradients are finite differences,
their step shrinks meanwhile from the cells of the coarsest levels to those of the finest (Li et al. 2023,
"Neuralangelo", sec. 3.2), whatever the encoding is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..fields.encodings import Encoding, HashGrid
from .devices import CPU
from .fit import Report

COARSE = 16  # cells that differences begin with, of an encoding without levels


@dataclass(frozen=True)
class CoarseToFineConfig:
    """When levels join in; used where poses are refined, or gradients are finite differences."""

    levels: int = 3
    """That learn from the start."""
    until: float = 0.5
    """Share of the budget after which all do; 0 = from the start."""


class CoarseToFine:
    """Holds back levels of the encoding of ``model``, whose table ``optimizer`` steps. Called after each step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: CoarseToFineConfig) -> None:
        assert isinstance(model.encoding, Encoding)
        self.encoding, self.config = model.encoding, config
        self.difference: Tensor | None = getattr(model, "difference", None)
        self.levels = self._levels(0.0)
        self._set_difference(0.0)
        if isinstance(self.encoding, HashGrid):
            optimizer.register_step_pre_hook(self._hold)

    def _levels(self, spent: float) -> int:
        """That learn once this share of the budget is spent."""
        most, first = len(self.encoding.resolutions), self.config.levels
        if spent >= self.config.until or first >= most:
            return most
        return first + int((most - first) * spent / self.config.until)

    def __call__(self, report: Report) -> None:
        self.levels = self._levels(report.spent)
        self._set_difference(report.spent)

    def _set_difference(self, spent: float) -> None:
        if self.difference is None:
            return
        cells = self.encoding.resolutions
        coarse = cells[min(self.config.levels, len(cells)) - 1] if len(cells) > 1 else min(COARSE, cells[0])
        part = min(spent / self.config.until, 1.0) if self.config.until > 0 else 1.0
        self.difference.fill_(1 / (coarse * (cells[-1] / coarse) ** part))

    def _hold(self, *_: Any) -> None:
        assert isinstance(self.encoding, HashGrid)
        gradient, layout = self.encoding.table.grad, self.encoding.layout
        if gradient is not None and self.levels < layout.levels:
            gradient[layout.offsets[self.levels] :].zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {"levels": torch.tensor(self.levels, device=CPU)}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.levels = int(state_dict["levels"])
