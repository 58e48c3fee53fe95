"""One step of a fit as the user has it, with 2^18 samples: by the clock, all launches and waits included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from polyfield.apps.fit import Budget, fit
from polyfield.apps.recipes import ngp
from polyfield.datasets.scene import open_scene

from ..measure import Row
from ..scenes import data_root

WARM, TIMED = 600, 64  # steps; the latter in groups of 16, of which one updates the occupancy grid


def run(device: str) -> Iterator[Row]:
    root = data_root()
    scene = open_scene(root / "fox", downscale=2) if root else open_scene("demo")
    config = ngp.Config(samples_per_step=1 << 18)
    job = config.build(scene, device=torch.device(device))
    samples, groups = [], []
    fit(job, Budget(steps=10**9), config.after_step(), stop=lambda: job.step >= WARM)
    note = lambda report: samples.append(len(report.step.render.samples))  # noqa: E731
    for _ in range(TIMED // 16):
        until = job.step + 16
        torch.cuda.synchronize()
        start = time.perf_counter()
        fit(job, Budget(steps=10**9), [*config.after_step(), note], stop=lambda until=until: job.step >= until)
        torch.cuda.synchronize()
        groups.append((time.perf_counter() - start) / 16)
    name = f"fit step, {scene.name}, {job.batches.rays} rays, {statistics.mean(samples) / 1e3:.0f}k samples"
    yield Row(name, None, statistics.median(groups) * 1e3, "ms", "by the clock, occupancy update included", "4 ms")
