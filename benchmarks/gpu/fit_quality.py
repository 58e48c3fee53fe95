"""How long a fit takes to 30, 31 and 32 dB on held-out views: the shortest budget, of a ladder, that gets there.

A fit's learning rate follows its budget, so each rung is a whole fit. Reading the photographs is not counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from polyfield.apps.fit import Budget, Job, fit
from polyfield.apps.images import photograph
from polyfield.apps.recipes import ngp
from polyfield.datasets.scene import Scene, open_scene
from polyfield.renderers.metrics import psnr

from ..measure import Row
from ..scenes import data_root

LADDER = (3, 6, 10, 20, 40)  # seconds
WANTED = (30, 31, 32)  # dB
SCENES = (("fox", 1), ("lego", 1))  # and how much their photographs are shrunk


def run(device: str) -> Iterator[Row]:
    root = data_root()
    if root is None:
        yield Row("time to 30, 31, 32 dB", None, None, "s", "not measured: no scenes; name them in POLYFIELD_DATA")
        return
    for name, downscale in SCENES:
        yield from _ladder(open_scene(root / name, downscale=downscale), torch.device(device))


def _ladder(scene: Scene, device: torch.device) -> Iterator[Row]:
    camera = scene.test[0].camera
    title, left, found = f"fit {scene.name} {camera.width}x{camera.height}", list(WANTED), 0.0
    warm = ngp.Config().build(scene, device=device)
    fit(warm, Budget(steps=50), ngp.Config().after_step())  # kernels are compiled
    for seconds in LADDER:
        job = ngp.Config().build(scene, device=device)
        fit(job, Budget(seconds=seconds), ngp.Config().after_step())
        found = _quality(job, scene)
        yield Row(
            f"{title}, {seconds} s: PSNR", None, found, "dB", f"{len(scene.test)} held-out views, {job.step} steps"
        )
        while left and found >= left[0]:
            aim = "10 s" if (scene.name, left[0]) == ("fox", 31) else ""
            yield Row(f"{title}: time to {left.pop(0)} dB", None, job.elapsed, "s", f"{found:.2f} dB", aim)
        if not left:
            return
    for wanted in left:
        yield Row(
            f"{title}: time to {wanted} dB", None, None, "s", f"not reached within {LADDER[-1]} s ({found:.2f} dB)"
        )


def _quality(job: Job, scene: Scene) -> float:
    """Mean PSNR over the held-out views."""
    scores = []
    for frame in scene.test:
        colors = job.renderer.render(job.field, frame.camera).pixels.colors  # type: ignore[arg-type]
        target = photograph(frame, job.renderer)
        scores.append(psnr(colors, target, None if frame.mask is None else frame.mask.to(job.device)))
    return statistics.mean(scores)
