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
