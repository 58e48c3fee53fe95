"""fox (a real, hand-held capture) at 270 x 480, every 8th image held out: PSNR after 60, 120 and 300 s."""

from __future__ import annotations

from collections.abc import Iterator

from ..fitting import fit_rows
from ..measure import Row


def run(device: str) -> Iterator[Row]:
    yield from fit_rows("fox", ("--downscale", "2"), {60: 29.0, 120: 30.5, 300: 32.0})
