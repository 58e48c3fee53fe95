"""How coarse a picture must be to be there in time, learnt from how long the last ones took.

A picture of W x H pixels is painted at 1/d of its size, d from a fixed ladder. While the camera moves, d is the least
for which W H / d^2 * (seconds per pixel) fits the frame's time; at rest, d is halved until the picture is sharp.
"""

from __future__ import annotations

import math

LADDER = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0)
FRAME_SECONDS = 0.085  # leaves some of a tenth of a second for encoding and sending
CHUNK_SECONDS = 0.035  # how long a newer picture may have to wait


class Pace:
    """Measured seconds per pixel, and what follows from it."""

    def __init__(self, seconds_per_pixel: float = 4e-6) -> None:
        self.seconds_per_pixel = seconds_per_pixel

    def learn(self, pixels: int, seconds: float) -> None:
        """Take a measurement into account; recent ones weigh most."""
        measured = min(max(seconds / max(pixels, 1), 1e-9), 1e-2)
        self.seconds_per_pixel = math.sqrt(self.seconds_per_pixel * measured)

    def divisor(self, pixels: int, seconds: float = FRAME_SECONDS) -> float:
        """The finest step of the ladder at which ``pixels`` are painted within ``seconds``."""
        for divisor in LADDER:
            if pixels / divisor**2 * self.seconds_per_pixel <= seconds:
                return divisor
        return LADDER[-1]

    def chunk(self, seconds: float = CHUNK_SECONDS) -> int:
        """How many pixels can be painted within ``seconds``."""
        return max(int(seconds / self.seconds_per_pixel), 64)


def sharper(divisor: float) -> float:
    """The next divisor at rest: half, on the ladder."""
    return max(d for d in LADDER if d <= max(divisor / 2, 1.0))


def reduced(width: int, height: int, divisor: float) -> tuple[int, int]:
    """A picture's size at 1/divisor; at least one pixel."""
    return max(1, round(width / divisor)), max(1, round(height / divisor))
