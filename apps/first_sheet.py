"""Where a fit of an unsigned distance begins: at the points that a quick hash-grid fit shows, drawn together to
sheets.

Photographs alone do not hold an unsigned distance: its gradient turns round on the surface, colours that are not
learned yet push it away, and what is nowhere zero still looks right. So: fit the hash grid, take where rays of the
training photographs end, draw these points together (their noise would be a wall with two sides), and fit the field to
the distances to them as to any cloud of points. These distances are known from then on, while colours are learned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..datasets.scene import Scene
from ..datasets.shape import surface_of, truth_of
from ..fields.grid_distance import GridDistance
from ..geometry.cloud_distance import NEIGHBORS
from ..geometry.thinning import thinned
from ..geometry.types import Aabb, Points
from ..renderers.robust import NOTHING_MOVES, RobustConfig
from .first_gaussians import surface_points
from .fit import Budget, fit
from .quick_fit import quick_fit
from .shape_batches import SamplesConfig, ShapeBatches


@dataclass(frozen=True)
class FirstSheet:
    """How a fit of an unsigned distance begins."""

    grid_share: float = 0.35
    """Of the budget, what the hash-grid fit takes; 0 = begin as a point, and know no distances."""
    grid_seconds: float = 120.0
    """The most that it takes, where the budget is in seconds."""
    grid_steps: int = 3000
    """The most that it takes, where the budget is in steps."""
    points: int = 300_000
    """Where rays end, before they are drawn together."""
    radius: float = 0.04
    """Scene units in which they are: what is thinner has no inside."""
    share: float = 0.25
    """Of the budget, what fitting the distances to them takes."""
    samples: SamplesConfig = SamplesConfig(most=1 << 18)

    def teach(
        self, model: GridDistance, scene: Scene, seed: int, budget: Budget, robust: RobustConfig = NOTHING_MOVES
    ) -> Points | None:
        """Teach ``model`` the distances to the scene's surfaces; returns places with theirs, None if none is found."""
        from .recipes import shape

        device = model.bounds_low.device
        part = budget.part(self.grid_share, self.grid_seconds, self.grid_steps)
        job = quick_fit(scene, seed, device, part, robust)
        points, _ = surface_points(job, self.points)
        points = points[Aabb.cube().to(points.device).contains(points)]
        points, normals = thinned(points, self.radius)
        if len(points) <= NEIGHBORS:  # nothing is opaque yet
            return None
        cloud = replace(scene, frames=(), mesh=None, points=points, point_normals=normals)
        batches = ShapeBatches(surface_of(cloud), truth_of(cloud, signed=False), self.samples, seed=seed, device=device)
        taught = shape.Config(field=shape.Kind.UDF).fit_of(model, batches, seed)
        fit(taught, budget.part(self.share, self.grid_seconds, self.grid_steps))
        rows = batches.pool
        return Points(rows[:, :3].contiguous(), rows[:, 3])
