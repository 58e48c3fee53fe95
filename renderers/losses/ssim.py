"""Photometric loss of Gaussian splatting: a mix of absolute difference and structural similarity of whole images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...cuda.ssim import ssim_l1
from ..protocols import Step


@dataclass(frozen=True)
class SsimL1:
    """(1 - structure) L1 + structure (1 - SSIM), of images (H, W, 3); masked pixels are left out."""

    weight: float = 1.0
    structure: float = 0.2
    """Share of the structural part."""

    def __call__(self, step: Step) -> Tensor:
        colors = step.render.pixels.colors
        assert colors is not None
        return self.weight * ssim_l1(colors, step.target_colors, weight=self.structure, mask=step.target.masks)
