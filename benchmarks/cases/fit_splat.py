"""Gaussians, from photographs to held-out PSNR, the first hash-grid fit included: lego, fox and fern."""

from __future__ import annotations

from collections.abc import Iterator

from ..fitting import fit_rows
from ..measure import Row


def run(device: str) -> Iterator[Row]:
    yield from fit_rows("lego", (), {120: 32.0, 300: 34.0}, "splat")
    yield from fit_rows("fox", ("--downscale", "2"), {120: 31.5, 300: 33.0}, "splat")
    yield from fit_rows("fern_llff", (), {300: 24.0}, "splat")
