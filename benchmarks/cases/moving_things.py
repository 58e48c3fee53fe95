"""Fox with a ball pasted somewhere into every third training photograph, with and without robust masks.

Balls have random colours and places, a quarter of the photograph's width as radius, and light from above. Held-out
photographs show none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from polyfield.apps.recipes import ngp, splat
from polyfield.datasets.scene import Scene
from polyfield.renderers.robust import RobustConfig
from torch import Tensor

from ..fitting import fitted, held_out_psnr, research_scene
from ..measure import Row

EVERY, RADIUS, OUTLIERS, DOWNSCALE = 3, 0.25, 0.05, 4
RECIPES: dict[str, tuple[Any, int]] = {"ngp": (ngp, 1000), "splat": (splat, 2000)}  # and steps


def run(device: str) -> Iterator[Row]:
    clean = research_scene("fox", DOWNSCALE)
    if clean is None:
        return
    moved = with_balls(clean)
    for name, (recipe, steps) in RECIPES.items():
        for what, scene, outliers in (("no balls", clean, 0.0), ("balls", moved, 0.0), ("balls", moved, OUTLIERS)):
            config = replace(recipe.Config(), robust=RobustConfig(outliers=outliers))
            found = held_out(config, scene, steps, device)
            option = f", --robust.outliers {outliers:g}" if outliers else ""
            yield Row(f"{name} {clean.name}, {what}, {steps} steps{option}: PSNR", None, found, "dB", "held-out views")


def with_balls(scene: Scene, seed: int = 0) -> Scene:
    """A ball in every third training photograph."""
    g = torch.Generator().manual_seed(seed)
    names, frames = {f.name for f in scene.train[::EVERY]}, []
    for frame in scene.frames:
        place, color = torch.rand(2, generator=g), torch.rand(3, generator=g)
        frames.append(replace(frame, colors=with_ball(frame.colors, place, color)) if frame.name in names else frame)
    return scene.with_frames(tuple(frames))


def with_ball(photo: Tensor, place: Tensor, color: Tensor) -> Tensor:
    """photo (H, W, 3) uint8 with a ball at place (2,) in [0, 1]^2, all of it in the picture."""
    height, width = photo.shape[:2]
    radius = RADIUS * width
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x, y = ((v - radius - p * (n - 2 * radius)) / radius for v, p, n in ((x, place[0], width), (y, place[1], height)))
    outward = (1 - x * x - y * y).clamp(min=0).sqrt()
    shade = 0.3 + 0.7 * ((outward - y) / math.sqrt(2)).clamp(min=0)
    ball = (shade[..., None] * color * 255).round().byte()
    return torch.where((x * x + y * y < 1)[..., None], ball, photo)


def held_out(config: Any, scene: Scene, steps: int, device: str) -> float:
    """Mean PSNR of held-out photographs, dB, after a fit."""
    scene = config.prepare(scene)
    return held_out_psnr(fitted(config, scene, steps, device), scene)
