"""Gaussians for the viewer: which of them are shown, and pictures of these, drawn whole.

A rasterizer draws all pixels at once, in hundredths of a second, so there are no pieces. A crop box leaves out the
Gaussians whose mean lies outside.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ...geometry import Aabb, Camera, Gaussians, Pixels
from ...renderers.splat import SplatRenderer, lengthening
from ..devices import CPU
from .painting import Stage


def draws_images(stage: Stage) -> bool:
    """Whether its renderer takes cameras rather than rays: that is, Gaussians are shown."""
    return isinstance(stage.renderer, SplatRenderer)


@dataclass(frozen=True)
class Selection:
    """What is asked of a Gaussian to be shown."""

    min_opacity: float = 0.0
    max_scale: float = math.inf  # longest standard deviation, scene units

    @torch.no_grad()
    def of(self, stage: Stage, box: Aabb | None) -> Gaussians:
        """Those in the box, without what was deleted."""
        gaussians: Gaussians = stage.field.gaussians().detach()
        keep = self.mask(stage, box)
        return gaussians if bool(keep.all()) else gaussians[keep]

    @torch.no_grad()
    def mask(self, stage: Stage, box: Aabb | None) -> Tensor:
        """(G,) bool."""
        g = stage.field.gaussians()
        keep = (g.opacities >= self.min_opacity) & (g.scales.amax(-1) <= self.max_scale)
        if box is not None:
            keep &= box.to(g.means.device).contains(g.means)
        if stage.deleted is not None and len(stage.deleted) == len(keep):
            keep &= ~stage.deleted
        return keep


@dataclass(frozen=True)
class _Chosen:
    """Gaussians as ``SplatRenderer`` wants them."""

    chosen: Gaussians
    bounds: Aabb

    def gaussians(self) -> Gaussians:
        return self.chosen


class SplatPainting:
    """One picture under way, as ``Painting``: painted by the first ``advance``."""

    def __init__(
        self,
        stage: Stage,
        camera: Camera,
        *,
        normals: bool = False,
        box: Aabb | None = None,
        selection: Selection = Selection(),
    ) -> None:
        self.stage, self.camera, self.normals, self.box, self.selection = stage, camera, normals, box, selection
        self.total, self.painted = camera.width * camera.height, 0
        self.seconds = 0.0
        self._pixels = Pixels()

    @property
    def done(self) -> bool:
        return self.painted >= self.total

    def advance(self, count: int) -> None:
        """Paint it all."""
        started = time.perf_counter()
        chosen = _Chosen(self.selection.of(self.stage, self.box), self.stage.field.bounds)
        self._pixels = self.stage.show(chosen, self.camera, normals=self.normals).to(CPU)
        self.painted = self.total
        self.seconds += time.perf_counter() - started

    def pixels(self) -> Pixels:
        """The finished picture, (H, W), on the CPU."""
        return self._pixels

    def z_depths(self, pixels: Pixels) -> Tensor:
        """(H, W) along the camera's axis; infinite where nothing is."""
        assert pixels.depths is not None and pixels.alphas is not None
        return torch.where(pixels.alphas > 0.5, pixels.depths / lengthening(self.camera.to(CPU)), torch.inf)
