"""Where a splat fit begins: points of structure from motion, of a mesh, at random, or of a quick hash-grid fit.

The hash grid finds the surfaces of a scene without points within seconds; Gaussians that start there need neither the
thousands of steps nor the floaters of a random start.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ..datasets.scene import Scene
from ..fields.gaussian_init import from_points, mesh_points, random_points
from ..geometry import Aabb, Gaussians
from ..renderers.median_depths import median_depths
from ..renderers.pose_deltas import PoseConfig
from ..renderers.robust import NOTHING_MOVES, RobustConfig
from ..renderers.volume import VolumeRenderer
from .batches import PixelBatches
from .errors import UserError
from .fit import Budget, Job
from .quick_fit import quick_fit
from .surroundings import surroundings

FEW_VIEWS, FEW_POINTS = 16, 500  # from so few views a hash grid finds clouds before the cameras, and points do not


class Source(Enum):
    """What the first Gaussians are taken from."""

    AUTO = "auto"
    """The scene's own points if there are a quarter of ``count`` or more, or if views are few; else a hash-grid fit."""
    GRID = "grid"
    POINTS = "points"
    MESH = "mesh"
    RANDOM = "random"


class Beginning(NamedTuple):
    """What a splat fit begins with."""

    gaussians: Gaussians
    seconds: float = 0.0
    """That a hash-grid fit or a search for the floor took."""
    twists: Tensor | None = None
    """(F, 6) motions of the photographs' cameras (``PoseDeltas``), if a hash-grid fit looked for them."""


@dataclass(frozen=True)
class FirstGaussians:
    """How a splat fit begins."""

    source: Source = Source.AUTO
    count: int = 60_000
    """Gaussians to begin with; of the scene's own points, all are taken up to this number."""
    surroundings: float = 0.25
    """Of ``count``, how many to put on a floor and far away, where the scene's own points leave holes in pictures."""
    opacity: float = 0.5
    scale: float = 0.7
    """Standard deviation as a share of the gap between neighbours."""
    grid_share: float = 0.25
    """Of a budget in seconds, what the hash-grid fit takes."""
    grid_seconds: float = 40.0
    """The most that it takes."""
    grid_steps: int = 1500
    """Steps of the hash-grid fit, where the budget is in steps."""
    poses_share: float = 0.5
    """Of the budget, what the hash-grid fit takes where poses are refined: rays find cameras that are degrees off, of
    which Gaussians, whose gradients reach no further than they do, find little."""

    def draw(
        self,
        scene: Scene,
        degree: int,
        seed: int,
        device: torch.device,
        budget: Budget,
        robust: RobustConfig = NOTHING_MOVES,
        poses: PoseConfig | None = None,
    ) -> Beginning:
        """The Gaussians on ``device``; a hash-grid fit that finds them corrects cameras' poses too, if told how."""
        generator = torch.Generator(device).manual_seed(seed)
        source, seconds, twists = self.source, 0.0, None
        if source is Source.AUTO:
            own = 0 if scene.points is None else len(scene.points)
            few = len(scene.train) <= FEW_VIEWS and own >= FEW_POINTS
            source = Source.POINTS if 4 * own >= self.count or few else Source.GRID
        if source is Source.RANDOM:
            points, colors = random_points(Aabb.cube(1.0).to(device), self.count, generator)
        elif source is Source.MESH:
            if scene.mesh is None:
                raise UserError(f"fit: --first.source mesh: expected a scene with a mesh, {scene.name} has none")
            points, colors = mesh_points(scene.mesh.to(device), self.count, generator)
        elif source is Source.POINTS:
            points, colors, seconds = self._scene_points(scene, torch.Generator().manual_seed(seed))
        else:
            job = self._grid_fit(scene, seed, device, budget, robust, poses)
            points, colors = self._grid_points(job)
            seconds, twists = job.elapsed, None if job.poses is None else job.poses.twists.detach()
        gaussians = from_points(points, colors, degree=degree, opacity=self.opacity, share=self.scale)
        return Beginning(gaussians.to(device), seconds, twists)

    def _scene_points(self, scene: Scene, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        if scene.points is None or not len(scene.points):
            raise UserError(
                f"fit: --first.source points: expected a scene with points, {scene.name} has none; use grid"
            )
        points = scene.points
        colors = torch.full_like(points, 0.5) if scene.point_colors is None else scene.point_colors.to(points)
        chosen = torch.randperm(len(points), generator=generator)[: self.count]
        points, colors = points[chosen], colors[chosen]
        around = min(int(self.surroundings * self.count), self.count - len(points))
        if around <= 0 or not scene.train:
            return points, colors, 0.0
        start = time.perf_counter()
        more, their_colors = surroundings(scene, points, around, generator)
        return torch.cat([points, more]), torch.cat([colors, their_colors]), time.perf_counter() - start

    def _grid_fit(
        self,
        scene: Scene,
        seed: int,
        device: torch.device,
        budget: Budget,
        robust: RobustConfig,
        poses: PoseConfig | None,
    ) -> Job:
        if poses is not None:
            budget = budget.part(self.poses_share, math.inf, budget.steps or 0)
        elif budget.seconds is not None:
            budget = budget.part(self.grid_share, self.grid_seconds, 0)
        else:
            budget = budget.part(1.0, 0.0, self.grid_steps)
        return quick_fit(scene, seed, device, budget, robust, poses)

    def _grid_points(self, job: Job) -> tuple[Tensor, Tensor]:
        assert isinstance(job.renderer, VolumeRenderer)
        points, colors = surface_points(job, self.count)
        if not len(points):
            raise UserError(
                "fit: --first.source grid: expected surfaces after the hash-grid fit, found none; use random"
            )
        return points, colors


@torch.no_grad()
def surface_points(job: Job, count: int) -> tuple[Tensor, Tensor]:
    """Points (N <= count, 3) where rays through random training pixels are half absorbed, and the pixels' colours."""
    batches = job.batches
    assert isinstance(batches, PixelBatches)
    batches.rays = min(8192, count)
    points, colors, found = [], [], 0
    for _ in range(8 * count // batches.rays + 8):
        rays, target, frames = batches.draw()
        if job.poses is not None:
            rays = job.poses(rays, frames)
        render = job.renderer.render(job.field, rays)
        samples, weights = render.samples, render.weights
        assert samples is not None and weights is not None and target.colors is not None
        depths = median_depths(weights, samples)
        met = depths > 0
        points.append(rays.at(depths)[met])
        colors.append(target.colors[met])
        found += int(met.sum())
        if found >= count:
            break
    return torch.cat(points)[:count], torch.cat(colors)[:count]
