"""OpenSfM: ``reconstruction.json`` beside ``images`` (Mapillary; OpenDroneMap's ``opensfm`` folder).

Poses are world-to-camera (a rotation vector and a translation, OpenCV axes). Intrinsics are in units of the longer
side, counted from the middle between the first and the last pixel's centres: the middle of the image. Panoramas
(``spherical``) are read as equirectangular. Points come with their colours; the world is metric, z up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..geometry.cameras import Camera, intrinsics
from ..geometry.transforms import rigid_inverse, se3_exp
from ..geometry.types import CameraModel
from . import images
from .capture import Capture, Shot, build, fitted_to_image
from .json_files import numbers, read_json
from .masks import with_masks
from .photo_folders import choose_folder
from .scene import LoadOptions, Scene, SceneError

PREFERENCE = 5
FILE = "reconstruction.json"
PERSPECTIVE = ("perspective", "pinhole", "brown", "radial", "simple_radial")
FISHEYE = ("fisheye", "fisheye_opencv", "equidistant")
PANORAMA = ("spherical", "equirectangular")


def matches(root: Path) -> bool:
    """A folder with ``reconstruction.json``."""
    return _file(root) is not None


def load(root: Path, options: LoadOptions) -> Scene:
    """Read the largest reconstruction. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the file says of its largest reconstruction; shots in sorted order of their names."""
    file = _file(root)
    assert file is not None
    parts = read_json(file)
    if not isinstance(parts, list) or not all(isinstance(p, dict) and p.get("shots") for p in parts) or not parts:
        raise SceneError(f"{file}: expected a list of reconstructions with shots, found none; run OpenSfM again")
    best = max(parts, key=lambda p: len(p["shots"]))
    photos = choose_folder(file.parent, options.downscale)
    if photos is None:
        raise SceneError(f"{file}: expected photographs in a folder `images` beside it, found none; put them there")
    shots = []
    for name, shot in sorted(best["shots"].items()):
        what = f"{file}: {name}"
        path = photos.path / name
        facts = images.image_facts(path)
        camera = best.get("cameras", {}).get(shot.get("camera"))
        if not isinstance(camera, dict):
            raise SceneError(f"{what}: expected a camera of the file, got {shot.get('camera')!r}; run OpenSfM again")
        pose = _pose(what, shot)
        shots.append(
            Shot(name, fitted_to_image(what, _camera(what, camera, pose), facts), path, facts.channels,
                 shrunk=photos.shrunk)
        )  # fmt: skip
    with_mask, warnings = with_masks(file.parent, shots, [s.name for s in shots], photos.suffix)
    if len(parts) > 1:
        left = sum(len(p["shots"]) for p in parts) - len(shots)
        warnings += (f"{left} photographs of {len(parts) - 1} smaller reconstructions are left out",)
    points, colors = _points(file, best.get("points") or {})
    return Capture(
        format=f"OpenSfM, {FILE}",
        name=file.resolve().parent.name,
        source=file,
        shots=tuple(with_mask),
        points=points,
        point_colors=colors,
        warnings=warnings,
    )


def _file(root: Path) -> Path | None:
    if root.is_file():
        return root if root.name == FILE else None
    return next((p for p in (root / FILE, root / "opensfm" / FILE) if p.is_file()), None)


def _pose(what: str, shot: Mapping[str, Any]) -> Tensor:
    rotation = numbers(f"{what}: rotation", shot.get("rotation"), 3)
    translation = numbers(f"{what}: translation", shot.get("translation"), 3)
    world_to_camera = se3_exp(torch.cat([torch.zeros(3, dtype=torch.float64), rotation]))
    world_to_camera[:3, 3] = translation
    return rigid_inverse(world_to_camera)


def _camera(what: str, values: Mapping[str, Any], pose: Tensor) -> Camera:
    kind = str(values.get("projection_type", "perspective"))
    width, height = (int(numbers(f"{what}: camera: {k}", [values.get(k)], 1)) for k in ("width", "height"))
    if kind in PANORAMA:
        return Camera.equirectangular(width, height, pose)
    if kind not in PERSPECTIVE + FISHEYE:
        known = ", ".join(PERSPECTIVE + FISHEYE + PANORAMA)
        raise SceneError(f"{what}: projection_type: expected one of {known}, got {kind!r}; undistort with OpenSfM")
    get = lambda key, default=0.0: float(numbers(f"{what}: camera: {key}", [values.get(key, default)], 1))  # noqa: E731
    size = max(width, height)
    focal_x = get("focal_x", values.get("focal"))
    focal_y = get("focal_y", values.get("focal", focal_x))
    if focal_x <= 0 or focal_y <= 0:
        raise SceneError(f"{what}: camera: expected a focal length above 0, got {focal_x}; run OpenSfM again")
    names = ("k1", "k2", "k3", "k4") if kind in FISHEYE else ("k1", "k2", "p1", "p2", "k3")
    lens = [get(name) for name in names]
    model = CameraModel.FISHEYE if kind in FISHEYE else CameraModel.OPENCV if any(lens) else CameraModel.PINHOLE
    coefficients = None if model is CameraModel.PINHOLE else torch.tensor(lens, dtype=torch.float64)
    cx, cy = get("c_x") * size + width / 2, get("c_y") * size + height / 2
    return Camera(intrinsics(focal_x * size, focal_y * size, cx, cy, pose), pose, width, height, model, coefficients)


def _points(file: Path, points: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    if not points:
        return None, None
    try:
        positions = torch.tensor([p["coordinates"] for p in points.values()], dtype=torch.float64)
        colors = torch.tensor([p.get("color", [128] * 3) for p in points.values()], dtype=torch.float32) / 255
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SceneError(f"{file}: points: expected coordinates and colours, got {error!r}; export again") from None
    kept = positions.isfinite().all(-1)
    return positions[kept], colors[kept].clamp(0, 1)
