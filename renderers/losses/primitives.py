"""Penalties on Gaussians themselves: opacities and sizes that nothing needs shrink away (Kheradmand et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...fields.protocols import Primitives
from ..protocols import Step


@dataclass(frozen=True)
class MeanOpacity:
    """How much the mean opacity counts."""

    weight: float = 0.01

    def __call__(self, step: Step) -> Tensor:
        assert isinstance(step.field, Primitives)
        return self.weight * _mean(torch.sigmoid(step.field.gaussians().logit_opacities))


@dataclass(frozen=True)
class MeanScale:
    """How much the mean standard deviation counts."""

    weight: float = 0.01

    def __call__(self, step: Step) -> Tensor:
        assert isinstance(step.field, Primitives)
        return self.weight * _mean(step.field.gaussians().log_scales.exp())


def _mean(values: Tensor) -> Tensor:
    """Their mean; 0 if there is none, as where all Gaussians were pruned."""
    return values.sum() / max(values.numel(), 1)
