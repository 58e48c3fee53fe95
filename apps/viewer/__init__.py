"""The scene in a browser: a page that paints it live, on its own or while it is being fitted.

``view_run`` opens a run's page, ``FitView`` one that shares a field with a fit. Pictures are painted by polyfield's own
renderer in one thread (``loop.py``), coarse while a camera moves and sharper while it rests (``pace.py``); ``turns.py``
keeps a fit and the painting out of each other's way.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..run import home_view
from ..tracing import drawn, tracer_for
from .address import check_address
from .painting import Stage
from .photos import Photos
from .progress import FitProgress
from .server import Viewer
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...datasets.scene import Scene
    from ..fit import Job, Report
    from ..run import Run

__all__ = ["FitView", "Viewer", "check_address", "view_run"]


def view_run(run: Run, *, host: str = "127.0.0.1", port: int = 8080, mesh: Path | None = None) -> Viewer:
    """A page for a fitted run: ``with view_run(run) as viewer: viewer.wait()``.

    Raises UserError if the port is in use or the mesh is not there.
    """
    facts, run = run.asked.facts, drawn(run)
    stage = Stage(run.field, run.renderer, facts.near)
    return Viewer(
        stage,
        name=facts.name,
        scene_to_world=facts.matrix,
        photos=Photos(run.scene),
        run=run.folder,
        mesh=mesh,
        mesh_up=run.mesh_up,
        up=facts.up,
        home=None if facts.home is None else torch.tensor(facts.home),
        host=host,
        port=port,
    )


class FitView:
    """A page for a fit under way: a context manager, and a callable for after each step."""

    def __init__(self, job: Job, scene: Scene, folder: Path, *, host: str = "127.0.0.1", port: int = 8080) -> None:
        self.turns = Turns(fitting=True)
        self.stop: Callable[[], bool] = lambda: False
        up = tuple(scene.up.tolist())
        renderer = job.renderer if scene.frames else tracer_for(job.field, job.renderer, up)
        self.viewer = Viewer(
            Stage(job.field, renderer, scene.near),
            name=scene.name,
            scene_to_world=scene.scene_to_world,
            photos=Photos(lambda: scene),
            run=folder,
            up=up,
            home=home_view(scene) if scene.frames else None,
            host=host,
            port=port,
            turns=self.turns,
            step=lambda: job.step,
        )
        self.progress = FitProgress(self.viewer.server, self.turns)

    def __enter__(self) -> FitView:
        self.viewer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.viewer.stop()

    def __call__(self, report: Report) -> None:
        """After a step: progress, then the viewer's turn. Time spent paused is not counted as fitting."""
        self.progress(report)
        report.job.idle += self.turns.after_step(self.stop)

    def finish(self) -> None:
        """The fit is over: the page sharpens from now on as for a finished run."""
        self.progress.finish("Fitted")
        self.turns.finish()
        self.viewer.loop.wake()

    def stay(self) -> None:
        """The fit is over: keep the page until Ctrl-C."""
        self.finish()
        print(f"Fitted; the page stays open at {self.viewer.url} (Ctrl-C ends it)", flush=True)
        self.viewer.wait()
