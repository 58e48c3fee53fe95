"""Fourier features: sines and cosines of the place, at frequencies that double (Mildenhall et al., "NeRF", ECCV 2020,
eq. 4), or in random directions (Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low
Dimensional Domains", NeurIPS 2020). Nothing is learned: what a network on top of them learns is smooth everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .encodings import Encoding


@dataclass(frozen=True)
class FourierConfig:
    """Frequencies, in half periods over the bounds."""

    octaves: int = 6
    """Frequencies 1, 2, 4, ... along each axis."""
    random: int = 0
    """Frequencies in random directions, in the place of octaves; 0 = octaves."""
    spread: float = 8.0
    """Standard deviation of random ones."""

    def build(self) -> Fourier:
        return Fourier(self)


class Fourier(Encoding):
    """points (N, 3) in [0, 1] -> (N, 2 K) for K frequencies: sines, then cosines."""

    frequencies: Tensor  # (3, K) radians over the unit cube

    def __init__(self, config: FourierConfig) -> None:
        super().__init__()
        if config.random < 0 or (config.octaves < 1 and not config.random):
            raise ValueError(f"Fourier: octaves: expected at least 1, got {config.octaves}; or take no encoding")
        if config.random:
            turns = config.spread * torch.randn(3, config.random)
        else:
            turns = torch.cat([2.0**octave * torch.eye(3) for octave in range(config.octaves)], 1)
        self.register_buffer("frequencies", math.pi * turns)
        finest = max(2, math.ceil(float(turns.abs().max())))
        self.out_channels, self.resolutions = 2 * turns.shape[1], (2 * finest,)

    def forward(self, points: Tensor) -> Tensor:
        angles = (2 * points - 1) @ self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)

    def with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        angles = (2 * points - 1) @ self.frequencies
        sines, cosines = angles.sin(), angles.cos()
        jacobian = torch.cat([cosines, -sines], -1)[..., None] * (2 * self.frequencies.T).repeat(2, 1)
        return torch.cat([sines, cosines], -1), jacobian

    def slopes(self, points: Tensor, slopes: Tensor) -> Tensor:
        angles = (2 * points - 1) @ self.frequencies
        of_sines, of_cosines = slopes.chunk(2, -1)
        return (of_sines * angles.cos() - of_cosines * angles.sin()) @ (2 * self.frequencies.T)
