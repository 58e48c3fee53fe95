"""Reading normal maps: 8-bit RGB images, n = 2 rgb / 255 - 1, or .npy of shape (H, W, 3); zeros where unknown.

In which axes n is, the data set says (``Axes``). Unknown is what is black, transparent, not finite, or shorter than
half a unit; the rest is made unit.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..geometry.cameras import downscaled_size
from . import images
from .scene import SceneError


class Axes(Enum):
    """What the components of stored normals are along."""

    OPENGL = "opengl"
    """The camera's: right, up, towards the viewer; what faces the camera is bluish."""
    OPENCV = "opencv"
    """The camera's: right, down, into the scene."""
    WORLD = "world"
    """Those of the poses that the data set states."""


def read_normals(path: Path, downscale: int = 1) -> Tensor:
    """(H, W, 3) float32 unit vectors in the file's own axes; 0 where unknown.

    Shrunk, a pixel is the mean direction of what is known of it; unknown where that disagrees by more than 60 degrees
    or so (a mean shorter than half a unit).
    """
    read = _read_npy if path.suffix.lower() == ".npy" else _read_image
    vectors = torch.from_numpy(read(path))
    if downscale > 1:
        vectors = _shrink(_unit(vectors), downscale)
    return _unit(vectors)


def _unit(vectors: Tensor) -> Tensor:
    vectors = torch.where(vectors.isfinite().all(-1, keepdim=True), vectors, 0.0)
    return torch.where(vectors.norm(dim=-1, keepdim=True) > 0.5, normalize(vectors, dim=-1), 0.0)


def _shrink(vectors: Tensor, factor: int) -> Tensor:
    """The mean of the known vectors of each block; what is unknown has length 0."""
    height, width = vectors.shape[:2]
    size = downscaled_size(width, height, factor)[::-1]
    channels = torch.cat([vectors, vectors.norm(dim=-1, keepdim=True)], -1).permute(2, 0, 1)[None]
    mean = torch.nn.functional.adaptive_avg_pool2d(channels, size)[0].permute(1, 2, 0)
    return mean[..., :3] / mean[..., 3:].clamp(min=1e-6)


def _read_npy(path: Path) -> np.ndarray:
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SceneError(f"{path}: expected normals as a .npy array, got {error}; write it again") from None
    if vectors.ndim != 3 or vectors.shape[2] != 3:
        raise SceneError(f"{path}: expected normals of shape (H, W, 3), got {vectors.shape}; write it again")
    return vectors.astype(np.float32)


def _read_image(path: Path) -> np.ndarray:
    with images.open_image(path) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise SceneError(f"{path}: expected normals as RGB, got an image of mode {image.mode}; use 8-bit RGB PNG")
        try:
            pixels = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise SceneError(f"{path}: expected a readable image of normals, got {error}; write it again") from None
    known = pixels[..., :3].any(-1, keepdims=True) & (pixels[..., 3:] > 0).all(-1, keepdims=True)
    return np.where(known, pixels[..., :3].astype(np.float32) * np.float32(2 / 255) - 1, np.float32(0))
