"""NeuS on the built-in scene with few samples per step, with S3IM beside the photometric loss and without."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from ..fitting import demo_surface
from ..measure import Row

WEIGHTS, SEEDS = (0.0, 0.01, 0.1), (0, 1)
STEPS, SAMPLES, DOWNSCALE = 1500, 2048, 2


def scores(weight: float, seed: int) -> tuple[float, float, float]:
    """PSNR of the held-out views, Chamfer distance (% of the diagonal) and normal consistency of one fit's mesh."""
    options = {"steps": STEPS, "samples-per-step": SAMPLES, "downscale": DOWNSCALE, "s3im.weight": weight}
    metrics = demo_surface("neus", options | {"seed": seed, "first.grid-steps": 200})
    mesh = metrics["mesh"]
    return metrics["psnr"], mesh["chamfer_percent"], mesh["normal_consistency"]


def run(device: str) -> Iterator[Row]:
    for weight in WEIGHTS:
        found = [scores(weight, seed) for seed in SEEDS]
        name = f"fit neus demo, {STEPS} steps of {SAMPLES} samples, S3IM weight {weight:g}"
        rows = zip(("PSNR", "Chamfer distance", "normal consistency"), ("dB", "% of the diagonal", ""), strict=True)
        for (what, unit), values in zip(rows, zip(*found, strict=True), strict=True):
            spread = f"mean of {len(SEEDS)} seeds, {min(values):.4g} to {max(values):.4g}"
            yield Row(f"{name}: {what}", None, statistics.mean(values), unit, spread)
