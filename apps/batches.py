"""Random pixels of all training views, mixed: what a step of a ray-marching fit is made of.

Photographs stay uint8. Camera-space directions are computed once per distinct intrinsics (12 bytes per pixel), so that
a distorted lens costs nothing per step. One generator draws everything: equal seeds give equal batches. For a fit on a
GPU all of this lies in its memory if half of what is free there holds it; else batches are drawn in the computer's own
memory and travel, pinned, while the GPU works.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..datasets.capture import lens_key
from ..datasets.scene import Frame
from ..geometry import Camera, Pixels, Rays
from .devices import CPU, free_memory

STORED = ("colors", "alphas", "masks", "depths", "depth_weights", "normals")  # of every pixel, where it is there
SHARE = 0.5  # of a GPU's free memory that photographs may take


def _pixel_centers(camera: Camera) -> Tensor:
    y, x = (torch.arange(size, device=camera.K.device) for size in (camera.height, camera.width))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2) + 0.5


class PixelBatches:
    """Draws ``rays`` random training pixels, on ``device``; what is ``needed`` of depths, normals, image_points too.

    With ``patch`` > 1, patches of so many pixels a side, row by row: as many as ``rays`` has room for.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        *,
        near: float,
        rays: int = 1024,
        seed: int = 0,
        device: torch.device = CPU,
        needed: Collection[str] = (),
        patch: int = 1,
    ) -> None:
        if not frames:
            raise ValueError("fit: scene: expected at least one training view, got none; check the split")
        self.near, self.rays, self.device, self.patch = near, rays, device, patch
        smallest = min(min(f.camera.width, f.camera.height) for f in frames)
        if patch > smallest:
            raise ValueError(
                f"fit: photographs: expected {patch} pixels a side at least, got {smallest}; lower --downscale"
            )
        lenses: dict[object, int] = {}
        directions: list[Tensor] = []
        first: list[int] = []  # where a frame's lens starts in the table of directions
        total = 0
        for frame in frames:
            camera = frame.camera
            key = lens_key(camera)
            if key not in lenses:
                lenses[key] = total
                directions.append(camera.directions(_pixel_centers(camera)).float())
                total += len(directions[-1])
            first.append(lenses[key])
        sizes = [f.camera.width * f.camera.height for f in frames]
        self.count = sum(sizes)
        self.directions = torch.cat(directions)
        self.lens_offsets = torch.tensor(first, device=CPU)
        self.sizes = torch.tensor([[f.camera.width, f.camera.height] for f in frames], device=CPU)
        self.has_points = "image_points" in needed
        self.pixel_offsets = torch.tensor([0, *sizes], device=CPU).cumsum(0)
        self.colors, first_colors = _joined([f.colors for f in frames], copy=device.type != "cpu")
        self.color_offsets = first_colors - self.pixel_offsets[:-1]
        has_alpha = any(f.alphas is not None for f in frames)
        self.alphas = torch.cat([_or_full(f.alphas, f, 255, torch.uint8) for f in frames]) if has_alpha else None
        has_mask = any(f.mask is not None for f in frames)
        self.masks = torch.cat([_or_full(f.mask, f, True, torch.bool) for f in frames]) if has_mask else None
        self.depths = _known(frames, "depths", (), torch.float32) if "depths" in needed else None
        weighed = self.depths is not None and any(f.depth_weights is not None for f in frames)
        self.depth_weights = _known(frames, "depth_weights", (), torch.float32) if weighed else None
        self.normals = _known(frames, "normals", (3,), torch.float16) if "normals" in needed else None
        poses = torch.stack([f.camera.camera_to_world for f in frames]).float()
        self.rotations, self.positions = poses[:, :3, :3].contiguous(), poses[:, :3, 3].contiguous()
        self.storage = CPU  # where photographs are and batches are drawn
        if device.type != "cpu" and self.memory_bytes <= SHARE * free_memory(device):
            self._move(device)
        self.generator = torch.Generator(self.storage).manual_seed(seed)

    def _move(self, device: torch.device) -> None:
        self.storage = device
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    @property
    def memory_bytes(self) -> int:
        """What the photographs and directions hold."""
        tensors = [self.directions, *(getattr(self, name) for name in STORED)]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def draw(self) -> tuple[Rays, Pixels, Tensor]:
        """``rays`` pixels, uniformly over all pixels of all views, and the number of each one's frame (R,)."""
        pixel = self._pixels()
        rays = len(pixel)
        camera = torch.searchsorted(self.pixel_offsets, pixel, right=True) - 1
        within = pixel - self.pixel_offsets[camera]
        local = self.directions.index_select(0, self.lens_offsets[camera] + within)
        directions = (self.rotations.index_select(0, camera) @ local[:, :, None])[:, :, 0]
        view = Rays(
            self.positions.index_select(0, camera),
            directions,
            torch.full((rays,), self.near, device=self.storage),
            torch.full((rays,), float("inf"), device=self.storage),
            camera_indices=camera,
            image_points=self._image_points(camera, within) if self.has_points else None,
        )
        stored = {name: getattr(self, name) for name in STORED[1:]}
        known = {k: None if v is None else v.index_select(0, pixel) for k, v in stored.items()}
        target = Pixels(self.colors.index_select(0, pixel + self.color_offsets[camera]), **known)
        if self.storage != self.device:
            view, target = view.send(self.device), target.send(self.device)
        normals = None if target.normals is None else target.normals.float()
        target = replace(target, colors=_unit(target.colors), alphas=_unit(target.alphas), normals=normals)
        return view, target, view.camera_indices

    def _pixels(self) -> Tensor:
        """Numbers (R,) of pixels in the row of all photographs."""
        area = self.patch * self.patch
        draws = max(1, self.rays // area)
        pixel = torch.randint(self.count, (draws,), generator=self.generator, device=self.storage)
        if self.patch == 1:
            return pixel
        camera = torch.searchsorted(self.pixel_offsets, pixel, right=True) - 1
        width, height = self.sizes[camera].unbind(1)
        begin = self.pixel_offsets[camera]
        within = pixel - begin
        x, y = torch.minimum(within % width, width - self.patch), torch.minimum(within // width, height - self.patch)
        row, column = (
            torch.arange(area, device=self.storage) // self.patch,
            torch.arange(area, device=self.storage) % self.patch,
        )
        corner = begin + y * width + x
        return (corner[:, None] + row * width[:, None] + column).view(-1)

    def _image_points(self, camera: Tensor, within: Tensor) -> Tensor:
        size = self.sizes[camera]
        return (torch.stack([within % size[:, 0], within // size[:, 0]], -1) + 0.5) / size


def _unit(values: Tensor | None) -> Tensor | None:
    """0 to 255 -> 0 to 1."""
    return None if values is None else values.float().mul_(1 / 255)


def _joined(colors: Sequence[Tensor], copy: bool) -> tuple[Tensor, Tensor]:
    """All photographs' colours (P, 3), and where in it each begins.

    They are not copied where they lie in one block, which may be a file: then (P, 3) is all that is in it.
    """
    block = colors[0].untyped_storage()
    shared = all(c.untyped_storage().data_ptr() == block.data_ptr() and c.is_contiguous() for c in colors)
    begins = [c.storage_offset() for c in colors]
    if shared and not copy and all(begin % 3 == 0 for begin in begins):
        return colors[0].as_strided((block.nbytes() // 3, 3), (3, 1), 0), torch.tensor(begins, device=CPU) // 3
    sizes = [0, *(c.numel() // 3 for c in colors[:-1])]
    return torch.cat([c.reshape(-1, 3) for c in colors]), torch.tensor(sizes, device=CPU).cumsum(0)


def _or_full(values: Tensor | None, frame: Frame, full: float, dtype: torch.dtype) -> Tensor:
    if values is None:
        return torch.full((frame.camera.height * frame.camera.width,), full, dtype=dtype, device=frame.colors.device)
    return values.reshape(-1)


def _known(frames: Sequence[Frame], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """(P, *shape) depths or normals of all pixels, 0 = unknown."""
    zeros = lambda f: torch.zeros(f.camera.height * f.camera.width, *shape, dtype=dtype, device=f.colors.device)  # noqa: E731
    found = [(frame, getattr(frame, name)) for frame in frames]
    return torch.cat([zeros(f) if v is None else v.reshape(-1, *shape).to(dtype) for f, v in found])
