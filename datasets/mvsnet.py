"""MVSNet's layout, as BlendedMVS, DTU and Tanks and Temples come for it: ``cams/*_cam.txt``, photographs, ``pair.txt``.

A camera file holds ``extrinsic`` (world-to-camera, 4 x 4, OpenCV axes), ``intrinsic`` (K; pixel positions count from
the image's corner, as MVSNet samples them) and the depth range: nearest, interval [, number, farthest]. Photographs
have the same numbers in ``blended_images`` or ``images``; ``*_masked`` copies are passed over. BlendedMVS's
``rendered_depth_maps/*.pfm`` are depths along the axis (Yao et al. 2018, 2020). ``pair.txt`` says nothing of cameras.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ..geometry.cameras import Camera, intrinsics
from ..geometry.transforms import rigid_inverse
from . import images
from .capture import Capture, Shot, build, plausible, rigid_pose
from .masks import with_masks
from .photo_folders import photos_in
from .scene import LoadOptions, Scene, SceneError

PREFERENCE = 4
FOLDERS = ("blended_images", "images", "image", "rgb")
DEPTHS = "rendered_depth_maps"
ENDING = "_cam.txt"


def matches(root: Path) -> bool:
    """A folder with ``cams/*_cam.txt``."""
    return next((root / "cams").glob(f"*{ENDING}"), None) is not None


def load(root: Path, options: LoadOptions) -> Scene:
    """Read cameras and photographs. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the files say; photographs in sorted order of their names."""
    folder = next((root / name for name in FOLDERS if photos_in(root / name)), None)
    if folder is None:
        raise SceneError(f"{root}: expected photographs in blended_images or images, found none; put them there")
    photos = {path.stem: path for path in photos_in(folder)}
    files = {file.name.removesuffix(ENDING): file for file in sorted((root / "cams").glob(f"*{ENDING}"))}
    missing = [name for name in files if name not in photos]
    if missing:
        raise SceneError(
            f"{root}: expected a photograph for each camera, found none for {missing[0]} in {folder}"
            f"{f' nor {len(missing) - 1} others' if len(missing) > 1 else ''}; restore it, or remove its camera"
        )
    shots = [_shot(file, photos[name], root / DEPTHS / f"{name}.pfm") for name, file in files.items()]
    with_mask, warnings = with_masks(root, shots, [s.name for s in shots])
    return Capture(
        format="MVSNet cameras (BlendedMVS)",
        name=root.resolve().name,
        source=root,
        shots=tuple(with_mask),
        warnings=warnings,
    )


def _shot(file: Path, image: Path, depth: Path) -> Shot:
    facts = images.image_facts(image)
    extrinsic, K, depth_range = _camera_file(file)
    pose = rigid_inverse(rigid_pose(f"{file}: extrinsic", extrinsic))
    fx, fy, cx, cy = (float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    camera = Camera(intrinsics(fx, fy, cx, cy, pose), pose, facts.width, facts.height)
    camera = plausible(f"{file}: intrinsic", camera)
    near, far = (depth_range[0], depth_range[3]) if len(depth_range) == 4 else (0.0, 0.0)
    return Shot(
        image.name,
        camera,
        image,
        facts.channels,
        depth=depth if depth.is_file() else None,
        near_far=(near, far) if 0 < near < far < math.inf else None,
    )


def _camera_file(file: Path) -> tuple[Tensor, Tensor, list[float]]:
    """extrinsic (4, 4) and intrinsic (3, 3) float64, and the numbers of the depth range."""
    try:
        words = file.read_text(encoding="utf-8").split()
        if words[0] != "extrinsic" or words[17] != "intrinsic" or not 27 <= len(words) <= 31:
            raise ValueError("other words or numbers")
        found = [float(word) for word in words[1:17] + words[18:]]
    except (OSError, ValueError, IndexError) as error:
        raise SceneError(
            f"{file}: expected extrinsic with 16 numbers, intrinsic with 9 and a depth range, got {error}; "
            "copy it again"
        ) from None
    values = torch.tensor(found[:25], dtype=torch.float64)
    return values[:16].view(4, 4), values[16:].view(3, 3), found[25:]
