"""Random pixels of all training views, mixed: what a step of a ray-marching fit is made of.

Photographs stay uint8. Camera-space directions are computed once per distinct intrinsics (12 bytes per pixel), so that
a distorted lens costs nothing per step. One generator draws everything: equal seeds give equal batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..datasets.scene import Frame
from ..geometry import Camera, Pixels, Rays


def _pixel_centers(camera: Camera) -> Tensor:
    y, x = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2) + 0.5


class PixelBatches:
    """Draws ``(Rays, Pixels)`` of random training pixels."""

    def __init__(self, frames: Sequence[Frame], *, near: float, seed: int = 0) -> None:
        if not frames:
            raise ValueError("fit: scene: expected at least one training view, got none; check the split")
        self.generator = torch.Generator().manual_seed(seed)
        self.near = near
        lenses: dict[object, int] = {}
        directions: list[Tensor] = []
        first: list[int] = []  # where a frame's lens starts in the table of directions
        total = 0
        for frame in frames:
            camera = frame.camera
            key = (
                camera.model,
                camera.width,
                camera.height,
                tuple(camera.K.flatten().tolist()),
                () if camera.distortion is None else tuple(camera.distortion.tolist()),
            )
            if key not in lenses:
                lenses[key] = total
                directions.append(camera.directions(_pixel_centers(camera)).float())
                total += len(directions[-1])
            first.append(lenses[key])
        self.directions = torch.cat(directions)
        self.lens_offsets = torch.tensor(first)
        sizes = torch.tensor([f.camera.width * f.camera.height for f in frames])
        self.pixel_offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
        self.colors = torch.cat([f.colors.reshape(-1, 3) for f in frames])
        has_alpha = any(f.alphas is not None for f in frames)
        self.alphas = torch.cat([_or_full(f.alphas, f, 255, torch.uint8) for f in frames]) if has_alpha else None
        has_mask = any(f.mask is not None for f in frames)
        self.masks = torch.cat([_or_full(f.mask, f, True, torch.bool) for f in frames]) if has_mask else None
        poses = torch.stack([f.camera.camera_to_world for f in frames]).float()
        self.rotations, self.positions = poses[:, :3, :3].contiguous(), poses[:, :3, 3].contiguous()

    @property
    def memory_bytes(self) -> int:
        """What the photographs and directions hold."""
        tensors = [self.colors, self.alphas, self.masks, self.directions]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def draw(self, rays: int) -> tuple[Rays, Pixels]:
        """``rays`` pixels, uniformly over all pixels of all views."""
        pixel = torch.randint(int(self.pixel_offsets[-1]), (rays,), generator=self.generator)
        camera = torch.searchsorted(self.pixel_offsets, pixel, right=True) - 1
        local = self.directions.index_select(0, self.lens_offsets[camera] + pixel - self.pixel_offsets[camera])
        directions = (self.rotations.index_select(0, camera) @ local[:, :, None])[:, :, 0]
        view = Rays(
            self.positions.index_select(0, camera),
            directions,
            torch.full((rays,), self.near),
            torch.full((rays,), float("inf")),
            camera_indices=camera,
        )
        target = Pixels(
            colors=self.colors.index_select(0, pixel).float().mul_(1 / 255),
            alphas=None if self.alphas is None else self.alphas.index_select(0, pixel).float().mul_(1 / 255),
            masks=None if self.masks is None else self.masks.index_select(0, pixel),
        )
        return view, target


def _or_full(values: Tensor | None, frame: Frame, full: float, dtype: torch.dtype) -> Tensor:
    if values is None:
        return torch.full((frame.camera.height * frame.camera.width,), full, dtype=dtype)
    return values.reshape(-1)
