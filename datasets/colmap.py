"""COLMAP: a sparse model, binary or text, beside its photographs; also what 3DGS, OpenMVS and others lay out that way.

Opened by the folder above ``sparse/0``, ``sparse`` or ``colmap/sparse/0``, or by the model's own folder. Photographs
are looked for in ``images`` beside the model or up to three folders above it (``images_2``, ``_4``, ``_8`` where
--downscale asks for what they hold); masks in ``masks``. Points come with their colours; those of large error or seen
by fewer than three images are left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import Camera, intrinsics
from ..geometry.transforms import quaternion_to_matrix, rigid, rigid_inverse
from ..geometry.types import CameraModel
from . import images
from .capture import Capture, Shot, build, fitted_to_image
from .colmap_model import PARTS, ModelCamera, ModelPoints, part_file, read_model
from .masks import with_masks
from .photo_folders import PhotoFolder, choose_folder, is_photo
from .scene import LoadOptions, Scene, SceneError
from .seen_points import seen_points

PREFERENCE = 7
INSIDE = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "dense/0/sparse", "dense/sparse", "0", "")
LARGE_ERROR = 4.0  # times the median


def matches(root: Path) -> bool:
    """A folder with a COLMAP model, unless the model lacks its images and LLFF's poses stand in for them."""
    folder = model_folder(root)
    if folder is None:
        return False
    complete = all(part_file(folder, part) for part in PARTS[:2])
    return complete or not (root / "poses_bounds.npy").is_file()


def load(root: Path, options: LoadOptions) -> Scene:
    """Read model and photographs. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the model says; shots in sorted order of their names."""
    folder = model_folder(root)
    assert folder is not None
    photos = _photo_folder(root, folder, options.downscale)
    return read_with(folder, photos, photos.path.parent)


def read_with(folder: Path, photos: PhotoFolder, masks_in: Path) -> Capture:
    """What the model in ``folder`` says of photographs in ``photos``, with masks from a folder in ``masks_in``."""
    model = read_model(folder)
    if not model.images:
        raise SceneError(f"{folder}: expected registered images, got a model with none; run the reconstruction again")
    shots, absent = [], []
    seen = seen_points(model.points, None if model.points is None else trusted(model.points))
    for number, image in sorted(model.images.items(), key=lambda i: i[1].name):
        path = photos.path / image.name.replace("\\", "/")
        if not path.is_file():
            absent.append(image.name)
            continue
        facts = images.image_facts(path)
        pose = _pose(f"{folder}: {image.name}", image.quat, image.translation)
        camera = to_camera(f"{folder}: camera {image.camera}", model.cameras[image.camera], pose)
        camera = fitted_to_image(str(path), camera, facts)
        shots.append(Shot(image.name, camera, path, facts.channels, shrunk=photos.shrunk, seen=seen.get(number)))
    if absent:
        raise SceneError(
            f"{folder}: expected all {len(model.images)} images of the model in {photos.path}, found no {absent[0]}"
            f"{f' nor {len(absent) - 1} others' if len(absent) > 1 else ''}; restore them, or delete them from the "
            "model (colmap image_deleter)"
        )
    with_mask, warnings = with_masks(masks_in, shots, [s.name for s in shots], photos.suffix)
    points, colors, left_out = points_of(model.points)
    if left_out:
        warnings += (f"{left_out} of {left_out + len(points)} points left out: large error, or seen by too few images",)
    return Capture(
        format=f"COLMAP model in {folder}",
        name=photos.path.resolve().parent.name,
        source=folder,
        shots=tuple(with_mask),
        points=points if len(points) else None,
        point_colors=colors if len(points) else None,
        warnings=warnings + _other_models(folder),
    )


def model_folder(root: Path) -> Path | None:
    """The folder of the model: of several reconstructions in ``sparse``, the one with most in it."""
    for inside in INSIDE:
        folder = root / inside
        if folder.is_dir() and any(part_file(folder, part) for part in PARTS):
            if folder.parent.name == "sparse" and inside:
                return max(_reconstructions(folder), key=_size)
            return folder
    return None


def _reconstructions(folder: Path) -> list[Path]:
    """All numbered models beside ``folder``, itself first."""
    others = [p for p in sorted(folder.parent.iterdir()) if p != folder and p.name.isdigit() and part_file(p, "images")]
    return [folder, *others]


def _size(folder: Path) -> int:
    file = part_file(folder, "images")
    return file.stat().st_size if file else 0


def _other_models(folder: Path) -> tuple[str, ...]:
    others = _reconstructions(folder)[1:] if folder.parent.name == "sparse" else []
    names = ", ".join(p.name for p in others)
    return (f"further reconstructions are left out: {names} (open one by its own folder)",) if others else ()


