"""RGB-D folders as ScanNet's exporter writes them: ``color``, ``pose``, ``intrinsic`` and, optionally, ``depth``.

``pose/N.txt`` is camera-to-world (4 x 4, OpenCV axes); photographs whose pose is not finite (tracking lost) are left
out. ``intrinsic_color.txt`` and ``intrinsic_depth.txt`` hold K; pixel positions count from the first pixel's centre.
Depths are 16-bit millimetres with pixels of their own (Dai et al. 2017).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import Camera, intrinsics
from . import images
from .capture import Capture, Shot, build, rigid_pose
from .masks import with_masks
from .photo_folders import by_number, photos_in
from .scene import LoadOptions, Scene, SceneError

PREFERENCE = 5
COLORS = ("color", "rgb", "images")
INTRINSICS = ("intrinsic/intrinsic_color.txt", "intrinsics/intrinsic_color.txt", "intrinsic_color.txt",
              "intrinsics_color.txt", "intrinsic.txt", "intrinsics.txt")  # fmt: skip


def matches(root: Path) -> bool:
    """A folder with ``pose/*.txt`` beside photographs."""
    has_poses = next((root / "pose").glob("*.txt"), None) is not None
    return has_poses and any(photos_in(root / name) for name in COLORS)


def load(root: Path, options: LoadOptions) -> Scene:
    """Read the folder. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the files say; photographs in order of their numbers."""
    folder = next(root / name for name in COLORS if photos_in(root / name))
    found = next((root / name for name in INTRINSICS if (root / name).is_file()), None)
    if found is None:
        raise SceneError(f"{root}: expected intrinsic/intrinsic_color.txt, found none; export the scan again")
    K = read_matrix(found)
    K_depth_file = found.with_name(found.name.replace("color", "depth"))
    shots, lost = [], 0
    for path in sorted(photos_in(folder), key=by_number):
        rows = read_matrix(root / "pose" / f"{path.stem}.txt")
        if not bool(rows.isfinite().all()):
            lost += 1
            continue
        pose = rigid_pose(str(root / "pose" / f"{path.stem}.txt"), rows)
        facts = images.image_facts(path)
        camera = centred_camera(K, pose, facts)
        shot = Shot(path.name, camera, path, facts.channels)
        depth = root / "depth" / f"{path.stem}.png"
        if depth.is_file():
            grid = images.image_facts(depth)
            stated = read_matrix(K_depth_file) if K_depth_file != found and K_depth_file.is_file() else None
            sensor = camera.resized(grid.width, grid.height) if stated is None else centred_camera(stated, pose, grid)
            shot = replace(shot, depth=depth, depth_camera=sensor)
        shots.append(shot)
    with_mask, warnings = with_masks(root, shots, [s.name for s in shots])
    if lost:
        warnings += (f"{lost} photographs without a finite pose are left out",)
    return Capture(
        format="RGB-D folder (ScanNet)",
        name=root.resolve().name,
        source=root,
        shots=tuple(with_mask),
        warnings=warnings,
    )


def centred_camera(K: Tensor, pose: Tensor, image: images.ImageFacts) -> Camera:
    """A camera whose K counts from the first pixel's centre."""
    matrix = intrinsics(float(K[0, 0]), float(K[1, 1]), float(K[0, 2]) + 0.5, float(K[1, 2]) + 0.5, pose)
    return Camera(matrix, pose, image.width, image.height)


def read_matrix(file: Path) -> Tensor:
    """(3 or 4, 3 or 4) float64."""
    try:
        rows = np.loadtxt(file, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise SceneError(f"{file}: expected a matrix as text, got {error}; export the scan again") from None
    if rows.shape not in ((3, 3), (4, 4), (3, 4)):
        raise SceneError(f"{file}: expected 4 x 4 numbers, got {rows.shape}; export the scan again")
    return torch.from_numpy(rows)
