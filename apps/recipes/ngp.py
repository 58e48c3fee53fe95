"""Instant-NGP: a hash-grid radiance field, marched through an occupancy grid (Müller et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from ...datasets.scene import Scene
from ...fields.average import Average
from ...fields.encodings import HashGridConfig, others
from ...fields.optimizer import Adam
from ...fields.radiance_grid import RadianceGrid, RadianceGridConfig
from ...geometry.occupancy import OccupancyGrid
from ...geometry.types import Aabb
from ...renderers.background import FixedBackground, LearnedBackground, RandomBackground
from ...renderers.bilateral_grid import BilateralConfig, BilateralGrids
from ...renderers.field_background import FieldBackground, FieldBackgroundConfig
from ...renderers.intrinsics import IntrinsicsConfig
from ...renderers.losses.depth import Depth
from ...renderers.losses.distortion import Distortion
from ...renderers.losses.normal import Normal
from ...renderers.losses.opacity import Opacity
from ...renderers.losses.photometric import Photometric
from ...renderers.losses.s3im import S3im
from ...renderers.opacity import density
from ...renderers.pose_deltas import PoseConfig
from ...renderers.protocols import Loss
from ...renderers.protocols import Opacity as OpacityLaw
from ...renderers.robust import RobustConfig
from ...renderers.volume import MarchConfig, VolumeRenderer
from ..batches import PixelBatches
from ..coarse_to_fine import CoarseToFine, CoarseToFineConfig
from ..devices import CPU
from ..errors import UserError, check_least
from ..exposures import ExposureKind, center_exposures
from ..fit import Budget, Job, Report, Stateful
from ..intrinsics import intrinsics_of
from ..march_pace import MarchPace
from ..run import SceneFacts
from ..supervision import known_points, needed, robust_masks, with_point_depths


class Background(Enum):
    """What stands behind the scene."""

    AUTO = "auto"
    """Random while fitting; when shown, the colour that opaque photographs have behind the scene, if it is one, white
    where they have alpha, else black. Of distances: a field, where photographs have neither alpha nor masks and show
    what lies around the scene."""
    BLACK = "black"
    WHITE = "white"
    RANDOM = "random"
    LEARNED = "learned"
    FIELD = "field"
    """A radiance field on contracted space, around a scene in [-1, 1]^3: what is fitted ends there."""


@dataclass(frozen=True)
class OccupancyConfig:
    """The grid that says where marching can skip."""

    resolution: int = 128
    threshold: float = 0.003
    """A cell is empty where one step through it is more transparent than 1 minus this."""
    decay: float = 0.95
    fading: float = 0.95
    """The same, where training rays come through."""
    observe_every: int = 4
    """Steps between those whose rays are asked what they met."""
    every: int = 16
    """Steps between updates."""
    cells: int = 65536
    """Cells looked at per update, half of them among the occupied ones; the first update looks at all."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, with rates that fall exponentially over the budget."""

    learning_rate: float = 3e-2
    final_fraction: float = 0.3
    """Of the learning rate, at the end of the budget."""
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-15
    network_rate: float = 1.0
    """Of the learning rate: the networks', of which every sample makes use."""
    network_weight_decay: float = 1e-6

    def networks(self, model: nn.Module) -> dict[str, Any]:
        """The group of a field's parameters other than its encoding's."""
        rate = self.learning_rate * self.network_rate
        return {"params": others(model), "lr": rate, "weight_decay": self.network_weight_decay}


