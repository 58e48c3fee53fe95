"""The browser's camera and polyfield's: both look along +z with +y down (OpenCV), so a pose is a pose.

The browser knows a position, a quaternion (w, x, y, z), a vertical field of view and the window's shape; its image
always fills the window, with the principal point in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...geometry import transforms
from ...geometry.cameras import Camera

WIDEST = math.radians(120)  # what a flat picture can show without absurd stretching


@dataclass(frozen=True)
class Pose:
    """A camera in the browser's words."""

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float  # vertical, radians


def browser_camera(wxyz: Sequence[float], position: Sequence[float], fov: float, width: int, height: int) -> Camera:
    """A pinhole that shows what a window of ``width`` x ``height`` shows."""
    rotation = transforms.quaternion_to_matrix(torch.tensor([float(x) for x in wxyz], dtype=torch.float64))
    pose = transforms.rigid(rotation, torch.tensor([float(x) for x in position], dtype=torch.float64)).float()
    return Camera.perspective(width, height, 2 * math.atan(math.tan(fov / 2) * width / height), pose)


def pose_of(camera_to_world: Tensor, fov: float) -> Pose:
    """A pose (4, 4) and a vertical field of view in the browser's words."""
    quats = transforms.matrix_to_quaternion(camera_to_world[:3, :3].double())
    return Pose(tuple(quats.tolist()), tuple(camera_to_world[:3, 3].tolist()), fov)


def half_angles(camera: Camera) -> tuple[float, float]:
    """Tangents of half the horizontal and vertical fields of view; of a lens that bends, those of its middle cross."""
    if camera.distortion is None and float(camera.K[0, 0]) > 0 and camera.model.name == "PINHOLE":
        return camera.width / 2 / float(camera.K[0, 0]), camera.height / 2 / float(camera.K[1, 1])
    x, y = camera.width / 2, camera.height / 2
    ends = torch.tensor([[0.5, y], [2 * x - 0.5, y], [x, 0.5], [x, 2 * y - 0.5]], dtype=camera.K.dtype)
    widest = math.tan(WIDEST / 2)
    tangents = []
    for direction, seen in zip(camera.directions(ends).tolist(), camera.sees(ends).tolist(), strict=True):
        across, forward = math.hypot(direction[0], direction[1]), direction[2]
        tangents.append(across / forward if seen and forward > across / widest else widest)
    return max(tangents[:2]), max(tangents[2:])


def to_browser(camera: Camera, aspect: float) -> Pose:
    """Where to put the browser's camera to have all of ``camera``'s image in a window with this width / height."""
    across, down = half_angles(camera)
    return pose_of(camera.camera_to_world, min(2 * math.atan(max(down, across / aspect)), WIDEST))
