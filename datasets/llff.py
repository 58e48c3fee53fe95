"""LLFF: ``poses_bounds.npy`` beside ``images`` or ``images_4``, ``images_8`` (Mildenhall et al. 2019).

A row is a 3 x 5 matrix, whose columns are the camera's down, right and backward axes, its position and (height, width,
focal length) of the images before they were shrunk, and then the nearest and farthest depth. The principal point is the
middle of the image. The file knows no lens distortion: where COLMAP's ``sparse/0/cameras.*`` lies beside it and has one
camera of the same size and focal length, that one's is taken; points are those of ``sparse/0/points3D.*``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import Camera, intrinsics
from . import images
from .capture import Capture, Shot, build, fitted_to_image, rigid_pose
from .colmap import points_of, to_camera
from .colmap_model import part_file, read_part
from .masks import with_masks
from .photo_folders import choose_folder, in_order
from .scene import LoadOptions, Scene, SceneError

PREFERENCE = 6
FILE = "poses_bounds.npy"


def matches(root: Path) -> bool:
    """A folder with ``poses_bounds.npy``, or that file."""
    return (root.name == FILE and root.is_file()) or (root / FILE).is_file()


def load(root: Path, options: LoadOptions) -> Scene:
    """Read poses and photographs. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the files say; photographs in sorted order belong to rows 0, 1, 2, ..."""
    file = root if root.is_file() else root / FILE
    rows = _rows(file)
    photos = choose_folder(file.parent, options.downscale)
    if photos is None:
        raise SceneError(f"{file}: expected photographs in a folder `images` or `images_8` beside it, found none")
    lens, warnings = _lens(file, rows)
    shots = []
    for index, path in enumerate(in_order(str(file), photos.path, len(rows))):
        what = f"{file}: row {index}"
        matrix, near, far = rows[index, :15].reshape(3, 5), float(rows[index, 15]), float(rows[index, 16])
        down, right, backward, position = matrix[:, :4].T
        pose = rigid_pose(what, np.stack([right, down, -backward, position], 1))
        height, width, focal = (float(x) for x in matrix[:, 4])
        if not (focal > 0 and height >= 1 and width >= 1 and 0 < near < far):
            raise SceneError(
                f"{what}: expected a size, a focal length and 0 < near < far, got {height:g} x {width:g}, {focal:g}, "
                f"{near:g}, {far:g}; run LLFF's imgs2poses again"
            )
        size = round(width), round(height)
        if lens is None:
            camera = Camera(intrinsics(focal, focal, size[0] / 2, size[1] / 2, pose), pose, *size)
        else:
            camera = Camera(lens.K, pose, *size, lens.model, lens.distortion)
        facts = images.image_facts(path)
        camera = fitted_to_image(str(path), camera, facts)
        shots.append(Shot(path.name, camera, path, facts.channels, shrunk=photos.shrunk, near_far=(near, far)))
    with_mask, found = with_masks(file.parent, shots, [s.name for s in shots], photos.suffix)
    points, colors = _points(file)
    return Capture(
        format=f"LLFF, {FILE}",
        name=file.resolve().parent.name,
        source=file,
        shots=tuple(with_mask),
        points=points,
        point_colors=colors,
        warnings=warnings + found,
    )


def _rows(file: Path) -> np.ndarray:
    try:
        rows = np.asarray(np.load(file, allow_pickle=False), np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise SceneError(f"{file}: expected an array of 17 columns, got {error}; run LLFF's imgs2poses again") from None
    if rows.ndim != 2 or rows.shape[1] != 17 or not np.isfinite(rows).all():
        raise SceneError(
            f"{file}: expected finite numbers in 17 columns, got shape {rows.shape}; run LLFF's imgs2poses again"
        )
    return rows


def _lens(file: Path, rows: np.ndarray) -> tuple[Camera | None, tuple[str, ...]]:
    """COLMAP's camera, if its model has one alone and it is the one that the rows speak of."""
    found = part_file(file.parent / "sparse/0", "cameras")
    cameras = {} if found is None else read_part(found)
    if len(cameras) != 1:
        return None, ("lens distortion is unknown: poses_bounds.npy does not hold it",)
    (camera,) = cameras.values()
    height, width, focal = rows[:, [4, 9, 14]].T
    same = np.allclose(width, camera.width) and np.allclose(height, camera.height)
    if not same or not np.allclose(focal, camera.params[0], rtol=1e-6):
        return None, (f"{found} is of another size or focal length than {file.name}: its lens distortion is left out",)
    return to_camera(str(found), camera, torch.eye(4, dtype=torch.float64)), ()


def _points(file: Path) -> tuple[Tensor | None, Tensor | None]:
    found = part_file(file.parent / "sparse/0", "points3D")
    if found is None:
        return None, None
    points, colors, _ = points_of(read_part(found))
    return (points, colors) if len(points) else (None, None)
