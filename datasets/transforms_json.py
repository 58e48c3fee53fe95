"""``transforms.json``: nerfstudio, instant-ngp and Blender (``transforms_train.json`` and so on) in one reader.

Poses are camera-to-world with OpenGL axes. Intrinsics may stand in the file or in each frame, as fl_x, fl_y, cx, cy or
as camera_angle_x, camera_angle_y; a frame's own values win. instant-ngp's ``aabb_scale`` fixes the scene's frame:
its unit cube x * scale + offset (0.33 and 0.5 unless stated) becomes [-1, 1]^3. nerfstudio's ``applied_transform``
and ``applied_scale`` are undone on the way to world units.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..geometry.cameras import Camera, intrinsics
from ..geometry.transforms import opengl_to_opencv, similarity_inverse
from ..geometry.types import CameraModel
from . import images, opensfm
from .capture import Capture, Shot, build, rigid_pose
from .json_files import read_json
from .masks import with_masks
from .normalize import Placement
from .normals import Axes
from .point_files import read_points
from .scene import LoadOptions, Scene, SceneError, Split

PREFERENCE = 10
SPLIT_FILES = {f"transforms_{s.value}.json": s for s in Split}
EXTENSIONS = ("", ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".PNG", ".JPG", ".JPEG")
MODELS = {
    "SIMPLE_PINHOLE": CameraModel.PINHOLE,
    "PINHOLE": CameraModel.PINHOLE,
    "PERSPECTIVE": CameraModel.PINHOLE,
    "SIMPLE_RADIAL": CameraModel.OPENCV,
    "RADIAL": CameraModel.OPENCV,
    "OPENCV": CameraModel.OPENCV,
    "FULL_OPENCV": CameraModel.OPENCV,
    "SIMPLE_RADIAL_FISHEYE": CameraModel.FISHEYE,
    "RADIAL_FISHEYE": CameraModel.FISHEYE,
    "OPENCV_FISHEYE": CameraModel.FISHEYE,
    "EQUIRECTANGULAR": CameraModel.EQUIRECTANGULAR,
}


def matches(root: Path) -> bool:
    """A JSON file of ours, or a folder with ``transforms.json`` or ``transforms_train.json``."""
    return root.suffix == ".json" and root.name != opensfm.FILE if root.is_file() else bool(_files(root))


def load(root: Path, options: LoadOptions) -> Scene:
    """Read the capture. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the JSON says; frames in sorted order of their paths, train before val and test if they have own files."""
    files = _files(root)
    folder = root if root.is_dir() else root.parent
    contents = [(file, split, _read_json(file)) for file, split in files]
    shots = [shot for file, split, data in contents for shot in _shots(folder, file, split, data)]
    file, _, head = contents[0]
    warnings: tuple[str, ...] = ()
    if all(shot.mask is None for shot in shots):
        shots, warnings = with_masks(folder, shots, [s.image for s in shots])
    points, colors = _points(folder, file, head)
    return Capture(
        format="transforms.json (nerfstudio, instant-ngp, Blender)",
        name=root.resolve().name if root.is_dir() else root.stem,
        source=file,
        shots=tuple(shots),
        to_world=_applied_inverse(file, head),
        splits_stated=len(files) > 1,
        placement=_instant_ngp(str(file), head) if "aabb_scale" in head else None,
        unit_sphere=(folder / "cameras_sphere.npz").is_file(),
        points=points,
        point_colors=colors,
        warnings=warnings,
    )


def _points(folder: Path, file: Path, head: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """The points (N, 3) that nerfstudio's ``ply_file_path`` names, in the frame of the poses, and their colours."""
    named = head.get("ply_file_path")
    return (None, None) if named is None else read_points(_inside(folder, str(file), "ply_file_path", named))


def _files(root: Path) -> list[tuple[Path, Split | None]]:
    """The JSON files to read and the split that each stands for; None = split by its own lists or by holding out."""
    if root.is_file():
        return [(root, None)]
    named: list[tuple[Path, Split | None]] = [
        (root / name, split) for name, split in SPLIT_FILES.items() if (root / name).is_file()
    ]
    single = root / "transforms.json"
    if single.is_file():
        if any(split is Split.TRAIN for _, split in named) or not any(split is Split.TEST for _, split in named):
            return [(single, None)]
        return [(single, Split.TRAIN), *named]
    return named if any(split is Split.TRAIN for _, split in named) else []


def _read_json(file: Path) -> dict[str, Any]:
    data = read_json(file)
    if not isinstance(data, dict) or not isinstance(data.get("frames"), list):
        raise SceneError(f"{file}: expected an object with a list `frames`, found none; is it a transforms.json?")
    if not all(isinstance(frame, dict) for frame in data["frames"]):
        raise SceneError(f"{file}: frames: expected objects, got something else; export it again")
    return data


