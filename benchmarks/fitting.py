"""Whole fits through the command line, each in a process of its own: held-out PSNR, SSIM, wall time, peak memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from polyfield.apps.fit import Budget, Job, fit
from polyfield.apps.images import photograph
from polyfield.datasets.scene import Scene, open_scene
from polyfield.geometry import Camera
from polyfield.renderers.metrics import psnr

from .measure import Row
from .scenes import data_root


def polyfield(*arguments: str) -> str:
    """Output of one command. Raises CalledProcessError, after printing what it said, if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "polyfield.apps", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout


@dataclass(frozen=True)
class Fitted:
    """What is left of a fit: its metrics.json, peak memory in GB, and what the log said of the last step."""

    metrics: dict[str, Any]
    memory: float | None
    last: dict[str, Any]

    @property
    def views(self) -> str:
        """How many pictures were compared, of which size."""
        m = self.metrics
        return f"{len(m['views'])} held-out views at {m['width']}x{m['height']}"


def fit_and_evaluate(recipe: str, scene: str, limit: tuple[str, ...], options: tuple[str, ...]) -> Fitted | None:
    """Fit a research scene and measure it; says so and returns None if the scenes are not here."""
    root = data_root()
    if root is None:
        print(f"fit {scene}: the research scenes are not here; name their folder in POLYFIELD_DATA")
        return None
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        said = polyfield("fit", recipe, str(root / scene), "--run", str(run), "--device", "cpu", *limit, *options)
        polyfield("evaluate", str(run), "--device", "cpu")
        metrics = json.loads((run / "metrics.json").read_text())
        last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    memory = re.search(r"peak memory ([\d.]+) GB", said)
    return Fitted(metrics, float(memory[1]) if memory else None, last)


def research_scene(name: str, downscale: int) -> Scene | None:
    """One of the research scenes; says so and returns None if they are not here."""
    root = data_root()
    if root is None:
        print(f"{name}: the research scenes are not here; name their folder in POLYFIELD_DATA")
        return None
    return open_scene(str(root / name), downscale=downscale)


def fitted(config: Any, scene: Scene, steps: int, device: str) -> Job:
    """A fit in this process, of a scene that the recipe has prepared: for photographs that are altered in memory."""
    budget = Budget(steps=steps)
    job: Job = config.build(scene, 0, torch.device(device), budget)
    fit(job, budget, config.after_step())
    kept = job.scene_tensors()
    job.field.load_state_dict({k.removeprefix("field."): v for k, v in kept.items() if k.startswith("field.")})
    return job


@torch.no_grad()
def held_out_psnr(job: Job, scene: Scene, seen: Callable[[Camera], Camera] = lambda camera: camera) -> float:
    """Mean over held-out photographs, dB, from where ``seen`` puts their cameras."""
    found = []
    for frame in scene.test:
        colors = job.renderer.render(job.field, seen(frame.camera)).pixels.colors
        found.append(psnr(colors, photograph(frame, job.renderer), frame.mask))
    return sum(found) / len(found)


def demo_surface(recipe: str, options: dict[str, Any], resolution: int = 192, scene: str = "demo") -> dict[str, Any]:
    """metrics.json of a fit of a distance to a built-in scene, its mesh beside the true surface."""
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        options = options | {"preview-every": 0, "device": "cpu"}
        polyfield("fit", recipe, scene, "--run", run, *(f"--{name}={value}" for name, value in options.items()))
        polyfield("extract", run, "--output", str(Path(run) / "mesh.ply"), "--resolution", str(resolution))
        polyfield("evaluate", run, "--mesh", "truth")
        return json.loads((Path(run) / "metrics.json").read_text())


def fit_rows(scene: str, options: tuple[str, ...], aims: dict[int, float], recipe: str = "ngp") -> Iterator[Row]:
    """Fit a research scene for each number of seconds in ``aims``, whose values are the PSNR aimed at."""
    for seconds, aim in aims.items():
        fitted = fit_and_evaluate(recipe, scene, ("--seconds", str(seconds)), options)
        if fitted is None:
            return
        metrics = fitted.metrics
        name = f"fit {recipe} {scene} {metrics['width']}x{metrics['height']} {' '.join(options)}, {seconds} s"
        yield Row(f"{name}: PSNR", None, metrics["psnr"], "dB", fitted.views, f"{aim} dB")
        yield Row(f"{name}: SSIM", None, metrics["ssim"], "", "")
        yield Row(f"{name}: wall time", None, metrics["fit_seconds"], "s", f"{metrics['fit_steps']} steps")
        if fitted.memory:
            yield Row(f"{name}: peak memory", None, fitted.memory, "GB", "", "2 GB")


def quality_rows(scene: str, options: tuple[str, ...], steps: int, recipe: str) -> Iterator[Row]:
    """What a fit of Gaussians reaches in a number of steps, however long they take, beside how many there are."""
    fitted = fit_and_evaluate(recipe, scene, ("--steps", str(steps)), options)
    if fitted is None:
        return
    name = f"{recipe} {scene}, {steps} steps"
    yield Row(f"{name}: PSNR", None, fitted.metrics["psnr"], "dB", fitted.views)
    yield Row(f"{name}: SSIM", None, fitted.metrics["ssim"], "", fitted.views)
    yield Row(f"{name}: Gaussians", None, fitted.last["gaussians"], "", "")
    if fitted.memory:
        yield Row(f"{name}: peak memory", None, fitted.memory, "GB", "")
