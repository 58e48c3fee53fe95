"""3D Gaussians that move to where they are needed (MCMC, Kheradmand et al. 2024), from a quick hash-grid fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...datasets.scene import Scene
from ...datasets.undistort import straightened
from ...fields import density_control
from ...fields.gaussians import GaussianField
from ...fields.optimizer import Adam
from ...fields.sh_factors import ShFactors
from ...geometry import Aabb, Gaussians
from ...renderers.bilateral_grid import BilateralConfig, BilateralGrids
from ...renderers.intrinsics import IntrinsicsConfig
from ...renderers.losses.depth import Depth
from ...renderers.losses.normal import Normal
from ...renderers.losses.primitives import MeanOpacity, MeanScale
from ...renderers.losses.ssim import SsimL1
from ...renderers.pose_deltas import PoseConfig
from ...renderers.protocols import Loss
from ...renderers.robust import RobustConfig
from ...renderers.splat import SplatConfig, SplatRenderer
from ..devices import CPU
from ..exposures import ExposureKind, center_exposures
from ..first_gaussians import Beginning, FirstGaussians
from ..fit import Budget, Job, Report
from ..image_batches import ImageBatches
from ..intrinsics import intrinsics_of
from ..run import SceneFacts
from ..supervision import needed, robust_masks, with_point_depths

BYTES_PER_GAUSSIAN = 1000  # while fitting: parameters, moments, gradients, and what a step draws with


@dataclass(frozen=True)
class RatesConfig:
    """Learning rates of Adam."""

    means: float = 1.6e-4
    """Times the scene's half extent, falling to a hundredth."""
    quats: float = 2e-3
    log_scales: float = 1e-2
    """Half of this and of ``quats``, as published, takes 0.4 dB from fox after 120 s and nothing from lego."""
    logit_opacities: float = 5e-2
    colors: float = 2.5e-3
    higher_bands: float = 0.15
    """Of ``colors``, for all bands of the spherical harmonics but the first; 0.05, as published, takes 0.2 dB
    from lego after 300 s."""
    eps: float = 1e-15


@dataclass(frozen=True)
class ControlConfig:
    """When Gaussians are moved, and how many there may be."""

    every: int = 100
    begin: float = 0.02
    """Share of the budget before the first."""
    end: float = 0.85
    """Share of the budget after the last."""
    min_opacity: float = 0.005
    growth: float = 1.05
    """More Gaussians each time, as a factor, unless ``full`` asks for more."""
    full: float = 0.5
    """Share of the budget by which ``max_gaussians`` is reached, however few there were at the beginning."""
    most_growth: float = 1.5
    """The largest factor."""
    noise: float = 5e5
    """Of the means' rate, per step."""
    reorder_every: int = 1000
    """Steps after which Gaussians are put in an order in which neighbours in space are neighbours in memory."""
    noise_every: int = 5
    """Steps that are shaken at once, by the same variance."""