def _shots(folder: Path, file: Path, split: Split | None, data: Mapping[str, Any]) -> list[Shot]:
    """All frames of one file in sorted order of their paths."""
    splits: dict[str, Split] = {}
    for named in Split:
        for path in data.get(f"{named.value}_filenames", ()):
            splits[posixpath.normpath(str(path).replace("\\", "/"))] = named
    frames = sorted(data["frames"], key=lambda f: str(f.get("file_path", "")))
    shots = []
    for frame in frames:
        name = posixpath.normpath(str(frame.get("file_path", "")).replace("\\", "/"))
        kind = split or splits.get(name)
        if splits and split is None and kind is None:
            continue  # the data set names its splits and leaves this frame out
        shots.append(_shot(folder, file, {**data, **frame}, kind))
    return shots


def _shot(folder: Path, file: Path, values: Mapping[str, Any], split: Split | None) -> Shot:
    what = f"{file}: frame {values.get('file_path', '?')}"
    image = _image_path(folder, what, values)
    facts = images.image_facts(image)
    near, far = _number(what, values, "near"), _number(what, values, "far")
    if near is not None and far is not None and not 0 < near < far:
        raise SceneError(
            f"{what}: near, far: expected 0 < near < far, got {near:g} and {far:g}; correct or remove them"
        )
    unit = _number(what, values, "depth_unit_scale_factor")
    if unit is not None and unit <= 0:
        raise SceneError(f"{what}: depth_unit_scale_factor: expected more than 0, got {unit:g}; correct or remove it")
    files = {key: values.get(key) for key in ("mask_path", "depth_file_path", "normal_file_path")}
    mask, depth, normal = (None if v is None else _inside(folder, what, k, v) for k, v in files.items())
    return Shot(
        name=str(values["file_path"]),
        camera=_camera(what, values, facts),
        split=split or Split.TRAIN,
        image=image,
        channels=facts.channels,
        mask=mask,
        depth=depth,
        depth_unit=unit,
        normal=normal,
        normal_axes=_normal_axes(what, values),
        near_far=(near, far) if near is not None and far is not None else None,
    )


def _inside(folder: Path, what: str, key: str, value: Any) -> Path:
    """A path of the JSON, below the data folder."""
    if not isinstance(value, str) or not value:
        raise SceneError(f"{what}: {key}: expected a path, got {value!r}; export the file again")
    path = posixpath.normpath(value.replace("\\", "/"))
    if path.startswith(("/", "../")) or path == ".." or (len(path) > 1 and path[1] == ":"):
        raise SceneError(
            f"{what}: {key}: expected a path inside {folder}, got {value!r}; "
            "move the file there and write a relative path"
        )
    return folder / path


def _normal_axes(what: str, values: Mapping[str, Any]) -> Axes:
    try:
        return Axes(values.get("normal_axes", Axes.OPENGL))
    except ValueError:
        known = ", ".join(axes.value for axes in Axes)
        raise SceneError(
            f"{what}: normal_axes: expected one of {known}, got {values['normal_axes']!r}; say what normals are along"
        ) from None


def _image_path(folder: Path, what: str, values: Mapping[str, Any]) -> Path:
    base = _inside(folder, what, "file_path", values.get("file_path"))
    for extension in EXTENSIONS:
        path = base.with_name(base.name + extension)
        if path.is_file():
            return path
    raise SceneError(f"{what}: expected an image at {base}, found none; restore it or remove the frame")


def _number(what: str, values: Mapping[str, Any], key: str, default: float | None = None) -> float | None:
    value = values.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SceneError(f"{what}: {key}: expected a number, got {value!r}; export the file again")
    return float(value)


