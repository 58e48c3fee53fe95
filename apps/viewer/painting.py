"""A picture of rays, painted piece by piece, so that a newer one can take its place at any moment.

A crop box cuts rays, exactly: what lies outside of it is not there at all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...geometry import Aabb, Pixels, Rays
from ...geometry.cameras import Camera
from ...geometry.rays import clip_to_box
from ..devices import CPU

LARGEST_CHUNK = 8192  # rays in one call of the renderer: bounds its memory


@dataclass
class Stage:
    """What is drawn: a field, and a renderer that takes rays, or cameras if the field is made of Gaussians."""

    field: Any
    renderer: Any
    near: float = 0.0
    deleted: Tensor | None = None  # (G,) bool: Gaussians that the user took away

    @property
    def device(self) -> torch.device:
        """Where it is drawn."""
        return self.field.bounds.low.device

    def render(self, rays: Rays, *, normals: bool) -> Pixels:
        """Flat pixels of the field."""
        return self.show(self.field, rays, normals=normals)

    @torch.no_grad()
    def show(self, field: Any, view: Rays | Camera, *, normals: bool) -> Pixels:
        """Pixels, as for show: without jitter, gradients or random backgrounds, and leaving no trace in a fit."""
        fitting = self.renderer.training
        self.renderer.eval()
        try:
            return self.renderer.render(field, view, normals=normals).pixels
        finally:
            self.renderer.train(fitting)


class Painting:
    """One picture under way. ``advance`` until ``done``; then ``pixels``, and ``z_depths`` for the browser."""

    def __init__(self, stage: Stage, camera: Camera, *, normals: bool = False, box: Aabb | None = None) -> None:
        self.stage, self.camera, self.normals = stage, camera.to(stage.device), normals
        self.box = None if box is None else box.to(stage.device)
        self.total = camera.width * camera.height
        self.painted = 0
        self.seconds = 0.0
        self._parts: list[Pixels] = []
        self._z: list[Tensor] = []

    @property
    def done(self) -> bool:
        return self.painted >= self.total

    def advance(self, count: int) -> None:
        """Paint the next ``count`` pixels."""
        stop = min(self.painted + max(count, 1), self.total)
        started = time.perf_counter()
        while self.painted < stop:
            self._paint(self.painted, min(self.painted + LARGEST_CHUNK, stop))
        self.seconds += time.perf_counter() - started

    def _paint(self, begin: int, end: int) -> None:
        index = torch.arange(begin, end, device=self.stage.device)
        centers = torch.stack([index % self.camera.width, index // self.camera.width], -1) + 0.5
        rays = self.camera.rays(centers, near=self.stage.near)
        if self.box is not None:
            rays = clip_to_box(rays, self.box)
        self._parts.append(self.stage.render(rays, normals=self.normals).to(CPU))  # which is waited for, and timed
        self._z.append((rays.directions @ self.camera.forward).to(CPU))
        self.painted = end

    def pixels(self) -> Pixels:
        """The finished picture, (H, W), on the CPU."""
        return Pixels.joined(self._parts, self.camera.height, self.camera.width)

    def z_depths(self, pixels: Pixels) -> Tensor:
        """(H, W) along the camera's axis; infinite where nothing is."""
        assert pixels.depths is not None and pixels.alphas is not None
        z = pixels.depths * torch.cat(self._z).reshape(pixels.depths.shape)
        return torch.where(pixels.alphas > 0.5, z, torch.inf)
