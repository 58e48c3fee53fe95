"""A signed distance fitted to a shape: a mesh or oriented points, by their exact distances, on a hash grid."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as setting
from enum import Enum
from pathlib import Path
from typing import ClassVar

import torch

from ...datasets.scene import LoadOptions, Scene
from ...datasets.shape import load_shape, surface_of, truth_of
from ...fields.encodings import HashGridConfig
from ...fields.optimizer import Adam
from ...fields.signed_distance import SignedDistance, SignedDistanceConfig
from ...geometry.types import Aabb
from ...renderers.losses.distance import Distance
from ...renderers.losses.eikonal import Eikonal
from ...renderers.points import PointRenderer
from ...renderers.protocols import Loss
from ..devices import CPU
from ..fit import Budget, Job
from ..run import SceneFacts
from ..shape_batches import SamplesConfig, ShapeBatches
from .ngp import OptimizerConfig


class Kind(Enum):
    """What is fitted."""

    SDF = "sdf"
    """A signed distance: negative inside."""


@dataclass(frozen=True)
class Config:
    """A signed distance on a hash grid, fitted to the exact distances of a mesh or of oriented points."""

    default_steps: ClassVar[int] = 3000
    less_memory: ClassVar[str] = "--samples.most, --samples.batch or --distances.grid.log2-size"

    field: Kind = Kind.SDF
    repair: bool = False
    """Take a mesh with holes or edges of many faces, and let its winding numbers say what is inside."""
    distances: SignedDistanceConfig = setting(
        default_factory=lambda: SignedDistanceConfig(
            grid=HashGridConfig(levels=8, features=4, log2_size=17, finest_resolution=512),
            color=None,
            geometry_features=1,
        )
    )
    samples: SamplesConfig = SamplesConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-2, final_fraction=0.01)
    distance: Distance = Distance()
    eikonal: Eikonal = Eikonal(weight=0.0)

    def open_data(self, source: str, options: LoadOptions) -> Scene:
        """The shape in a file."""
        return load_shape(Path(source), repair=self.repair)

    def build_model(self, facts: SceneFacts, device: torch.device = CPU) -> tuple[SignedDistance, PointRenderer]:
        """An unfitted field, and what asks it at points."""
        return self.distances.build(Aabb.cube(), device), PointRenderer(gradients=self.eikonal.weight != 0).to(device)

    def prepare(self, scene: Scene) -> Scene:
        """A shape stays as it is."""
        return scene

    def build(self, scene: Scene, seed: int = 0, device: torch.device = CPU, budget: Budget | None = None) -> Job:
        """Everything that ``fit`` needs, on ``device``."""
        torch.manual_seed(seed)
        model, renderer = self.build_model(SceneFacts.of(scene), device)
        renderer.generator = torch.Generator(device).manual_seed(seed + 1)
        o = self.optimizer
        networks = [p for p in model.parameters() if p is not model.encoding.table]
        groups = [
            model.encoding.group(),
            {"params": networks, "weight_decay": o.network_weight_decay},
        ]
        groups = [{"final_fraction": o.final_fraction, **group} for group in groups]
        losses: dict[str, Loss] = {"distance": self.distance, "eikonal": self.eikonal}
        batches = ShapeBatches(surface_of(scene), truth_of(scene), self.samples, seed=seed + 2, device=device)
        return Job(
            field=model,
            renderer=renderer,
            batches=batches,
            losses={name: loss for name, loss in losses.items() if loss.weight != 0},  # type: ignore[attr-defined]
            optimizer=Adam(groups, lr=o.learning_rate, betas=(o.beta1, o.beta2), eps=o.eps),
            parts={"batches": batches},
            generator=torch.Generator(device).manual_seed(seed + 3),
        )

    def after_step(self) -> list:
        """Nothing."""
        return []
