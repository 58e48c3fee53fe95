"""A step of ``fit neus`` by the kind of gradients: differences within patches, and finite ones, against analytic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from polyfield.apps.fit import Budget, fit
from polyfield.apps.recipes import neus
from polyfield.datasets.scene import open_scene
from polyfield.fields.gradient_kinds import Gradients

from ..measure import Row, pair
from .fit_step import steps as take_steps

WARM_STEPS, DOWNSCALE = 300, 1


def run(device: str) -> Iterator[Row]:
    scene = open_scene("demo", downscale=DOWNSCALE)
    steps = {}
    for kind in Gradients:
        config = neus.Config()
        config = replace(config, field=replace(config.field, gradients=kind))
        budget = Budget(steps=WARM_STEPS)
        job = config.build(scene, budget=budget)
        fit(job, budget, config.after_step())
        samples: list[int] = []

        def step(job=job, config=config, rays=job.batches.rays, samples=samples):
            samples.append(len(take_steps(job, config, rays)[0].step.render.samples))

        steps[kind] = step, samples
    analytic, of_analytic = steps[Gradients.ANALYTIC]
    for kind, aim in ((Gradients.DIRECTIONAL, "1.5x"), (Gradients.FINITE, "")):
        step, samples = steps[kind]
        ours, exact = pair(step, analytic, budget=20, least=17, warmup=2)
        mean, other = (sum(s) / len(s) / 1e3 for s in (samples, of_analytic))
        name = f"fit neus demo, one step, {kind.value} gradients, {mean:.1f}k samples"
        yield Row(
            name, exact / ours * mean / other, ours * 1e3, "ms", f"analytic, {other:.1f}k samples; per sample", aim
        )
