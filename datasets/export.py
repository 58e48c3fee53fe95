"""Cameras of any data set as ``transforms.json`` or as a COLMAP model, in the user's units.

Intrinsics are written to the last bit and poses to rounding errors of float64. Held-out views that the data set names
itself are named in ``transforms.json`` too; COLMAP has no place for them, nor for masks and depths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry.transforms import (
    matrix_to_quaternion,
    opengl_to_opencv,
    similarity_scale,
    transform_points,
    transform_poses,
)
from ..geometry.types import CameraModel
from ..geometry.whole_file import write_whole_file
from .capture import Capture, Shot, lens_key
from .colmap import as_model_camera
from .colmap_model import Model, ModelImage, ModelPoints
from .scene import SceneError, Split

_NAMES = {CameraModel.FISHEYE: "OPENCV_FISHEYE", CameraModel.EQUIRECTANGULAR: "EQUIRECTANGULAR"}
POINTS_FILE = "points.ply"


def as_model(capture: Capture) -> Model:
    """The capture as a COLMAP model: cameras that are alike shared, points without tracks."""
    folder = photo_folder(capture.shots)
    numbers: dict[tuple[object, ...], int] = {}
    cameras, images = {}, {}
    for index, shot in enumerate(capture.shots, 1):
        number = numbers.setdefault(lens_key(shot.camera), len(numbers) + 1)
        cameras[number] = as_model_camera(shot.camera)
        world_to_camera = torch.linalg.inv(transform_poses(capture.to_world, shot.camera.camera_to_world))
        images[index] = ModelImage(
            shot.image.relative_to(folder).as_posix(),
            number,
            tuple(matrix_to_quaternion(world_to_camera[:3, :3]).tolist()),
            tuple(world_to_camera[:3, 3].tolist()),
            np.zeros((0, 2)),
            np.zeros(0, np.int64),
        )
    points, colors = _points(capture)
    count = len(points)
    return Model(
        cameras,
        images,
        ModelPoints(
            np.arange(1, count + 1),
            points.numpy(),
            colors.numpy(),
            np.full(count, -1.0),
            np.zeros(count + 1, np.int64),
            np.zeros((0, 2), np.uint32),
        ),
    )


def write_transforms(capture: Capture, file: Path, root: Path) -> Path:
    """Write ``file`` (and points.ply beside it, where there are points); returns the folder that its paths start from.

    That is the file's own folder if the photographs lie below it, else ``root``: there the file has to be put.
    """
    folder = file.resolve().parent
    base = folder if all(_is_below(s.image, folder) for s in capture.shots) else root.resolve()
    if not all(_is_below(s.image, base) for s in capture.shots):
        raise SceneError(f"{file}: expected photographs below {base}, found them elsewhere; move them there")
    lenses = [_intrinsics(shot) for shot in capture.shots]
    shared = {k: v for k, v in lenses[0].items() if all(k in lens and lens[k] == v for lens in lenses)}
    unit = float(similarity_scale(capture.to_world))
    frames = []
    for shot, lens in zip(capture.shots, lenses, strict=True):
        pose = opengl_to_opencv(transform_poses(capture.to_world, shot.camera.camera_to_world))
        frame: dict[str, Any] = {"file_path": _relative(shot.image, base), "transform_matrix": pose.tolist()}
        frame |= {k: v for k, v in lens.items() if k not in shared}
        if shot.mask is not None and _is_below(shot.mask, base):
            frame["mask_path"] = _relative(shot.mask, base)
        if shot.depth is not None and shot.depth_camera is None and _is_below(shot.depth, base):
            frame["depth_file_path"] = _relative(shot.depth, base)
            if shot.depth_unit is not None:
                frame["depth_unit_scale_factor"] = shot.depth_unit * unit
        if shot.near_far is not None:
            frame["near"], frame["far"] = (x * unit for x in shot.near_far)
        frames.append(frame)
    head: dict[str, Any] = dict(shared)
    if capture.splits_stated or any(s.split is not Split.TRAIN for s in capture.shots):
        for split in Split:
            head[f"{split.value}_filenames"] = [_relative(s.image, base) for s in capture.shots if s.split is split]
    if capture.points is not None and len(capture.points):
        head["ply_file_path"] = POINTS_FILE
        write_whole_file(file.with_name(POINTS_FILE), lambda out: _write_ply(out, *_points(capture)))
    data = json.dumps({**head, "frames": frames}, indent=1).encode()
    write_whole_file(file, lambda out: out.write(data))
    return base


def photo_folder(shots: Sequence[Shot]) -> Path:
    """The deepest folder that all photographs are in."""
    return Path(os.path.commonpath([str(s.image.parent) for s in shots]))


def _intrinsics(shot: Shot) -> dict[str, Any]:
    camera = shot.camera
    values: dict[str, Any] = {"camera_model": _NAMES.get(camera.model, "OPENCV"), "w": camera.width, "h": camera.height}
    if camera.model is CameraModel.EQUIRECTANGULAR:
        return values
    values |= {k: float(camera.K[i, j]) for k, i, j in (("fl_x", 0, 0), ("fl_y", 1, 1), ("cx", 0, 2), ("cy", 1, 2))}
    lens = [] if camera.distortion is None else camera.distortion.tolist()
    radial = camera.model is CameraModel.OPENCV
    names = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6") if radial else ("k1", "k2", "k3", "k4")
    return values | dict(zip(names, lens, strict=False))


def _points(capture: Capture) -> tuple[Tensor, Tensor]:
    """Points (N, 3) float64 in the user's units and their colours, uint8; grey where unknown."""
    if capture.points is None:
        return torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.uint8)
    points = transform_points(capture.to_world, capture.points)
    if capture.point_colors is None:
        return points, torch.full(points.shape, 128, dtype=torch.uint8)
    return points, (capture.point_colors * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _write_ply(file: Any, points: Tensor, colors: Tensor) -> None:
    import plyfile

    rows = np.empty(len(points), [(a, "<f8") for a in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")])
    for i, (axis, color) in enumerate(zip("xyz", ("red", "green", "blue"), strict=True)):
        rows[axis], rows[color] = points[:, i].numpy(), colors[:, i].numpy()
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")], byte_order="<").write(file)


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder)


def _relative(path: Path, folder: Path) -> str:
    return path.resolve().relative_to(folder).as_posix()
