"""What the recipes that fit a distance to photographs share: the field, its losses, and how the fit begins.

A recipe adds the law that turns distances into alphas: one small file each.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from ..datasets.scene import Scene
from ..fields.encodings import HashGridConfig
from ..fields.gradient_kinds import Gradients
from ..fields.grid_distance import GridDistance
from ..fields.signed_distance import SignedDistanceConfig
from ..renderers.losses.curvature import Curvature
from ..renderers.losses.distortion import Distortion
from ..renderers.losses.eikonal import Eikonal
from ..renderers.losses.free_space import FreeSpace
from ..renderers.losses.opacity import Opacity
from ..renderers.losses.sparsity import Sparsity
from ..renderers.losses.surface_points import SurfacePoints
from ..renderers.protocols import Loss
from ..renderers.resampling import Resampling
from ..renderers.volume import MarchConfig, VolumeRenderer
from .devices import CPU
from .errors import check_least
from .first_distance import FirstDistance
from .fit import Budget, Job
from .known_distances import KnownDistances
from .recipes import ngp
from .run import SceneFacts

PATCH = 3  # pixels a side, as published


@dataclass(frozen=True)
class SurfaceConfig(ngp.Config):
    """``ngp``'s occupancy grid, marching and optimizer; a distance in place of a density."""

    default_steps: ClassVar[int] = 5000
    takes_normals: ClassVar[bool] = True

    field: SignedDistanceConfig = field(
        default_factory=lambda: SignedDistanceConfig(
            grid=HashGridConfig(levels=8, features=4, log2_size=17, finest_resolution=1024)
        )
    )
    march: MarchConfig = MarchConfig(min_transmittance=1e-3)
    optimizer: ngp.OptimizerConfig = ngp.OptimizerConfig(learning_rate=1e-2, final_fraction=0.05)
    eikonal: Eikonal = Eikonal(weight=3e-3)
    curvature: Curvature = Curvature()
    sparsity: Sparsity = Sparsity()
    free_space: FreeSpace = FreeSpace()
    surface_points: SurfacePoints = SurfacePoints()
    distortion: Distortion = Distortion(weight=0.0)
    opacity: Opacity = Opacity(weight=0.1)
    """Against the photographs' alpha, where they have any."""
    average_every: int = 0
    first: FirstDistance = FirstDistance()
    """Where the fit begins."""
    resample: int = 0
    """Places per ray at which its intervals are cut shorter, where they meet the surface; 0 = as marched."""

    def build_model(self, facts: SceneFacts, device: torch.device = CPU) -> tuple[GridDistance, VolumeRenderer]:  # type: ignore[override]
        """An unfitted field and its renderer, for a scene of this size."""
        check_least("fit", resample=(self.resample, 0))
        model, renderer = super().build_model(facts, device)
        renderer.resampling = Resampling(self.resample) if self.resample else None
        return model, renderer

    @property
    def patch(self) -> int:
        """Pixels a side of what is drawn together: of directional gradients, patches."""
        return PATCH if self.field.gradients is Gradients.DIRECTIONAL else 1

    def begin(self, model: nn.Module, losses: dict[str, Loss], scene: Scene, seed: int, budget: Budget) -> float:
        """At the surfaces of a quick hash-grid fit; what is known from then on is told to the loss that holds it."""
        assert isinstance(model, GridDistance)
        if self.first.grid_share <= 0:
            return 0.0
        started = time.perf_counter()
        found, known = self.first.teach(model, scene, seed, budget, self.robust), losses.get("known")
        if found is not None and isinstance(known, KnownDistances):
            known.learn(found)
        return time.perf_counter() - started

    def build(self, scene: Scene, seed: int = 0, device: torch.device = CPU, budget: Budget | None = None) -> Job:
        """Everything that ``fit`` needs, on ``device``.

        What a field was taught, the occupancy grid knows too: the first steps would march through all of space.
        """
        job = super().build(scene, seed, device, budget)
        if budget is not None and self.first.grid_share > 0:
            self.look(job, all_cells=True)
        return job

    def background_of(self, facts: SceneFacts) -> ngp.Background:
        """A field by itself where nothing says what is not the scene: a distance would wall it in."""
        around = facts.cascades > 1 and not facts.has_alpha and not facts.masked
        return ngp.Background.FIELD if self.background is ngp.Background.AUTO and around else self.background

    def build_losses(self, facts: SceneFacts, device: torch.device = CPU) -> dict[str, Loss]:
        """``ngp``'s, without opacity where photographs say nothing of it, and that distances are distances."""
        losses = super().build_losses(facts, device)
        if not facts.has_alpha:
            losses.pop("opacity", None)
        names = ("normal", "eikonal", "curvature", "sparsity", "free_space", "surface_points")
        return losses | {name: getattr(self, name) for name in names if getattr(self, name).weight != 0}
