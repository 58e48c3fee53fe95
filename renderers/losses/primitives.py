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
        return self.weight * torch.sigmoid(step.field.gaussians().logit_opacities).mean()


@dataclass(frozen=True)
class MeanScale:
    """How much the mean standard deviation counts."""

    weight: float = 0.01

    def __call__(self, step: Step) -> Tensor:
        assert isinstance(step.field, Primitives)
        return self.weight * step.field.gaussians().log_scales.exp().mean()
