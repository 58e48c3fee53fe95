"""Where a splat fit begins: points of structure from motion, of a mesh, at random, or of a quick hash-grid fit.

The hash grid finds the surfaces of a scene without points within seconds; Gaussians that start there need neither the
thousands of steps nor the floaters of a random start.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..datasets.scene import Scene
from ..fields.gaussian_init import from_points, mesh_points, random_points
from ..geometry import Aabb, Gaussians
from ..renderers.median_depths import median_depths
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

    def draw(
        self,
        scene: Scene,
        degree: int,
        seed: int,
        device: torch.device,
        budget: Budget,
        robust: RobustConfig = NOTHING_MOVES,
    ) -> tuple[Gaussians, float]:
        """The Gaussians on ``device``, and how long a hash-grid fit or a search for the floor took, seconds."""
        generator = torch.Generator(device).manual_seed(seed)
        source, seconds = self.source, 0.0
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
            points, colors, seconds = self._grid_points(scene, seed, device, budget, robust)
        gaussians = from_points(points, colors, degree=degree, opacity=self.opacity, share=self.scale)
        return gaussians.to(device), seconds

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

    def _grid_points(
        self, scene: Scene, seed: int, device: torch.device, budget: Budget, robust: RobustConfig
    ) -> tuple[Tensor, Tensor, float]:
        if budget.seconds is not None:
            budget = Budget(seconds=min(budget.seconds * self.grid_share, self.grid_seconds))
        else:
            budget = Budget(steps=min(self.grid_steps, budget.steps or 0) or 1)
        job = quick_fit(scene, seed, device, budget, robust)
        assert isinstance(job.renderer, VolumeRenderer)
        points, colors = surface_points(job, self.count)
        if not len(points):
            raise UserError(
                "fit: --first.source grid: expected surfaces after the hash-grid fit, found none; use random"
            )
        return points, colors, job.elapsed


@torch.no_grad()
def surface_points(job: Job, count: int) -> tuple[Tensor, Tensor]:
    """Points (N <= count, 3) where rays through random training pixels are half absorbed, and the pixels' colours."""
    batches = job.batches
    assert isinstance(batches, PixelBatches)
    batches.rays = min(8192, count)
    points, colors, found = [], [], 0
    for _ in range(8 * count // batches.rays + 8):
        rays, target, _ = batches.draw()
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
