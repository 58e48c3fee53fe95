"""The built-in scene, whose truth is known: PSNR after a fit, and how far its mesh is from the true surface."""

from __future__ import annotations

from collections.abc import Iterator

from ..fitting import demo_surface
from ..measure import Row

FITS = {"ngp": (60, "", ""), "neus": (300, "0.3 %", "0.97")}  # seconds; aims of distance and of normals


def run(device: str) -> Iterator[Row]:
    for recipe, (seconds, near, aligned) in FITS.items():
        metrics = demo_surface(recipe, {"seconds": seconds}, resolution=384)
        name, mesh = f"fit {recipe} demo, {seconds} s", metrics["mesh"]
        yield Row(f"{name}: PSNR", None, metrics["psnr"], "dB", f"{len(metrics['views'])} held-out views")
        distance, reference = mesh["chamfer_percent"], "true surface, both ways"
        yield Row(f"{name}: Chamfer distance of the mesh", None, distance, "% of the diagonal", reference, near)
        yield Row(f"{name}: normal consistency", None, mesh["normal_consistency"], "", "true surface", aligned)