@dataclass(frozen=True)
class Config:
    """Instant-NGP on this machine's kernels. Tables are sized for a CPU's caches."""

    default_steps: ClassVar[int] = 4000
    takes_normals: ClassVar[bool] = False
    less_memory: ClassVar[str] = "--samples-per-step or --field.grid.log2-size"

    field: RadianceGridConfig = field(
        default_factory=lambda: RadianceGridConfig(
            grid=HashGridConfig(levels=8, features=4, log2_size=17, finest_resolution=1024, half=True)
        )
    )
    march: MarchConfig = MarchConfig(min_transmittance=1e-3, near_gradients=1.0)
    occupancy: OccupancyConfig = OccupancyConfig()
    optimizer: OptimizerConfig = OptimizerConfig(network_rate=0.3)
    photometric: Photometric = Photometric()
    s3im: S3im = S3im()
    distortion: Distortion = Distortion(weight=1e-3)
    opacity: Opacity = Opacity()
    depth: Depth = Depth()
    normal: Normal = Normal()
    """Of recipes of Gaussians and of distances: a hash grid's density refuses a weight."""
    background: Background = Background.AUTO
    outside: FieldBackgroundConfig = FieldBackgroundConfig()
    """With --background field."""
    average_every: int = 20
    """Steps between those that go into the mean of the parameters, which is what the fit keeps; 0 = keep the last."""
    exposure: ExposureKind = ExposureKind.NONE
    bilateral: BilateralConfig = BilateralConfig()
    refine_poses: bool = False
    """Correct the cameras' poses while fitting."""
    poses: PoseConfig = PoseConfig()
    refine_intrinsics: bool = False
    """Correct focal lengths and radial distortion while fitting, of each camera."""
    intrinsics: IntrinsicsConfig = IntrinsicsConfig()
    coarse_to_fine: CoarseToFineConfig = CoarseToFineConfig()
    robust: RobustConfig = RobustConfig()
    samples_per_step: int | None = None
    """Intervals with a gradient per step; the number of rays follows. None = 2^15 on a CPU, 2^18 on a GPU."""
    samples_growth: float = 1.0
    """At least 1: times as many at the end of the budget. Like a falling rate, it quiets the last steps (Smith et al.,
    "Don't Decay the Learning Rate, Increase the Batch Size", 2018); short fits end with too few of them."""

    def build_model(self, facts: SceneFacts, device: torch.device = CPU) -> tuple[RadianceGrid, VolumeRenderer]:
        """An unfitted field and its renderer, for a scene of this size."""
        behind = self._background(facts)
        cascades = 1 if isinstance(behind, FieldBackground) else facts.cascades
        outer = 2 ** (cascades - 1)
        grid = replace(self.field.grid, finest_resolution=self.field.grid.finest_resolution * outer)
        model = replace(self.field, grid=grid).build(Aabb.cube(outer), device)
        occupancy = OccupancyGrid(self.occupancy.resolution, cascades, 1.0)
        march = self.march
        if cascades > 1 and march.cone_angle == 0:
            march = replace(march, cone_angle=1 / 256)
        return model, VolumeRenderer(occupancy, self.build_law(), behind, march).to(device)

    @property
    def patch(self) -> int:
        """Pixels a side of what is drawn together."""
        return 1

    def build_law(self) -> OpacityLaw:
        """What turns the field's values into alphas."""
        return density

    def build_losses(self, facts: SceneFacts, device: torch.device = CPU) -> dict[str, Loss]:
        """What the fit makes small, by name. One with a state is kept by checkpoints."""
        names = ("photometric", "s3im", "distortion", "opacity", "depth")
        return {name: getattr(self, name) for name in names if getattr(self, name).weight != 0}

    def prepare(self, scene: Scene) -> Scene:
        """Rays go through any lens: photographs stay as they are."""
        return scene

    def build(self, scene: Scene, seed: int = 0, device: torch.device = CPU, budget: Budget | None = None) -> Job:
        """Everything that ``fit`` needs, on ``device``. Fields begin with the same numbers on all devices."""
        if self.normal.weight != 0 and not self.takes_normals:
            raise UserError(
                "fit: --normal.weight: expected 0, as a hash grid's normals jump from cell to cell; use one of the "
                "recipes splat, splat_classic, splat_mip, neus and volsdf, or drop the option"
            )
        check_least("fit", samples_growth=(self.samples_growth, 1))
        at_a_time = {f"march.{name}": (getattr(self.march, name), 1) for name in ("chunk", "chunk_intervals")}
        check_least("fit", **at_a_time)
        robust = robust_masks(self.robust, scene, device)
        torch.manual_seed(seed)
        model, renderer = self.build_model(SceneFacts.of(scene), device)
        losses = self.build_losses(SceneFacts.of(scene), device)
        elapsed = 0.0 if budget is None else self.begin(model, losses, scene, seed, budget)
        renderer.patch = self.patch
        renderer.occupancy.mark_unseen(partial(scene.cameras_seeing, enough=1))
        renderer.generator = torch.Generator(device).manual_seed(seed + 1)
        rate, o = self.optimizer.learning_rate, self.optimizer
        groups = [model.encoding.group(), o.networks(model)]
        behind, own = renderer.background, set()
        if isinstance(behind, FieldBackground):
            groups += [behind.field.encoding.group(), o.networks(behind.field)]
            own = {id(p) for p in behind.parameters()}
        if extra := [p for p in renderer.parameters() if id(p) not in own]:
            groups.append({"params": extra, "lr": rate * 0.3})
        exposure, more = self.exposure.build(len(scene.train), self.bilateral, device, lr=rate * 0.3)
        groups = [{"final_fraction": o.final_fraction, **group} for group in [*groups, *more]]
        poses = self.poses.build([f.camera for f in scene.train]).to(device) if self.refine_poses else None
        if poses is not None:
            groups.append(self.poses.group(poses))
        intrinsics = None
        if self.refine_intrinsics:
            intrinsics = intrinsics_of(scene, self.intrinsics).to(device)
            groups.append(self.intrinsics.group(intrinsics))
        scene = with_point_depths(losses, scene)
        known = needed(losses, scene)
        if isinstance(exposure, BilateralGrids):
            losses["exposure"] = exposure.prior
            known |= {"image_points"}
        if poses is not None:
            losses["poses"] = poses.prior
        if intrinsics is not None:
            losses["intrinsics"] = intrinsics.prior
            known |= {"image_points"}
        if robust is not None:
            known |= {"image_points"}
        batches = PixelBatches(
            scene.train, near=scene.near, seed=seed + 2, device=device, needed=known, patch=renderer.patch
        )
        samples = self.samples_per_step or 1 << (15 if device.type == "cpu" else 18)
        optimizer = Adam(groups, lr=rate, betas=(o.beta1, o.beta2), eps=o.eps)
        parts: dict[str, Stateful] = {name: loss for name, loss in losses.items() if isinstance(loss, Stateful)}
        parts["pace"] = MarchPace(batches, renderer, samples, self.samples_growth)
        if self.refine_poses or self.refine_intrinsics or hasattr(model, "difference"):
            parts["coarse_to_fine"] = CoarseToFine(model, optimizer, self.coarse_to_fine)
        return Job(
            field=model,
            renderer=renderer,
            batches=batches,
            losses=losses,
            optimizer=optimizer,
            exposure=exposure,
            poses=poses,
            intrinsics=intrinsics,
            robust=robust,
            drawn=known & {"normals"},
            known=known_points(losses, scene, model.bounds, device),
            average=Average(model) if self.average_every else None,
            parts=parts,
            generator=torch.Generator(device).manual_seed(seed + 3),
            elapsed=elapsed,
        )

    def begin(self, model: nn.Module, losses: dict[str, Loss], scene: Scene, seed: int, budget: Budget) -> float:
        """What is done to the field and to losses with a state before all else; returns how long it took, seconds."""
        return 0.0

    def after_step(self) -> list:
        """What this recipe does after each step."""
        return [self.set_pace, self.set_levels, self.update_occupancy, self.update_average, center_exposures]

    def set_pace(self, report: Report) -> None:
        """Steer the next step towards the wanted number of samples."""
        pace = report.job.parts["pace"]
        assert isinstance(pace, MarchPace)
        pace(report)

    def set_levels(self, report: Report) -> None:
        """Let another level of the hash grid learn, where cameras move or differences shrink."""
        part = report.job.parts.get("coarse_to_fine")
        if part is not None:
            assert isinstance(part, CoarseToFine)
            part(report)

    def update_average(self, report: Report) -> None:
        """Now and then, take the parameters into their mean."""
        job = report.job
        if job.average is not None and job.step % self.average_every == 0:
            job.average.update()

    def update_occupancy(self, report: Report) -> None:
        job, o, render, law = report.job, self.occupancy, report.step.render, report.job.renderer.opacity
        watched = job.step % o.observe_every == 0
        if watched and render.marched is not None and render.marched_values is not None:
            points = render.marched.positions(report.step.view.detach())  # type: ignore[arg-type]
            densities = law.densities(render.marched_values.detach(), self._reach(job))
            job.renderer.occupancy.observe(points, densities, decay=o.fading)
        if job.step % o.every == 0:
            self.look(job, all_cells=job.step <= o.every)

    @torch.no_grad()
    def look(self, job: Job, *, all_cells: bool) -> None:
        """Ask the field what is in cells."""
        o, law, reach = self.occupancy, job.renderer.opacity, self._reach(job)
        job.renderer.occupancy.update(
            lambda points: law.densities(job.field.query(points).values, reach),  # type: ignore[operator]
            step=job.renderer.step,
            threshold=o.threshold,
            decay=o.decay,
            all_cells=all_cells,
            part=min(1.0, o.cells / job.renderer.occupancy.densities.numel()),
            generator=job.generator,
        )

    def _reach(self, job: Job) -> float:
        """A cell's diagonal, scene units."""
        return 2 * 3**0.5 * job.renderer.occupancy.half_extent / self.occupancy.resolution

    def _background(self, facts: SceneFacts) -> nn.Module:
        white, black = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
        kind = self.background_of(facts)
        if kind is Background.FIELD:
            return self.outside.build()
        if kind is Background.AUTO:
            return RandomBackground(facts.backdrop)
        if kind is Background.LEARNED:
            return LearnedBackground()
        if kind is Background.RANDOM:
            return RandomBackground(black)
        return FixedBackground(white if kind is Background.WHITE else black)

    def background_of(self, facts: SceneFacts) -> Background:
        """What is asked for."""
        return self.background
