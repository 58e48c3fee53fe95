"""Pictures of runs by sphere tracing: of shapes, which nothing else draws, and of other distances if asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..fields.protocols import Distance
from ..geometry import Camera, transforms
from ..renderers.points import PointRenderer
from ..renderers.shading import Lighting
from ..renderers.sphere_tracing import SphereTracer, TraceConfig
from .errors import UserError
from .images import depth_picture, normal_picture, save_png
from .run import Run

PLAIN = Lighting()
SMOOTH = TraceConfig(normal_step=3e-3)
RADIUS = 3.6  # of the orbit around a shape, scene units
FOV = math.radians(34)  # which shows the ball around it
ELEVATION = 0.35
SIDE = 800  # pixels of a picture


def tracer_for(field: nn.Module, renderer: Any, up: tuple[float, ...], lighting: Lighting = PLAIN) -> SphereTracer:
    """What draws a distance by its surface, where the fit's own renderer is, and over its background if it has one."""
    occupancy, background = (getattr(renderer, name, None) for name in ("occupancy", "background"))
    tracer = SphereTracer(SMOOTH, lighting, background=background, occupancy=occupancy, up=up)  # type: ignore[arg-type]
    return tracer.to(renderer.device).eval()


def drawn(run: Run, *, trace: bool = False, lighting: Lighting = PLAIN) -> Run:
    """The run with a renderer that makes pictures: a sphere tracer for shapes, and for what else is to be traced.

    Raises UserError for fields that are no distance.
    """
    if not (run.of_shape or trace) or isinstance(run.renderer, SphereTracer):
        return run
    if not isinstance(run.field, Distance):
        raise UserError(
            f"--renderer trace: expected a run of a distance (neus, volsdf, udf or shape), got {run.asked.recipe}; "
            "drop it"
        )
    return replace(run, renderer=tracer_for(run.field, run.renderer, run.asked.facts.up, lighting))


def orbit_around(up: Tensor, frames: int, side: int = SIDE, elevation: float = ELEVATION) -> list[Camera]:
    """Once around the ball about the region of interest, in the scene's frame; square pictures."""
    poses = transforms.orbit(torch.zeros(3), RADIUS, frames, elevation, up.float())
    return [Camera.perspective(side, side, FOV, pose) for pose in poses]


@dataclass
class ShapePreviews:
    """``previews/``: the shape as fitted so far; and when all is done ``preview.png``: shaded, normals and depth."""

    folder: Path
    field: nn.Module
    renderer: PointRenderer
    up: tuple[float, ...]
    every: float
    last: float = 0.0

    def __call__(self, report: Any) -> None:
        """After a step: every so many seconds, a small picture. Its time does not count as fitting."""
        if report.job.elapsed - self.last < self.every:
            return
        self.last = report.job.elapsed
        self.write(self.folder / "previews" / f"step_{report.job.step:06d}.png", views=2, side=160)

    def write(self, path: Path, views: int = 4, side: int = 320) -> None:
        """Rows of shaded, normals and depth; a column for each view."""
        tracer = tracer_for(self.field, self.renderer, self.up)
        columns = []
        for camera in orbit_around(torch.tensor(self.up), views, side):
            pixels = tracer.render(self.field, camera).pixels  # type: ignore[arg-type]
            assert pixels.colors is not None and pixels.normals is not None
            assert pixels.depths is not None and pixels.alphas is not None
            shown = (pixels.colors, normal_picture(pixels.normals, pixels.alphas))
            columns.append(torch.cat([*shown, depth_picture(pixels.depths, pixels.alphas)]))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(path, torch.cat(columns, 1))
