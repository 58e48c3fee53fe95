"""Points of a scene from a .ply file, with their colours where it has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.splat_files._ply_elements import columns, read_elements
from ..geometry.splat_io import SplatError
from .scene import SceneError

_COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))


def read_points(path: Path) -> tuple[Tensor, Tensor | None]:
    """(N, 3) float64, those that are finite, and colours (N, 3) float32 in [0, 1]. Raises SceneError."""
    if not path.is_file():
        raise SceneError(f"{path}: expected a .ply file of points, found none; restore it or remove ply_file_path")
    try:
        rows = read_elements(path).get("vertex")
        if rows is None:
            raise SceneError(f"{path}: expected an element 'vertex', found none; export the points again")
        points = columns(path, rows, ["x", "y", "z"], np.float64)
        names = next((list(c) for c in _COLORS if set(c) <= set(rows.dtype.names or ())), None)
        colors = None if names is None else columns(path, rows, names)
    except (SplatError, OSError) as error:
        raise SceneError(str(error)) from error
    finite = np.isfinite(points).all(1)
    if colors is not None and names is not None and rows.dtype[names[0]].kind in "iu":
        colors = colors / np.iinfo(rows.dtype[names[0]]).max
    kept = torch.from_numpy(points[finite])
    return kept, None if colors is None else torch.from_numpy(colors[finite].astype(np.float32)).clamp(0, 1)
