"""Rasterization of surfels: 2D Gaussians met by each pixel's ray where their discs are (``cuda/surfels.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..cuda.gaussians import Lens
from ..cuda.surfels import render_surfels
from ..fields.protocols import Primitives
from ..geometry import Camera, CameraModel, Pixels
from ..geometry.transforms import quaternion_to_matrix
from .protocols import Render
from .splat import SplatRenderer, blended_normals, drawn_for, facing, lengthening


@dataclass(frozen=True)
class SurfelConfig:
    """How surfels are drawn."""

    near: float = 0.01
    """What is nearer than this to the camera is not drawn, scene units."""
    planes: tuple[float, float] = (0.2, 100.0)
    """Near and far plane whose normalised device coordinates depth distortion is measured in, scene units."""
    median_depth: bool = True
    """While fitting, depths are those at which half of the light is gone; else expected ones (for unbounded scenes)."""


class SurfelRenderer(SplatRenderer):
    """Draws ``Primitives`` as surfels, the third axis of each its normal, for pinhole cameras without distortion.

    While fitting, and if ``geometry`` says so, a Render has depths, distortions and blended normals too, for losses.
    """

    lenses: ClassVar = {CameraModel.PINHOLE: Lens.PINHOLE}
    config: SurfelConfig  # type: ignore[assignment]

    def __init__(
        self,
        background: tuple[float, float, float],
        config: SurfelConfig = SurfelConfig(),
        *,
        random: bool = False,
        geometry: bool = False,
    ) -> None:
        super().__init__(background, config, random=random)  # type: ignore[arg-type]
        self.geometry = geometry

    def _render(
        self, field: Primitives, camera: Camera, lens: Lens, normals: bool, median_depths: bool, depths: bool
    ) -> Render:
        g = field.gaussians()
        camera = camera.to(self.device)
        background = self._background()
        fit = self._fits()
        geometry = self.geometry and fit
        given = drawn_for(g, camera)
        drawn = render_surfels(
            *given,
            features=facing(quaternion_to_matrix(g.quats)[..., 2], g.means, camera) if normals or geometry else None,
            background=background,
            depths=depths or median_depths or geometry,
            near=self.config.near,
            planes=self.config.planes,
            **self._gradients(g, given),
        )
        along = self._depths(drawn.z_depths, drawn.median_depths, drawn.alphas, fit, median_depths)
        if along is not None:
            along = along * lengthening(camera)
        directions, mean = blended_normals(drawn.features, drawn.alphas)
        pixels = Pixels(drawn.colors, drawn.alphas, along, directions)
        return Render(pixels, background, distortions=drawn.distortions, mean_normals=mean)

    def _depths(
        self, sums: Tensor | None, medians: Tensor | None, alphas: Tensor, fit: bool, median: bool
    ) -> Tensor | None:
        """(H, W) along the axis."""
        if sums is None or (self.config.median_depth if fit else median):
            return medians
        return sums / alphas.clamp(min=1e-6)
