"""One step of a fit as the user has it (march, autograd, losses, Adam, occupancy update) against torch references.

Both fit the same scene from the same state with the same rays; the reference's ops are the readable ones under
``tests/reference`` in float32, with torch's own Adam. The occupancy update is counted at its share of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from polyfield.apps.fit import Budget, Report, fit
from polyfield.apps.recipes import ngp
from polyfield.cuda import native
from polyfield.datasets.scene import open_scene

from .. import reference_ops
from ..measure import Row, blocks
from ..scenes import data_root

WARM_STEPS = 400


def run(device: str) -> Iterator[Row]:
    root = data_root()
    scene = open_scene(root / "fox", downscale=2) if root else open_scene("demo")
    for bfloat16 in (False, True) if native.has_bfloat16() else (False,):
        config = replace(ngp.Config(), field=replace(ngp.Config().field, bfloat16=bfloat16))
        job = config.build(scene)
        fit(job, Budget(steps=WARM_STEPS), config.after_step())
        job.renderer.train()
        rays = job.batches.rays
        samples = []

        def step(job=job, config=config, rays=rays, samples=samples):
            job.batches.rays = rays
            report = one_step(job, config)
            samples.append(len(report.step.render.samples))

        reference = reference_ops.job_like(job, config, scene)

        def slow(reference=reference, config=config, rays=rays):
            reference.batches.rays = rays
            with reference_ops.in_place_of_ours():
                one_step(reference, config)

        ours, theirs = blocks(step, slow, budget=0, least=17)  # as many steps of both
        kind = "bfloat16" if bfloat16 else "float32"
        count = sum(samples) / len(samples)
        name = f"fit step, {scene.name}, {kind}, {rays} rays, {count / 1e3:.0f}k samples"
        yield Row(name, theirs / ours, ours * 1e3, "ms", "torch references, float32", "18x" if bfloat16 else "12x")


def one_step(job, config) -> Report:
    budget = Budget(steps=10**9)
    reports: list[Report] = []
    start = job.step
    fit(job, budget, [*config.after_step(), reports.append], stop=lambda: job.step > start)
    job.renderer.train()
    return reports[-1]
