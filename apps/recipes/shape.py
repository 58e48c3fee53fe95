"""A distance, signed or not, fitted to a shape: a mesh or points, by their exact distances, on a hash grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import ClassVar

import torch

from ...datasets.scene import LoadOptions, Scene
from ...datasets.shape import load_shape, surface_of, truth_of
from ...fields.encodings import HashGridConfig
from ...fields.gradient_kinds import Gradients
from ...fields.grid_distance import GridDistance
from ...fields.networks import MlpConfig
from ...fields.optimizer import Adam
from ...fields.signed_distance import SignedDistanceConfig
from ...fields.unsigned_distance import UnsignedDistanceConfig
from ...geometry.types import Aabb
from ...renderers.losses.curvature import Curvature
from ...renderers.losses.distance import Distance
from ...renderers.losses.eikonal import Eikonal
from ...renderers.losses.slope import Slope
from ...renderers.losses.sparsity import Sparsity
from ...renderers.points import PointRenderer
from ...renderers.protocols import Loss
from ..devices import CPU
from ..errors import UserError
from ..fit import Budget, Job
from ..run import SceneFacts
from ..shape_batches import SamplesConfig, ShapeBatches
from .ngp import OptimizerConfig


class Kind(Enum):
    """What is fitted."""

    SDF = "sdf"
    """A signed distance: negative inside. The shape must be closed, or points that are oriented."""
    UDF = "udf"
    """An unsigned distance: for open meshes, and points with or without normals."""


class Up(Enum):
    """Which axis of the file points upwards in pictures."""

    AUTO = "auto"
    """y in .obj files, z in all others."""
    X = "x"
    Y = "y"
    Z = "z"


AXES = {Up.X: (1.0, 0.0, 0.0), Up.Y: (0.0, 1.0, 0.0), Up.Z: (0.0, 0.0, 1.0)}


GRID = HashGridConfig(levels=8, features=4, log2_size=17, finest_resolution=512)


@dataclass(frozen=True)
class Config:
    """A distance on a hash grid, fitted to the exact distances of a mesh or of points."""

    default_steps: ClassVar[int] = 3000
    less_memory: ClassVar[str] = "--samples.most, --samples.batch or --distances.grid.log2-size"

    field: Kind = Kind.SDF
    up: Up = Up.AUTO
    repair: bool = False
    """Take a mesh with holes or edges of many faces, and let its winding numbers say what is inside."""
    distances: SignedDistanceConfig = SignedDistanceConfig(grid=GRID, color=None, geometry_features=1)
    """Of a signed distance."""
    unsigned: UnsignedDistanceConfig = UnsignedDistanceConfig(
        grid=HashGridConfig(levels=6, features=4, log2_size=17, finest_resolution=128),
        network=MlpConfig(width=64, hidden_layers=2),
        color=None,
        geometry_features=1,
        radius=0.0,
    )
    """Of an unsigned one."""
    samples: SamplesConfig = SamplesConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-2, final_fraction=0.01)
    distance: Distance = Distance()
    eikonal: Eikonal = Eikonal(weight=0.0)
    curvature: Curvature = Curvature()
    sparsity: Sparsity = Sparsity()
    rim: float = 0.2
    """Share of the surface's points that lie on the boundary of an open mesh, for unsigned distances."""
    slope: Slope = Slope()
    """Of unsigned distances alone: signed ones do well without."""

    def open_data(self, source: str, options: LoadOptions) -> Scene:
        """The shape in a file."""
        if self.repair and not self.signed:
            raise UserError(
                "fit: --repair: expected --field sdf, got udf, which takes open meshes as they are; drop it"
            )
        scene = load_shape(Path(source), repair=self.repair, signed=self.signed)
        by_file = Up.Y if Path(source).suffix.lower() == ".obj" else Up.Z
        return replace(scene, upwards=AXES[by_file if self.up is Up.AUTO else self.up])

    @property
    def signed(self) -> bool:
        """Whether distances are."""
        return self.field is Kind.SDF

    def build_model(self, facts: SceneFacts, device: torch.device = CPU) -> tuple[GridDistance, PointRenderer]:
        """An unfitted field, and what asks it at points."""
        config = self.distances if self.signed else self.unsigned
        if config.gradients is Gradients.DIRECTIONAL:
            option = "--distances.gradients" if self.signed else "--unsigned.gradients"
            raise UserError(
                f"fit: {option}: expected analytic or finite, got directional, which is along the rays of photographs; "
                "choose one of them"
            )
        return config.build(Aabb.cube(), device), PointRenderer(gradients=self._gradients).to(device)

    @property
    def _gradients(self) -> bool:
        """Whether a loss asks for them."""
        return self.eikonal.weight != 0 or self.curvature.weight != 0 or (self.slope.weight != 0 and not self.signed)

    def prepare(self, scene: Scene) -> Scene:
        """A shape stays as it is."""
        return scene

    def build(self, scene: Scene, seed: int = 0, device: torch.device = CPU, budget: Budget | None = None) -> Job:
        """Everything that ``fit`` needs, on ``device``."""
        torch.manual_seed(seed)
        model, _ = self.build_model(SceneFacts.of(scene), device)
        batches = ShapeBatches(
            surface_of(scene, rim=0.0 if self.signed else self.rim),
            truth_of(scene, signed=self.signed),
            self.samples,
            seed=seed + 2,
            device=device,
        )
        return self.fit_of(model, batches, seed)

    def fit_of(self, model: GridDistance, batches: ShapeBatches, seed: int) -> Job:
        """The fit of ``model`` to the distances that batches draw, on their device."""
        device, o = batches.device, self.optimizer
        renderer = PointRenderer(gradients=self._gradients).to(device)
        renderer.generator = torch.Generator(device).manual_seed(seed + 1)
        groups = [model.encoding.group(), o.networks(model)]
        groups = [{"final_fraction": o.final_fraction, **group} for group in groups]
        names = ("distance", "eikonal", "curvature", "sparsity")
        losses: dict[str, Loss] = {name: getattr(self, name) for name in names}
        if not self.signed:
            losses["slope"] = self.slope
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
