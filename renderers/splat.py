"""Rasterization: Gaussians projected to ellipses, sorted by depth and blended (``cuda/gaussians.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cuda.gaussians import Lens, render_gaussians
from ..fields.density_control import Statistics
from ..fields.protocols import Primitives
from ..fields.sh_factors import ShFactors
from ..geometry import Camera, CameraModel, Pixels, Rays
from ..geometry.gaussians import Gaussians
from ..geometry.transforms import quaternion_to_matrix, rigid
from .protocols import Render


@dataclass(frozen=True)
class SplatConfig:
    """How Gaussians are drawn."""

    blur: float = 0.3
    """Pixels^2 added to the covariance of every ellipse, so that none falls between the pixels."""
    antialias: bool = False
    """Take the blur out of opacities, so that pictures of other sizes look alike (Mip-Splatting)."""
    near: float = 0.01
    """Gaussians nearer than this to the camera are not drawn, scene units."""


class SplatRenderer(nn.Module):
    """Draws ``Primitives`` for cameras without distortion (``datasets.undistort`` takes it out of photographs)."""

    background: Tensor
    oversampling = 1  # Gaussians are drawn as wide as a pixel at least
    lenses: ClassVar = {CameraModel.PINHOLE: Lens.PINHOLE, CameraModel.FISHEYE: Lens.FISHEYE}

    def __init__(
        self, background: tuple[float, float, float], config: SplatConfig = SplatConfig(), *, random: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("background", torch.tensor(background), persistent=False)
        self.config, self.random = config, random
        self.generator = torch.Generator()  # random backgrounds while fitting
        self.degree: int | None = None  # highest band of the colours in use; None = all
        self.color_gradient: ShFactors | None = None  # where the colours' goes while fitting, if not to autograd
        self.statistics: Statistics | None = None  # summed up while fitting, if density control wants it

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self.background.device

    @property
    def backdrop(self) -> Tensor:
        """(3,) the colour behind the scene in pictures."""
        return self.background

    def render(
        self,
        field: Primitives,
        view: Camera | Rays,
        *,
        normals: bool = False,
        median_depths: bool = False,
        depths: bool | None = None,
    ) -> Render:
        """The whole image (H, W) of a Camera, with gradients while fitting.

        Depths are along the ray: expected ones or, on request and when not fitting, those of the Gaussian at which
        half of the light is gone (0 where that never happens); None = only when not fitting. Normals are the flattest
        axes, towards the camera. Raises ValueError for Rays, and for a lens that a Gaussian's image is not computed
        for.
        """
        name = type(self).__name__
        if not isinstance(view, Camera):
            raise ValueError(f"{name}: view: expected a Camera, got Rays; draw whole images")
        lens = self.lenses.get(view.model)
        if lens is None or (view.distortion is not None and bool((view.distortion != 0).any())):
            known = " or ".join(model.value for model in self.lenses)
            raise ValueError(
                f"{name}: view: expected no distortion and a lens {known}, got a lens {view.model.value}; "
                "use undistorted(frame)"
            )
        fit = self._fits()
        depths = not fit if depths is None else depths
        median_depths = median_depths and not fit
        with torch.set_grad_enabled(fit):
            return self._render(field, view, lens, normals, median_depths, depths and not median_depths)

    def _render(
        self, field: Primitives, camera: Camera, lens: Lens, normals: bool, median_depths: bool, depths: bool
    ) -> Render:
        g = field.gaussians()
        camera = camera.to(self.device)
        background = self._background()
        given = drawn_for(g, camera)
        drawn = render_gaussians(
            *given,
            features=facing(_flattest(g), g.means, camera) if normals else None,
            background=background,
            depths=depths,
            median_depths=median_depths,
            near=self.config.near,
            blur=self.config.blur,
            antialias=self.config.antialias,
            lens=lens,
            **self._gradients(g, given),
        )
        along = drawn.median_depths
        if drawn.z_depths is not None:
            along = drawn.z_depths / drawn.alphas.clamp(min=1e-6)
        if along is not None and lens is Lens.PINHOLE:
            along = along * lengthening(camera)
        directions, mean = blended_normals(drawn.features, drawn.alphas)
        return Render(Pixels(drawn.colors, drawn.alphas, along, directions), background, mean_normals=mean)

    def _fits(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _gradients(self, g: Gaussians, given: tuple[Any, ...]) -> dict[str, Any]:
        """How a fit draws: which bands, and where gradients go: the optimizer's buffers, or None = to autograd."""
        if not self._fits():
            return {}
        degree = g.degree if self.degree is None else self.degree
        *others, sh = (p.grad if p.is_leaf else None for p in given[:5])
        if self.color_gradient is not None:
            sh = self.color_gradient.open(g.sh, degree)
        statistics = None if self.statistics is None else self.statistics.sums
        return {"degree": degree, "grad_buffers": (*others, sh), "statistics": statistics}

    def _background(self) -> Tensor:
        if not (self.training and self.random):
            return self.background
        return torch.rand(3, generator=self.generator, device=self.generator.device).to(self.device)


