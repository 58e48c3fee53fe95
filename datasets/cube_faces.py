"""Panoramas as six pinholes of 90 degrees, for renderers that draw straight lines straight.

A face is as fine as the panorama is in its middle: width / pi pixels a side. Each of its pixels looks up where its
direction falls in the panorama, whose left and right edge are one; colours between pixels are interpolated.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import PurePath

import torch
from torch import Tensor

from ..geometry import Camera
from ..geometry.cameras import intrinsics
from ..geometry.transforms import rigid
from .scene import Frame
from .undistort import sample

# Of each face the directions of its right and its lower edge, in the panorama's axes (right, down, forward).
FACES = {
    "front": ((1, 0, 0), (0, 1, 0)),
    "right": ((0, 0, -1), (0, 1, 0)),
    "back": ((-1, 0, 0), (0, 1, 0)),
    "left": ((0, 0, 1), (0, 1, 0)),
    "up": ((1, 0, 0), (0, 0, 1)),
    "down": ((1, 0, 0), (0, 0, -1)),
}


def cube_faces(frame: Frame) -> list[Frame]:
    """The six faces of an equirectangular frame, named after it: a.jpg -> a_front.jpg."""
    size = max(1, round(frame.camera.width / math.pi))
    path = PurePath(frame.name)
    return [replace(_face(frame, name, size), name=f"{path.with_suffix('')}_{name}{path.suffix}") for name in FACES]


def _face(frame: Frame, name: str, size: int) -> Frame:
    panorama = frame.camera
    right, down = (torch.tensor(axis, dtype=panorama.camera_to_world.dtype) for axis in FACES[name])
    turn = rigid(torch.stack([right, down, torch.linalg.cross(right, down)], 1), torch.zeros_like(right))
    pose = panorama.camera_to_world @ turn.to(panorama.camera_to_world)
    camera = Camera(intrinsics(size / 2, size / 2, size / 2, size / 2, pose), pose, size, size)
    rays = camera.rays()
    pixels, _ = panorama.project(rays.origins + rays.directions)
    # With a column of the other edge at either side.
    extent = pixels.new_tensor([panorama.width + 2, panorama.height])
    grid = ((pixels + pixels.new_tensor([1.0, 0.0])) / extent * 2 - 1).view(1, size, size, 2).float()
    look = lambda image, mode="bilinear": sample(_wrapped(image.float()), grid, mode)  # noqa: E731
    mask = None if frame.mask is None else look(frame.mask[..., None])[..., 0] > 0.999
    return replace(
        frame,
        camera=camera,
        colors=look(frame.colors).round().to(torch.uint8),
        alphas=None if frame.alphas is None else look(frame.alphas[..., None])[..., 0].round().byte(),
        mask=mask,
        depths=None if frame.depths is None else look(frame.depths[..., None], "nearest")[..., 0],
        normals=None if frame.normals is None else look(frame.normals, "nearest").half(),
        depth_weights=None if frame.depth_weights is None else look(frame.depth_weights[..., None])[..., 0],
    )


def _wrapped(image: Tensor) -> Tensor:
    """(H, W, C) -> (H, W + 2, C)."""
    return torch.cat([image[:, -1:], image, image[:, :1]], 1)