def _camera(what: str, values: Mapping[str, Any], image: images.ImageFacts) -> Camera:
    width, height = image.width, image.height
    pose = opengl_to_opencv(rigid_pose(f"{what}: transform_matrix", values.get("transform_matrix")))
    for key, got in (("w", width), ("h", height)):
        stated = _number(what, values, key)
        if stated is not None and round(stated) != got:
            if image.turned:
                raise SceneError(
                    f"{what}: {key}: expected {stated:g} pixels as the intrinsics say, got an image of {width} x "
                    f"{height} when turned as its EXIF orientation says; if the intrinsics were made for the pixels as "
                    "stored, remove the tag from the images (exiftool -Orientation= FILES)"
                )
            raise SceneError(
                f"{what}: {key}: expected {stated:g} pixels as the intrinsics say, got an image of {width} x {height}; "
                "use the images that the intrinsics were made for, or scale fl_x, fl_y, cx, cy, w and h with them"
            )
    model, coefficients = _lens(what, values)
    if model is CameraModel.EQUIRECTANGULAR:
        return Camera.equirectangular(width, height, pose)
    focal_x, focal_y = _number(what, values, "fl_x"), _number(what, values, "fl_y")
    angle_x, angle_y = _number(what, values, "camera_angle_x"), _number(what, values, "camera_angle_y")
    if focal_x is None and angle_x is not None:
        focal_x = width / (2 * math.tan(angle_x / 2))
    if focal_y is None and angle_y is not None:
        focal_y = height / (2 * math.tan(angle_y / 2))
    focal_x, focal_y = focal_x or focal_y, focal_y or focal_x
    if focal_x is None or focal_y is None or focal_x <= 0 or focal_y <= 0:
        raise SceneError(f"{what}: expected a positive focal length, got none; add fl_x (pixels) or camera_angle_x")
    cx, cy = _number(what, values, "cx", width / 2), _number(what, values, "cy", height / 2)
    assert cx is not None and cy is not None
    if not (0 <= cx <= width and 0 <= cy <= height):
        raise SceneError(
            f"{what}: cx, cy: expected a point inside the image of {width} x {height}, got ({cx:g}, {cy:g}); "
            "the intrinsics belong to another image size: scale fl_x, fl_y, cx and cy"
        )
    distortion = None if coefficients is None else torch.tensor(coefficients, dtype=torch.float64)
    return Camera(intrinsics(focal_x, focal_y, cx, cy, pose), pose, width, height, model, distortion)


def _lens(what: str, values: Mapping[str, Any]) -> tuple[CameraModel, list[float] | None]:
    """The model and its coefficients in OpenCV's order; pinhole if all are zero."""
    name = str(values.get("camera_model", "OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV")).upper()
    if name not in MODELS:
        raise SceneError(
            f"{what}: camera_model: expected one of {', '.join(MODELS)}, got {name!r}; undistort the images first"
        )
    model = MODELS[name]
    k = [_number(what, values, f"k{i}", 0.0) or 0.0 for i in range(1, 7)]
    p = [_number(what, values, f"p{i}", 0.0) or 0.0 for i in range(1, 3)]
    if model is CameraModel.FISHEYE:
        return model, k[:4]
    if model is CameraModel.OPENCV and any(k + p):
        full = [k[0], k[1], p[0], p[1], k[2], *k[3:]]
        return model, full if any(k[3:]) else full[:5] if k[2] else full[:4]
    return (CameraModel.PINHOLE if model is CameraModel.OPENCV else model), None


def _instant_ngp(what: str, head: Mapping[str, Any]) -> Placement:
    """instant-ngp's unit cube as [-1, 1]^3; cascades up to aabb_scale."""
    aabb_scale = _number(what, head, "aabb_scale")
    scale = _number(what, head, "scale", 0.33)
    assert aabb_scale is not None and scale is not None
    if aabb_scale < 1 or scale <= 0:
        raise SceneError(
            f"{what}: aabb_scale, scale: expected at least 1 and more than 0, got {aabb_scale:g}, {scale:g}"
        )
    offset = head.get("offset", [0.5, 0.5, 0.5])
    try:
        shift = torch.tensor(offset, dtype=torch.float64).expand(3)
    except (TypeError, ValueError, RuntimeError):
        raise SceneError(f"{what}: offset: expected three numbers, got {offset!r}; export the file again") from None
    return Placement((0.5 - shift) / scale, 0.5 / scale, math.ceil(math.log2(aabb_scale)) + 1)


def _applied_inverse(file: Path, head: Mapping[str, Any]) -> Tensor:
    """(4, 4) from the file's frame to the world that nerfstudio started from."""
    matrix = torch.eye(4, dtype=torch.float64)
    if "applied_transform" in head:
        try:
            matrix[:3] = torch.tensor(head["applied_transform"], dtype=torch.float64)[:3]
        except (TypeError, ValueError, RuntimeError, IndexError):
            raise SceneError(f"{file}: applied_transform: expected 3 x 4 numbers; export the file again") from None
    matrix[:3] *= _number(str(file), head, "applied_scale", 1.0) or 1.0
    gram = matrix[:3, :3] @ matrix[:3, :3].T
    if float((gram - gram[0, 0] * torch.eye(3)).abs().max()) > 1e-4 * float(gram[0, 0]) or torch.det(matrix) <= 0:
        raise SceneError(
            f"{file}: applied_transform: expected rotation, shift and scale, got a skewed matrix; export again"
        )
    return similarity_inverse(matrix)
