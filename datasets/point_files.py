"""Points from a .ply file, with their colours where it has them: of a scene, or with normals, of a surface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.splat_files._ply_elements import columns, element_counts, read_elements
from ..geometry.splat_io import SplatError
from ..geometry.types import Points
from .scene import SceneError

LEAST = 4  # points of a surface
_COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))


def holds_points(path: Path) -> bool:
    """Whether it is a .ply file without faces. Raises SplatError if it ends with .ply and is none."""
    return path.suffix.lower() == ".ply" and element_counts(path).get("face", 0) == 0


def read_points(path: Path) -> tuple[Tensor, Tensor | None]:
    """(N, 3) float64, those that are finite, and colours (N, 3) float32 in [0, 1]. Raises SceneError."""
    rows, colors = _rows(path, "restore it or remove ply_file_path")
    points = columns(path, rows, ["x", "y", "z"], np.float64)
    finite = np.isfinite(points).all(1)
    return torch.from_numpy(points[finite]), None if colors is None else colors[torch.from_numpy(finite)]


def read_oriented(path: Path) -> tuple[Points, Tensor | None]:
    """Points with their normals, float64, those that are finite and have one, and colours (N, 3). Raises SceneError."""
    rows, colors = _rows(path, "check the path")
    names = ["x", "y", "z", "nx", "ny", "nz"]
    if not set(names[3:]) <= set(rows.dtype.names or ()):
        raise SceneError(
            f"{path}: expected points with normals (x y z nx ny nz), got points alone, which do not tell the inside "
            "from the outside; estimate normals (MeshLab, CloudCompare) that point outwards"
        )
    values = torch.from_numpy(columns(path, rows, names, np.float64))
    kept = values.isfinite().all(1) & (values[:, 3:].norm(dim=1) > 1e-6)
    if int(kept.sum()) < LEAST:
        raise SceneError(f"{path}: expected at least {LEAST} points with normals, got {int(kept.sum())}; sample denser")
    return Points(values[kept, :3], normals=values[kept, 3:]), None if colors is None else colors[kept]


def _rows(path: Path, remedy: str) -> tuple[np.ndarray, Tensor | None]:
    """The vertices of a file, and their colours (N, 3) float32 in [0, 1]."""
    if not path.is_file():
        raise SceneError(f"{path}: expected a .ply file of points, found none; {remedy}")
    try:
        rows = read_elements(path).get("vertex")
        if rows is None:
            raise SceneError(f"{path}: expected an element 'vertex', found none; export the points again")
        names = next((list(c) for c in _COLORS if set(c) <= set(rows.dtype.names or ())), None)
        columns(path, rows, ["x", "y", "z"])
        colors = None if names is None else columns(path, rows, names)
    except (SplatError, OSError) as error:
        raise SceneError(str(error)) from error
    if colors is None or names is None:
        return rows, None
    if rows.dtype[names[0]].kind in "iu":
        colors = colors / np.iinfo(rows.dtype[names[0]]).max
    return rows, torch.from_numpy(colors.astype(np.float32)).clamp(0, 1)
