"""What a fit does beside fitting: progress on the terminal, a log, preview pictures, checkpoints.

Each is a callable that ``fit`` calls with a ``Report`` after every step, and that decides for itself when to act.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch

from ..datasets.scene import Frame, Scene
from ..geometry import Points
from ..renderers.losses.photometric import photometric
from .checkpoint import load_newest, save_checkpoint
from .fit import Budget, Job, Report
from .images import save_png


def peak_memory_bytes() -> int:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def batch_psnr(report: Report) -> float | None:
    """PSNR of the step's own pixels, dB; None where there are none."""
    if report.step.render.pixels.colors is None:
        return None
    with torch.no_grad():
        colors = report.step.render.pixels.colors
        error = float(photometric(colors, report.step.target_colors, report.step.target.masks))
    return -10 * math.log10(max(error, 1e-10))


class Rates:
    """Rays and samples between two reports; points of a shape are both."""

    def __init__(self) -> None:
        self.rays = self.samples = 0
        self.since = time.perf_counter()

    def add(self, report: Report) -> None:
        samples: Sized | None = report.step.render.samples
        target, view = report.step.target.colors, report.step.view
        if isinstance(view, Points):
            samples = view
            self.rays += len(view)
        self.rays += 0 if target is None else target.numel() // 3
        self.samples += 0 if samples is None else len(samples)

    def seconds(self) -> float:
        return max(time.perf_counter() - self.since, 1e-9)


def contents(scene: Scene) -> str:
    """What there is to fit, for people."""
    if scene.frames:
        views = f"{len(scene.train)} training views, {len(scene.test)} held out"
        return f"{views}, {scene.memory_bytes / 2**20:.0f} MB of pixels"
    if scene.mesh is not None:
        return f"{len(scene.mesh.faces)} triangles"
    return f"{0 if scene.points is None else len(scene.points)} points"


class Progress:
    """One line on the terminal that is written over; in a file or pipe, a line every ten seconds."""

    def __init__(self, scene: Scene, budget: Budget, place: str, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.every = 10.0 if quiet else 0.5
        self.quiet, self.budget, self.scene, self.place = quiet, budget, scene, place
        self.console = Console(soft_wrap=True)
        self.bar = Progress(
            BarColumn(bar_width=20), TextColumn("{task.description}"), console=self.console, disable=quiet
        )
        self.task = self.bar.add_task("starting", total=1.0)
        self.rates = Rates()

    def __enter__(self) -> Progress:
        self.console.print(f"{self.scene.name}: {contents(self.scene)}, {self.place}")
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, report: Report) -> None:
        self.rates.add(report)
        seconds = self.rates.seconds()
        if seconds < self.every and report.spent < 1:
            return
        r, job = self.rates, report.job
        left = job.elapsed * (1 / max(report.spent, 1e-6) - 1)
        line = (
            f"step {job.step}  loss {sum(report.terms.values()):.5f}  {self._work(report, r.rays / seconds)}"
            f"{self._size(job, seconds)}  "
            f"{peak_memory_bytes() / 2**30:.2f} GB  {left:.0f} s left"
        )
        if self.quiet:
            self.console.print(line)
        else:
            self.bar.update(self.task, completed=report.spent, description=line)
        self.rates = Rates()

    @staticmethod
    def _work(report: Report, rays: float) -> str:
        """How well pixels are met, and how many there are in a second."""
        psnr = batch_psnr(report)
        return "" if psnr is None else f"PSNR {psnr:.2f} dB  {rays / 1e3:.0f}k rays/s  "

    def _size(self, job: Job, seconds: float) -> str:
        """What a step works on."""
        if isinstance(job.field, Sized):
            return f"{len(job.field)} Gaussians"
        return f"{self.rates.samples / seconds / 1e6:.2f}M samples/s"


class Log:
    """``log.jsonl``: one object per half second of fitting."""

    def __init__(self, folder: Path, every: float = 0.5) -> None:
        self.path, self.every, self.rates = folder / "log.jsonl", every, Rates()

    def __call__(self, report: Report) -> None:
        self.rates.add(report)
        seconds = self.rates.seconds()
        if seconds < self.every:
            return
        row = {
            "step": report.job.step,
            "elapsed": round(report.job.elapsed, 3),
            **({} if (psnr := batch_psnr(report)) is None else {"psnr": round(psnr, 3)}),
            "rays_per_second": round(self.rates.rays / seconds),
            "samples_per_second": round(self.rates.samples / seconds),
            **({"gaussians": len(report.job.field)} if isinstance(report.job.field, Sized) else {}),
            **{f"loss_{name}": value for name, value in report.terms.items()},
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rates = Rates()


class Previews:
    """``previews/``: a held-out view as rendered so far, small enough to cost little."""

    def __init__(self, folder: Path, frame: Frame, every: float, pixels: int = 160 * 160) -> None:
        self.folder, self.every, self.last = folder / "previews", every, 0.0
        shrink = max(1.0, math.sqrt(frame.camera.width * frame.camera.height / pixels))
        self.camera = frame.camera.resized(
            max(1, round(frame.camera.width / shrink)), max(1, round(frame.camera.height / shrink))
        )

    def __call__(self, report: Report) -> None:
        if report.job.elapsed - self.last < self.every:
            return
        self.last = report.job.elapsed
        self.folder.mkdir(parents=True, exist_ok=True)
        colors = report.job.renderer.render(report.job.field, self.camera).pixels.colors  # type: ignore[arg-type]
        assert colors is not None
        save_png(self.folder / f"step_{report.job.step:06d}.png", colors)


class Checkpoints:
    """``checkpoints/``: the state of the fit, every so many seconds."""

    def __init__(self, folder: Path, every: float) -> None:
        self.folder, self.every, self.last = folder / "checkpoints", every, 0.0

    def __call__(self, report: Report) -> None:
        if report.job.elapsed - self.last >= self.every:
            self.save(report.job)
            self.last = report.job.elapsed

    def save(self, job: Job) -> None:
        """Write a checkpoint now, unless a parameter is not finite."""
        if all(bool(p.isfinite().all()) for p in job.field.parameters()):
            save_checkpoint(self.folder, job.step, job.tensors(), job.metadata())

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest readable checkpoint, if there is one: for ``Job.restore``."""
        found = load_newest(self.folder)
        self.last = 0.0 if found is None else float(found[1]["elapsed"])
        return found
