"""Per-image exposure: a gain per photograph and channel, as exp of a parameter that starts at zero.

The gains' mean over all images is taken out, so that the scene keeps its own brightness and is shown as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..geometry import Camera, Rays


class Exposure(nn.Module):
    """colours (R, 3) of images (R,) -> colours (R, 3); or those of one image, (H, W, 3), and its number ()."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.log_gains = nn.Parameter(torch.zeros(images, 3))

    def forward(self, colors: Tensor, images: Tensor, view: Camera | Rays | None = None) -> Tensor:
        gains = self.log_gains - self.log_gains.mean(0)
        return colors * gains[images].exp()

    @staticmethod
    def fitted(colors: Tensor, target: Tensor) -> Tensor:
        """(3,) log gains under which colours (N, 3) come nearest to target (N, 3): g = sum(c t) / sum(c c)."""
        gains = (colors * target).sum(0) / (colors * colors).sum(0).clamp_min(1e-12)
        return gains.clamp_min(1e-4).log()

    @staticmethod
    def apply_code(colors: Tensor, log_gains: Tensor) -> Tensor:
        """Colours (..., 3) under log gains (3,)."""
        return colors * log_gains.exp()
