"""lego (NeRF synthetic) at 400 x 400 over white, its own test split: PSNR after 120 and 300 s."""

from __future__ import annotations

from collections.abc import Iterator

from ..fitting import fit_rows
from ..measure import Row


def run(device: str) -> Iterator[Row]:
    yield from fit_rows("lego", (), {120: 31.0, 300: 33.0})
