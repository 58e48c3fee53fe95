"""Fox with every training camera turned by 2 degrees and moved by 2 % of its distance, with and without refinement.

What is left of it, after the similarity that brings the cameras nearest to the truth; and the held-out photographs,
seen from where that similarity puts their cameras.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from polyfield.apps.fit import Job
from polyfield.apps.recipes import ngp, splat
from polyfield.datasets.scene import Scene
from polyfield.geometry import Camera
from polyfield.renderers.pose_deltas import PoseConfig

from ..fitting import fitted, held_out_psnr, research_scene
from ..measure import Row
from ..poses import misplaced, perturbed

DEGREES, SHARE, DOWNSCALE = 2.0, 0.02, 4
POSES = PoseConfig(learning_rate=2e-3)
RECIPES: dict[str, tuple[Any, int]] = {"ngp": (ngp, 3000), "splat": (splat, 3000)}  # and steps


def run(device: str) -> Iterator[Row]:
    truth = research_scene("fox", DOWNSCALE)
    if truth is None:
        return
    for name, (recipe, steps) in RECIPES.items():
        for refined in (False, True):
            yield from rows(name, replace(recipe.Config(), refine_poses=refined, poses=POSES), truth, steps, device)


def rows(name: str, config: Any, truth: Scene, steps: int, device: str) -> Iterator[Row]:
    """A fit of perturbed cameras: what is left of the error, and held-out PSNR."""
    truth = config.prepare(truth)
    scene = perturbed(truth, DEGREES, SHARE)
    job = fitted(config, scene, steps, device)
    off = misplaced(_cameras(job, scene), [f.camera for f in truth.train])
    option = f"--refine-poses --poses.learning-rate {POSES.learning_rate:g}" if config.refine_poses else "as given"
    what = f"{name} {scene.name}, {DEGREES:g} degrees and {SHARE:.0%} off, {steps} steps, {option}"
    size = f"{truth.test[0].camera.width}x{truth.test[0].camera.height}"
    yield Row(f"{what}: rotation left", None, off.degrees, "degrees", "mean over training views, aligned")
    yield Row(f"{what}: distance left", None, 100 * off.share, "%", "of the mean distance, aligned")
    found = held_out_psnr(job, truth, off.as_seen)
    yield Row(f"{what}: PSNR", None, found, "dB", f"{len(truth.test)} held-out views at {size}")


@torch.no_grad()
def _cameras(job: Job, scene: Scene) -> list[Camera]:
    if job.poses is None:
        return [f.camera for f in scene.train]
    return [job.poses(f.camera, torch.tensor(i)) for i, f in enumerate(scene.train)]
