"""Photographs without their lens's distortion, for renderers that draw straight lines straight.

Each pixel of the new image looks up where its direction falls in the photograph; colours between pixels are
interpolated. What the photograph does not show is masked out.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..geometry import Camera, CameraModel
from .scene import Frame, Scene


def is_straight(camera: Camera) -> bool:
    """Whether it is a pinhole already."""
    distorted = camera.distortion is not None and bool((camera.distortion != 0).any())
    return camera.model in (CameraModel.PINHOLE, CameraModel.OPENCV) and not distorted


def undistorted(frame: Frame) -> Frame:
    """The frame as a pinhole of the same K, size and pose would have seen it.

    Raises ValueError for equirectangular images: no pinhole sees all around.
    """
    camera = frame.camera
    pinhole = Camera(camera.K, camera.camera_to_world, camera.width, camera.height)
    if is_straight(camera):
        return replace(frame, camera=pinhole)
    if camera.model is CameraModel.EQUIRECTANGULAR:
        raise ValueError(f"undistorted: {frame.name}: expected a view forwards, got an equirectangular image")
    rays = pinhole.rays()
    pixels, _ = camera.project(rays.origins + rays.directions)
    size = pixels.new_tensor([camera.width, camera.height])
    inside = ((pixels >= 0) & (pixels <= size)).all(-1).view(camera.height, camera.width)  # NaN compares False
    grid = (pixels / size * 2 - 1).nan_to_num(2.0).view(1, camera.height, camera.width, 2).float()
    mask = inside if frame.mask is None else inside & (sample(frame.mask[..., None].float(), grid)[..., 0] > 0.999)
    return replace(
        frame,
        camera=pinhole,
        colors=sample(frame.colors.float(), grid).round().to(torch.uint8),
        alphas=None if frame.alphas is None else sample(frame.alphas[..., None].float(), grid)[..., 0].round().byte(),
        mask=None if bool(mask.all()) else mask,
        depths=None if frame.depths is None else sample(frame.depths[..., None], grid, "nearest")[..., 0],
        normals=None if frame.normals is None else sample(frame.normals.float(), grid, "nearest").half(),
    )


def straightened(scene: Scene) -> Scene:
    """The scene with every frame undistorted, panoramas as the faces of cubes."""
    from .cube_faces import cube_faces

    if all(is_straight(frame.camera) and frame.camera.model is CameraModel.PINHOLE for frame in scene.frames):
        return scene
    around = lambda frame: frame.camera.model is CameraModel.EQUIRECTANGULAR  # noqa: E731
    straight = [cube_faces(frame) if around(frame) else [undistorted(frame)] for frame in scene.frames]
    return scene.with_frames(tuple(frame for frames in straight for frame in frames))


def sample(image: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """image (H, W, C) at grid (1, H, W, 2) in [-1, 1] -> (H, W, C); beyond the border its nearest pixel."""
    found = functional.grid_sample(
        image.permute(2, 0, 1)[None], grid, mode=mode, padding_mode="border", align_corners=False
    )
    return found[0].permute(1, 2, 0)