class Bands:
    """The colours' highest band in use, as a checkpoint keeps it: the step after a resumption draws with the same."""

    def __init__(self, renderer: SplatRenderer) -> None:
        self.renderer = renderer

    def state_dict(self) -> dict[str, Tensor]:
        degree = self.renderer.degree
        return {"degree": torch.tensor(-1 if degree is None else degree, device=CPU)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        degree = int(state_dict.get("degree", -1))
        self.renderer.degree = None if degree < 0 else degree


@dataclass(frozen=True)
class Config:
    """3D Gaussians: real-time pictures; MCMC density control under a hard cap."""

    default_steps: ClassVar[int] = 7000
    field_type: ClassVar[type[GaussianField]] = GaussianField
    less_memory: ClassVar[str] = "--max-gaussians or --sh-degree"

    sh_degree: int = 3
    first: FirstGaussians = FirstGaussians()
    draw: SplatConfig = SplatConfig()
    rates: RatesConfig = RatesConfig()
    control: ControlConfig = ControlConfig()
    photometric: SsimL1 = SsimL1()
    opacity: MeanOpacity = MeanOpacity()
    scale: MeanScale = MeanScale()
    depth: Depth = Depth()
    normal: Normal = Normal()
    max_gaussians: int = 120_000
    """Never exceeded."""
    max_memory: int | None = None
    """Bytes that Gaussians may take while fitting: lowers ``max_gaussians``."""
    degree_every: float = 0.05
    """Share of the budget after which another band of the colours joins in."""
    random_background: bool | None = None
    """While fitting; None = where photographs have alpha."""
    exposure: ExposureKind = ExposureKind.NONE
    bilateral: BilateralConfig = BilateralConfig()
    refine_poses: bool = False
    """Correct the cameras' poses while fitting."""
    poses: PoseConfig = PoseConfig()
    refine_intrinsics: bool = False
    """Correct focal lengths while fitting, of each camera."""
    intrinsics: IntrinsicsConfig = IntrinsicsConfig()
    robust: RobustConfig = RobustConfig()

    def prepare(self, scene: Scene) -> Scene:
        """Photographs without their lens's distortion."""
        return straightened(scene)

    @property
    def most(self) -> int:
        """Gaussians there may be."""
        return min(self.max_gaussians, (self.max_memory or 1 << 60) // BYTES_PER_GAUSSIAN)

    def build_model(self, facts: SceneFacts, device: torch.device = CPU) -> tuple[GaussianField, SplatRenderer]:
        """A field without Gaussians and its renderer, for a scene of this size."""
        bases = (self.sh_degree + 1) ** 2
        none = Gaussians(*(torch.zeros(0, *shape, device=device) for shape in ((3,), (4,), (3,), (), (bases, 3))))
        field = self.field_type(none, Aabb.cube(2 ** (facts.cascades - 1)).to(device))
        random = facts.has_alpha if self.random_background is None else self.random_background
        draw = replace(self.draw, near=max(self.draw.near, facts.near))
        return field, self.make_renderer(facts.backdrop, draw, random).to(device)

    def make_renderer(self, color: tuple[float, float, float], draw: Any, random: bool) -> SplatRenderer:
        """What draws, on the CPU."""
        return SplatRenderer(color, draw, random=random)

    def beginning(self, scene: Scene, seed: int, device: torch.device, budget: Budget) -> Beginning:
        """What a fit begins with."""
        first = replace(self.first, count=min(self.first.count, self.most))
        poses = self.poses if self.refine_poses else None
        return first.draw(scene, self.sh_degree, seed, device, budget, self.robust, poses)

    def terms(self) -> dict[str, Any]:
        """The losses, each with its weight, by name."""
        names = ("photometric", "opacity", "scale", "depth", "normal")
        return {name: getattr(self, name) for name in names}

    def build(self, scene: Scene, seed: int = 0, device: torch.device = CPU, budget: Budget | None = None) -> Job:
        """Everything that ``fit`` needs, on ``device``. Without a budget, no Gaussians yet: a checkpoint follows."""
        losses: dict[str, Loss] = {name: loss for name, loss in self.terms().items() if loss.weight != 0}
        scene = with_point_depths(losses, scene)
        known = needed(losses, scene)
        torch.manual_seed(seed)
        model, renderer = self.build_model(SceneFacts.of(scene), device)
        renderer.generator = torch.Generator(device).manual_seed(seed + 1)
        begin = None if budget is None else self.beginning(scene, seed, device, budget)
        if begin is not None:
            model = self.field_type(begin.gaussians, model.bounds)
        renderer.color_gradient = ShFactors()
        r = self.rates
        columns = torch.full(((self.sh_degree + 1) ** 2 * 3,), r.higher_bands, device=device)
        columns[:3] = 1
        groups = [
            {"params": [model.means], "lr": r.means, "final_fraction": 0.01},
            {"params": [model.quats], "lr": r.quats},
            {"params": [model.log_scales], "lr": r.log_scales},
            {"params": [model.logit_opacities], "lr": r.logit_opacities},
            {"params": [model.sh], "lr": r.colors, "column_rates": columns, "factors": [renderer.color_gradient]},
        ]
        groups = [{**group, "sparse": True} for group in groups]
        exposure, more = self.exposure.build(len(scene.train), self.bilateral, device, lr=1e-3, sparse=False)
        groups += more
        if isinstance(exposure, BilateralGrids):
            losses["exposure"] = exposure.prior
        poses = self.poses.build([f.camera for f in scene.train]).to(device) if self.refine_poses else None
        if poses is not None:
            if begin is not None and begin.twists is not None:
                poses.twists.data.copy_(begin.twists)
            groups.append(self.poses.group(poses))
            losses["poses"] = poses.prior
        intrinsics = None
        if self.refine_intrinsics:
            intrinsics = intrinsics_of(scene, self.intrinsics, radial=False).to(device)
            groups.append(self.intrinsics.group(intrinsics))
            losses["intrinsics"] = intrinsics.prior
        batches = ImageBatches(scene.train, seed=seed + 2, device=device, needed=known)
        return Job(
            field=model,
            renderer=renderer,
            batches=batches,
            losses=losses,
            optimizer=Adam(groups, betas=(0.9, 0.999), eps=r.eps),
            exposure=exposure,
            poses=poses,
            intrinsics=intrinsics,
            robust=robust_masks(self.robust, scene, device),
            drawn=known,
            parts={"batches": batches, "bands": Bands(renderer)},
            elapsed=0.0 if begin is None else begin.seconds,
            generator=torch.Generator(device).manual_seed(seed + 3),
        )

    def after_step(self) -> list:
        """What this recipe does after each step."""
        return [self.widen_colors, self.control_density, self.reorder, center_exposures]

    def widen_colors(self, report: Report) -> None:
        """Let another band of the colours join in, now and then."""
        report.job.renderer.degree = min(self.sh_degree, int(report.spent / max(self.degree_every, 1e-9)))

    def reorder(self, report: Report) -> None:
        """Now and then, after density control."""
        job = report.job
        assert isinstance(job.field, GaussianField) and isinstance(job.optimizer, Adam)
        if job.step % self.control.reorder_every == 0:
            density_control.reorder(job.field, job.optimizer, job.renderer.statistics)

    def _growth(self, count: int, step: int, spent: float) -> float:
        """By what factor ``count`` Gaussians grow now: at the pace so far, they are ``most`` once ``full`` is spent."""
        c = self.control
        left = (c.full - spent) / max(spent, 1e-9) * step / c.every  # times to grow
        if left <= 0:
            return c.growth
        return min(max(c.growth, (self.most / max(1, count)) ** (1 / max(1.0, left))), c.most_growth)

    def control_density(self, report: Report) -> None:
        job, c = report.job, self.control
        assert isinstance(job.field, GaussianField) and isinstance(job.optimizer, Adam)
        if c.begin <= report.spent < c.end and job.step % c.every == 0:
            density_control.relocate(job.field, job.optimizer, job.generator, min_opacity=c.min_opacity)
            factor = self._growth(len(job.field), job.step, report.spent)
            density_control.grow(job.field, job.optimizer, job.generator, most=self.most, factor=factor)
        if job.step % c.noise_every == 0:
            amount = c.noise * self.rates.means * 0.01**report.spent
            density_control.shake(job.field, job.generator, amount * c.noise_every**0.5)
