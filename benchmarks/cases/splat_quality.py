"""Gaussians after 7,000 steps, whatever the time: held-out PSNR and SSIM beside their number and peak memory."""

from __future__ import annotations

from collections.abc import Iterator

from ..fitting import quality_rows
from ..measure import Row

STEPS = 7000


def run(device: str) -> Iterator[Row]:
    for scene, options in (("lego", ()), ("fox", ("--downscale", "2")), ("fern_llff", ())):
        yield from quality_rows(scene, options, STEPS, "splat")
