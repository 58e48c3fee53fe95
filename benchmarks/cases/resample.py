"""Distances on the built-in scene with short and long steps of marching, and with finer intervals near surfaces."""

from __future__ import annotations

from collections.abc import Iterator

from ..fitting import demo_surface
from ..measure import Row

RECIPES = ("neus", "volsdf")
VARIANTS = ((1024, 0), (256, 0), (256, 16), (1024, 16))  # steps along the diagonal, places per ray
STEPS, DOWNSCALE = 1500, 2


def run(device: str) -> Iterator[Row]:
    for recipe in RECIPES:
        for along, places in VARIANTS:
            options = {"steps": STEPS, "downscale": DOWNSCALE, "march.steps-per-diagonal": along, "resample": places}
            metrics = demo_surface(recipe, options)
            name = f"fit {recipe} demo, {STEPS} steps, {along} along the diagonal, --resample {places}"
            mesh = metrics["mesh"]
            yield Row(f"{name}: PSNR", None, metrics["psnr"], "dB", "")
            yield Row(f"{name}: Chamfer distance", None, mesh["chamfer_percent"], "% of the diagonal", "")
            yield Row(f"{name}: normal consistency", None, mesh["normal_consistency"], "", "")
            yield Row(f"{name}: wall time", None, metrics["fit_seconds"], "s", "")