def _photo_folder(root: Path, model: Path, downscale: int) -> PhotoFolder:
    """``images`` as near to the model as there is one, else a folder that holds photographs itself."""
    around = [root, model, *list(model.resolve().parents)[:3]]
    for place in around:
        found = choose_folder(place, downscale)
        if found is not None:
            return found
    for place in around[:2]:
        if any(is_photo(p) for p in place.iterdir()):
            return PhotoFolder(place, 1)
    raise SceneError(
        f"{model}: expected the model's photographs in a folder `images` beside it or above it, found none; move them "
        "there, or link them: ln -s PHOTOS images"
    )


def _pose(what: str, quat: tuple[float, ...], translation: tuple[float, ...]) -> Tensor:
    """(4, 4) camera-to-world of COLMAP's world-to-camera quaternion and translation."""
    numbers = torch.tensor([*quat, *translation], dtype=torch.float64)
    if not bool(numbers.isfinite().all()) or float(numbers[:4].norm()) < 1e-6:
        raise SceneError(
            f"{what}: expected a rotation and a finite translation, got {numbers.tolist()}; "
            "run the reconstruction again"
        )
    return rigid_inverse(rigid(quaternion_to_matrix(numbers[:4]), numbers[4:]))


def to_camera(what: str, camera: ModelCamera, pose: Tensor) -> Camera:
    """The camera with its lens. Raises SceneError for a lens that is not supported, or numbers that are none."""
    p = list(camera.params)
    if not all(np.isfinite(p)) or p[0] <= 0 or camera.width < 1 or camera.height < 1:
        raise SceneError(f"{what}: expected a size, focal lengths above 0 and finite numbers, got {camera}")
    one_focal = camera.model.startswith("SIMPLE") or camera.model in ("RADIAL", "RADIAL_FISHEYE")
    fx, fy, cx, cy, *k = [p[0], *p] if one_focal else p
    if camera.model in ("FOV", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE"):
        raise SceneError(
            f"{what}: expected a lens without {camera.model}'s terms, which are not supported; undistort the images "
            "with `colmap image_undistorter` and open its output"
        )
    fisheye = camera.model.endswith("FISHEYE")
    kind = CameraModel.FISHEYE if fisheye else CameraModel.OPENCV if any(k) else CameraModel.PINHOLE
    lens = None if kind is CameraModel.PINHOLE else torch.tensor((k + [0.0] * 4)[: max(4, len(k))], dtype=torch.float64)
    return Camera(intrinsics(fx, fy, cx, cy, pose), pose, camera.width, camera.height, kind, lens)


def points_of(points: ModelPoints | None) -> tuple[Tensor, Tensor, int]:
    """Positions (N, 3) float64 and colours (N, 3) of the points to be trusted, and how many others there were."""
    if points is None or not len(points.ids):
        return torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 3), 0
    kept = trusted(points)
    positions = torch.from_numpy(points.positions[kept])
    return positions, torch.from_numpy(points.colors[kept].astype(np.float32) / 255), int((~kept).sum())


def trusted(points: ModelPoints) -> np.ndarray:
    """(N,) bool: of usual error, and seen by three images or more (by two, where few points are seen by more)."""
    finite = np.isfinite(points.positions).all(1)
    # A negative error means that none was computed, no tracks that none were written.
    measured = points.errors >= 0
    median = np.median(points.errors[measured]) if measured.any() else 0.0
    good = finite & (~measured | (points.errors <= max(LARGE_ERROR * median, 1.0)))
    long = points.lengths >= 3
    return good & long if (good & long).sum() * 3 >= good.sum() else good


def as_model_camera(camera: Camera) -> ModelCamera:
    """A camera in COLMAP's words. Raises SceneError for an equirectangular one, which COLMAP has no model for."""
    fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    lens = [] if camera.distortion is None else camera.distortion.tolist()
    names = {
        (CameraModel.PINHOLE, 0): "PINHOLE", (CameraModel.OPENCV, 4): "OPENCV", (CameraModel.OPENCV, 5): "FULL_OPENCV",
        (CameraModel.OPENCV, 8): "FULL_OPENCV", (CameraModel.FISHEYE, 4): "OPENCV_FISHEYE",
    }  # fmt: skip
    name = names.get((camera.model, len(lens)))
    if name is None:
        raise SceneError(f"cameras: expected lenses that COLMAP knows, got {camera.model.name}; write transforms.json")
    lens += [0.0] * (8 - len(lens)) if name == "FULL_OPENCV" else []
    return ModelCamera(name, camera.width, camera.height, (fx, fy, cx, cy, *lens))
