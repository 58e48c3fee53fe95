"""Rasterization: Gaussians projected to ellipses, sorted by depth and blended (``cuda/gaussians.py``)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..cuda.gaussians import Lens, render_gaussians
from ..fields.protocols import Primitives
from ..geometry import Camera, CameraModel, Pixels, Rays
from ..geometry.gaussians import rotations
from .protocols import Render

_LENSES = {CameraModel.PINHOLE: Lens.PINHOLE, CameraModel.FISHEYE: Lens.FISHEYE}


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

    def __init__(
        self, background: tuple[float, float, float], config: SplatConfig = SplatConfig(), *, random: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("background", torch.tensor(background), persistent=False)
        self.config, self.random = config, random
        self.generator = torch.Generator()  # random backgrounds while fitting
        self.degree: int | None = None  # highest band of the colours in use; None = all
        self.statistics: Tensor | None = None  # (G, 4), if density control wants it: see ``render_gaussians``

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self.background.device

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
        if not isinstance(view, Camera):
            raise ValueError("SplatRenderer: view: expected a Camera, got Rays; draw whole images")
        lens = _LENSES.get(view.model)
        if lens is None or (view.distortion is not None and bool((view.distortion != 0).any())):
            raise ValueError(
                f"SplatRenderer: view: expected no distortion, got a lens {view.model.value}; use undistorted(frame)"
            )
        fit = self.training and torch.is_grad_enabled()
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
        fit = self.training and torch.is_grad_enabled()
        parameters = (g.means, g.quats, g.log_scales, g.logit_opacities, g.sh)
        buffers = tuple(p.grad for p in parameters if p.grad is not None) if fit else ()
        drawn = render_gaussians(
            *parameters,
            camera.K,
            camera.world_to_camera,
            camera.width,
            camera.height,
            features=_normals(g.quats, g.log_scales, g.means, camera) if normals else None,
            background=background,
            depths=depths,
            median_depths=median_depths,
            degree=self.degree if fit else None,
            near=self.config.near,
            blur=self.config.blur,
            antialias=self.config.antialias,
            lens=lens,
            grad_buffers=buffers if len(buffers) == len(parameters) else None,
            statistics=self.statistics if fit else None,
        )
        along, directions, mean = drawn.median_depths, None, None
        if drawn.z_depths is not None:
            along = drawn.z_depths / drawn.alphas.clamp(min=1e-6)
        if along is not None and lens is Lens.PINHOLE:
            along = along * lengthening(camera)
        if drawn.features is not None:
            directions = nn.functional.normalize(drawn.features, dim=-1)
            mean = drawn.features / drawn.alphas.clamp(min=1e-6)[..., None]
        return Render(Pixels(drawn.colors, drawn.alphas, along, directions), background, mean_normals=mean)

    def _background(self) -> Tensor:
        if not (self.training and self.random):
            return self.background
        return torch.rand(3, generator=self.generator, device=self.generator.device).to(self.device)


def lengthening(camera: Camera) -> Tensor:
    """(H, W) distance along the ray per depth along the axis."""
    fx, fy, cx, cy = camera.K[0, 0], camera.K[1, 1], camera.K[0, 2], camera.K[1, 2]
    x = (torch.arange(camera.width, device=camera.K.device) + 0.5 - cx) / fx
    y = (torch.arange(camera.height, device=camera.K.device) + 0.5 - cy) / fy
    return (x.square()[None] + y.square()[:, None] + 1).sqrt()


def _normals(quats: Tensor, log_scales: Tensor, means: Tensor, camera: Camera) -> Tensor:
    """(G, 3) the flattest axis of each Gaussian, pointing to the camera."""
    axes = rotations(quats).transpose(1, 2)
    normal = axes[torch.arange(len(quats), device=quats.device), log_scales.argmin(-1)]
    towards = camera.camera_to_world[:3, 3].to(means) - means
    return normal * torch.where((normal * towards).sum(-1, keepdim=True) < 0, -1.0, 1.0)