def parameters_of(g: Gaussians) -> tuple[Tensor, ...]:
    """Gaussians as the kernels' ops take them."""
    return g.means, g.quats, g.log_scales, g.logit_opacities, g.sh


def drawn_for(g: Gaussians, camera: Camera) -> tuple[Any, ...]:
    """Gaussians and a camera as the kernels' ops take them.

    Those have no gradient to K, but one to all of the pose's matrix, and K p = K_0 (K_0^-1 K) p: what a change of K
    does to a pinhole's image, a change of the pose by K_0^-1 K does as well. Colours are seen from -R^T t, which that
    must not move: so the camera is in the origin then, and means are given relative to it.
    """
    K, size = camera.K, (camera.width, camera.height)
    if not K.requires_grad or camera.model is not CameraModel.PINHOLE:
        return *parameters_of(g), K, camera.world_to_camera, *size
    fixed = K.detach()
    turn = camera.camera_to_world[:3, :3].T
    change = torch.eye(3).to(fixed) + fixed.inverse() @ (K - fixed)
    pose = rigid(change @ turn, torch.zeros_like(camera.position))
    means, *others = parameters_of(g)
    return means - camera.position, *others, fixed, pose, *size


def lengthening(camera: Camera) -> Tensor:
    """(H, W) distance along the ray per depth along the axis."""
    fx, fy, cx, cy = camera.K[0, 0], camera.K[1, 1], camera.K[0, 2], camera.K[1, 2]
    x = (torch.arange(camera.width, device=camera.K.device) + 0.5 - cx) / fx
    y = (torch.arange(camera.height, device=camera.K.device) + 0.5 - cy) / fy
    return (x.square()[None] + y.square()[:, None] + 1).sqrt()


def _flattest(g: Gaussians) -> Tensor:
    """(G, 3) the flattest axis of each Gaussian."""
    axes = quaternion_to_matrix(g.quats).transpose(1, 2)
    return axes[torch.arange(len(g), device=g.quats.device), g.log_scales.argmin(-1)]


def blended_normals(sums: Tensor | None, alphas: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """sum_i w_i n_i (H, W, 3) -> their direction; and their mean, shorter than 1 where they disagree."""
    if sums is None:
        return None, None
    return nn.functional.normalize(sums, dim=-1), sums / alphas.clamp(min=1e-6)[..., None]


def facing(normals: Tensor, means: Tensor, camera: Camera) -> Tensor:
    """normals (G, 3) of what is at means (G, 3), turned towards the camera."""
    towards = camera.camera_to_world[:3, 3].to(means) - means
    return normals * torch.where((normals * towards).sum(-1, keepdim=True) < 0, -1.0, 1.0)
