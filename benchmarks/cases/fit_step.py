"""One step of a fit as the user has it (march, autograd, losses, Adam, occupancy update) against torch references.

Both go on with the same fit from the same state, with the same number of rays; the reference's ops are the readable
ones under ``tests/reference`` in float32, with torch's own Adam. Steps are timed in groups of 16, of which one updates
the occupancy grid, after a group that is not timed.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

from polyfield.apps.fit import Budget, Job, Report, fit
from polyfield.apps.recipes import ngp
from polyfield.cuda import native
from polyfield.datasets.scene import open_scene

from .. import reference_ops
from ..measure import Row
from ..scenes import data_root

WARM_STEPS, GROUP, ROUNDS = 400, 16, 3


def run(device: str) -> Iterator[Row]:
    root = data_root()
    scene = open_scene(root / "fox", downscale=2) if root else open_scene("demo")
    for bfloat16 in (False, True) if native.has_bfloat16() else (False,):
        config = replace(ngp.Config(), field=replace(ngp.Config().field, bfloat16=bfloat16))
        job = config.build(scene)
        fit(job, Budget(steps=WARM_STEPS), config.after_step())
        state, metadata, rays = job.tensors(), {**job.metadata(), "step": job.step}, job.batches.rays

        def resumed(config=config, state=state, metadata=metadata) -> Job:
            twin = config.build(scene)
            twin.restore(copy.deepcopy(state), metadata)
            return twin

        mine, theirs = [], []
        for _ in range(ROUNDS):
            mine.append(timed(resumed(), config, rays))
            with reference_ops.in_place_of_ours():
                theirs.append(timed(reference_ops.with_torch_adam(resumed()), config, rays))
        (step, samples), (reference, others) = (map(statistics.median, zip(*x, strict=True)) for x in (mine, theirs))
        kind = "bfloat16" if bfloat16 else "float32"
        name = f"fit step, {scene.name}, {kind}, {rays} rays, {samples / 1e3:.0f}k samples"
        against = f"torch references, float32, {others / 1e3:.0f}k samples"
        yield Row(name, reference / step, step * 1e3, "ms", against, "18x" if bfloat16 else "12x")


def timed(job: Job, config, rays: int) -> tuple[float, float]:
    """Seconds and samples of a step."""
    steps(job, config, rays, GROUP)
    start = time.perf_counter()
    reports = steps(job, config, rays, 2 * GROUP)
    spent = time.perf_counter() - start
    return spent / len(reports), statistics.mean(len(report.step.render.samples) for report in reports)


def steps(job, config, rays: int, count: int = 1) -> list[Report]:
    """So many steps of a fit, each of so many rays."""
    reports: list[Report] = []

    def keep(report: Report) -> None:
        job.batches.rays = rays
        reports.append(report)

    job.batches.rays, until = rays, job.step + count
    fit(job, Budget(steps=10**9), [*config.after_step(), keep], stop=lambda: job.step >= until)
    return reports
