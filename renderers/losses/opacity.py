"""Opacity loss: a ray should hit something or nothing. Binary cross-entropy against the photograph's alpha where it
has one, else the entropy of the accumulated alpha (NeuS-style mask loss; Ref: Wang et al. 2021, sec. 3.3). Masked
pixels are left out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..protocols import Step


def binary_entropy(alphas: Tensor, target: Tensor, eps: float = 1e-4) -> Tensor:
    """Cross-entropy between target and alphas (R,), the latter clamped away from 0 and 1 -> (R,)."""
    p = alphas.clamp(eps, 1 - eps)
    return -(target * p.log() + (1 - target) * (1 - p).log())


@dataclass(frozen=True)
class Opacity:
    """How much the accumulated alpha counts."""

    weight: float = 0.0
    """0 leaves it out."""

    def __call__(self, step: Step) -> Tensor:
        alphas = step.render.pixels.alphas
        assert alphas is not None
        target = step.target.alphas
        return self.weight * step.mean(binary_entropy(alphas, alphas if target is None else target))
