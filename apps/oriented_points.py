"""Oriented points of a run: where rays of the training views meet the surface, its normals there, and its colours.

Depths are those at which half of the light is gone, which, unlike mean ones, do not lie between two surfaces; of a
distance, where rays meet its zero. Normals of a distance are differences of distances, those of surfels the discs';
others are those of planes through neighbouring points, since gradients of a hash grid's density and the flattest axes
of Gaussians are noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..fields.protocols import Distance, Primitives
from ..geometry import Aabb, Camera, Pixels, Points
from ..geometry.open_cloud_distance import estimate_normals
from ..renderers.median_depths import median_depths
from ..renderers.surfels import SurfelRenderer
from .errors import UserError
from .run import Run
from .tracing import tracer_for

CHUNK = 65_536  # rays at a time
PLANE = 32  # neighbours that a plane is laid through


@torch.no_grad()
def oriented_points(run: Run, bounds: Aabb, most: int) -> tuple[Points, Tensor]:
    """Up to ``most`` points within ``bounds``, scene frame, with normals towards the viewers, and colours (N, 3).

    Raises UserError for runs without photographs, whose rays they would be, and if no ray meets anything in bounds.
    """
    if run.of_shape:
        raise UserError("extract: --method: poisson expected a run of photographs, got one of a shape; drop it")
    cameras = [frame.camera.to(run.device) for frame in run.scene().train]
    generator = torch.Generator().manual_seed(0)
    parts = [_of_view(run, camera, bounds, max(1, most // len(cameras)), generator) for camera in cameras]
    places, towards, normals, colors = (torch.cat(part) for part in zip(*parts, strict=True))
    if len(places) <= PLANE:
        raise UserError("extract: --crop: expected a box where training views meet a surface, got none; enlarge it")
    if not bool(normals.any()):
        normals = estimate_normals(places, PLANE)
    normals = normals * torch.where((normals * towards).sum(1, keepdim=True) < 0, -1.0, 1.0)
    return Points(places, normals=normals), colors


def _of_view(run: Run, camera: Camera, bounds: Aabb, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Of pixels at random: places (N, 3) in bounds, the way from there to the eye, normals (or zeros) and colours."""
    total = camera.width * camera.height
    chosen = torch.randperm(total, generator=generator)[:count].to(run.device)
    rays = camera.rays(camera.pixel_centers()[chosen])
    if isinstance(run.field, Primitives):
        surfels = isinstance(run.renderer, SurfelRenderer)
        view: Any = run.renderer.render(run.field, camera, normals=surfels, median_depths=True).pixels  # type: ignore[call-arg]
        pixels = Pixels(*(None if x is None else x.flatten(0, 1)[chosen] for x in _of(view)))
    else:
        parts = [_marched(run, rays[i : i + CHUNK]) for i in range(0, len(rays), CHUNK)]
        pixels = Pixels(*(None if x[0] is None else torch.cat(x) for x in zip(*map(_of, parts), strict=True)))
    colors, alphas, depths, normals = _of(pixels)
    assert depths is not None and alphas is not None and colors is not None
    places = rays.at(depths)
    kept = (depths > 0) & (alphas >= 0.5) & places.isfinite().all(1) & bounds.contains(places)
    normals = torch.zeros_like(places) if normals is None else normals
    return places[kept], (rays.origins - places)[kept], normals[kept], colors[kept]


def _of(pixels: Pixels) -> tuple[Tensor | None, ...]:
    return pixels.colors, pixels.alphas, pixels.depths, pixels.normals


def _marched(run: Run, rays: Any) -> Pixels:
    if isinstance(run.field, Distance):
        return tracer_for(run.field, run.renderer, run.asked.facts.up).render(run.field, rays).pixels  # type: ignore[arg-type]
    render = run.renderer.render(run.field, rays)  # type: ignore[arg-type]
    assert render.weights is not None and render.samples is not None
    return replace(render.pixels, depths=median_depths(render.weights, render.samples))
