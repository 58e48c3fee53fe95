"""What stands behind a scene: a fixed colour, a random one while fitting, or a learned one.

Random colours while fitting keep a field from explaining the background of an image with alpha by coloured fog;
what is shown and measured is always over the fixed colour.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..geometry import Rays


class FixedBackground(nn.Module):
    """One colour for every ray."""

    color: Tensor
    met = 0

    def __init__(self, color: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("color", torch.tensor(color), persistent=False)

    @property
    def shown(self) -> Tensor:
        """(3,) the colour."""
        return self.color

    def forward(self, rays: Rays, fitting: bool, light: Tensor | None = None) -> Tensor:
        return self.shown.expand(len(rays), 3)


class RandomBackground(FixedBackground):
    """A random colour per ray while fitting; the fixed one otherwise. Draws from torch's default generator."""

    def forward(self, rays: Rays, fitting: bool, light: Tensor | None = None) -> Tensor:
        return torch.rand_like(rays.origins) if fitting else super().forward(rays, fitting)


class LearnedBackground(nn.Module):
    """One colour for the whole scene, fitted with it (a sky, a studio wall)."""

    met = 0

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3))

    @property
    def shown(self) -> Tensor:
        """(3,) the colour as learned so far."""
        return torch.sigmoid(self.logits)

    def forward(self, rays: Rays, fitting: bool, light: Tensor | None = None) -> Tensor:
        return self.shown.expand(len(rays), 3)
