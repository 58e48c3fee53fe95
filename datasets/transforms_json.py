"""``transforms.json``: nerfstudio, instant-ngp and Blender (``transforms_train.json`` and so on) in one reader.

Poses are camera-to-world with OpenGL axes. Intrinsics may stand in the file or in each frame, as fl_x, fl_y, cx, cy or
as camera_angle_x, camera_angle_y; a frame's own values win. instant-ngp's ``aabb_scale`` fixes the scene's frame:
its unit cube x * scale + offset (0.33 and 0.5 unless stated) becomes [-1, 1]^3. nerfstudio's ``applied_transform``
and ``applied_scale`` are undone on the way to world units.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..geometry.cameras import Camera, intrinsics
from ..geometry.transforms import opengl_to_opencv, similarity_inverse, similarity_scale, transform_poses
from ..geometry.types import Aabb, CameraModel
from . import depths, images
from .normalize import Placement, is_nerf_synthetic, place_capture, place_object
from .normals import Axes, read_normals
from .scene import Frame, LoadOptions, MaskUse, Scene, SceneError, Split

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


@dataclass(frozen=True)
class _Entry:
    """A frame of the JSON, checked, before its image is decoded."""

    name: str
    camera: Camera
    split: Split
    image: Path
    channels: int
    mask: Path | None
    depth: Path | None
    depth_unit: float | None
    normal: Path | None
    normal_axes: Axes
    near_far: tuple[float, float] | None


def matches(root: Path) -> bool:
    """A JSON file, or a folder with ``transforms.json`` or ``transforms_train.json``."""
    return (root.is_file() and root.suffix == ".json") or bool(_files(root))


def load(root: Path, options: LoadOptions) -> Scene:
    """Read the capture. Raises SceneError naming the file and the remedy."""
    files = _files(root)
    folder = root if root.is_dir() else root.parent
    contents = [(file, split, _read_json(file)) for file, split in files]
    entries = [e for file, split, data in contents for e in _entries(folder, file, split, data)]
    if len(entries) < 2:
        raise SceneError(f"{files[0][0]}: expected two frames or more, got {len(entries)}; one view holds no depth")
    entries = _hold_out(entries, len(files) > 1, options.hold_out)
    bytes_needed = sum(_memory(e, options) for e in entries)
    images.check_memory(bytes_needed, options.max_memory, options.downscale, files[0][0])
    blind = _blind_pixels(entries, options.downscale)
    frames = images.in_threads(lambda e: _read_frame(e, options, blind[_lens_key(e.camera)]), entries)
    head = contents[0][2]
    background = None if any(f.alphas is not None for f in frames) else plain_background(frames)
    with images.one_torch_thread():
        placement = _place(folder, head, entries, frames, background)
    scene_to_json = placement.scene_to_world
    json_to_scene = similarity_inverse(scene_to_json)
    moved = tuple(_move(f, json_to_scene, 1 / placement.half) for f in frames)
    return Scene(
        name=root.resolve().name if root.is_dir() else root.stem,
        frames=moved,
        scene_to_world=_applied_inverse(files[0][0], head) @ scene_to_json,
        bounds=Aabb.cube(2.0 ** (placement.cascades - 1)),
        cascades=placement.cascades,
        near=_near(moved, entries, placement),
        background=background,
        source=root,
    )


def plain_background(frames: list[Frame]) -> Tensor | None:
    """(3,) the colour of the images' rims if they all have one (98 % of the rim within 3 of 255), else None."""
    rims = [
        torch.cat([f.colors[0], f.colors[-1], f.colors[:, 0], f.colors[:, -1]]).short()
        for f in frames[:: max(1, len(frames) // 32)]
    ]
    color = torch.cat(rims).median(0).values
    if all(((rim - color).abs() <= 3).all(-1).double().mean() >= 0.98 for rim in rims):
        return color.float() / 255
    return None


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
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SceneError(f"{file}: expected JSON, got {error}; export it again") from None
    except OSError as error:
        raise SceneError(f"{file}: expected a readable file, got {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("frames"), list):
        raise SceneError(f"{file}: expected an object with a list `frames`, found none; is it a transforms.json?")
    if not all(isinstance(frame, dict) for frame in data["frames"]):
        raise SceneError(f"{file}: frames: expected objects, got something else; export it again")
    return data


def _entries(folder: Path, file: Path, split: Split | None, data: Mapping[str, Any]) -> list[_Entry]:
    """All frames of one file in sorted order of their paths."""
    splits: dict[str, Split] = {}
    for named in Split:
        for path in data.get(f"{named.value}_filenames", ()):
            splits[posixpath.normpath(str(path).replace("\\", "/"))] = named
    frames = sorted(data["frames"], key=lambda f: str(f.get("file_path", "")))
    entries = []
    for frame in frames:
        name = posixpath.normpath(str(frame.get("file_path", "")).replace("\\", "/"))
        kind = split or splits.get(name)
        if splits and split is None and kind is None:
            continue  # the data set names its splits and leaves this frame out
        entries.append(_entry(folder, file, {**data, **frame}, kind))
    return entries


def _hold_out(entries: list[_Entry], by_file: bool, every: int) -> list[_Entry]:
    """Every so many-th frame becomes a test view, unless the data set said which."""
    if by_file or every < 1 or any(e.split is not Split.TRAIN for e in entries):
        return entries
    return [replace(e, split=Split.TEST) if i % every == 0 else e for i, e in enumerate(entries)]


def _entry(folder: Path, file: Path, values: Mapping[str, Any], split: Split | None) -> _Entry:
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
    return _Entry(
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
    pose = _pose(what, values.get("transform_matrix"))
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


def _pose(what: str, rows: Any) -> Tensor:
    """Camera-to-world (4, 4) float64, OpenCV axes, exactly rigid."""
    try:
        matrix = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        matrix = torch.empty(0)
    if tuple(matrix.shape) not in ((4, 4), (3, 4)):
        raise SceneError(
            f"{what}: transform_matrix: expected 4 x 4 numbers, got {str(rows)[:60]}; export the file again"
        )
    if not bool(matrix.isfinite().all()):
        raise SceneError(f"{what}: transform_matrix: expected finite numbers, got NaN or infinity; remove the frame")
    if matrix.shape[0] == 3:
        matrix = torch.cat([matrix, matrix.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    rotation = matrix[:3, :3]
    u, singular, vt = torch.linalg.svd(rotation)
    off = float((singular - 1).abs().max())
    if off > 1e-2 or float(torch.linalg.det(rotation)) <= 0 or matrix[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        raise SceneError(
            f"{what}: transform_matrix: expected a rotation and a shift, got scales {singular[0]:.3g}, "
            f"{singular[1]:.3g}, {singular[2]:.3g} and determinant {float(torch.linalg.det(rotation)):.3g}; "
            "export rigid camera poses"
        )
    matrix[:3, :3] = u @ vt
    return opengl_to_opencv(matrix)


def _lens_key(camera: Camera) -> tuple[object, ...]:
    """What decides which pixels a camera's lens can see: equal for the frames of one camera."""
    distortion = () if camera.distortion is None else tuple(camera.distortion.tolist())
    return (camera.model, camera.width, camera.height, tuple(camera.K.flatten().tolist()), distortion)


def _blind_pixels(entries: list[_Entry], downscale: int) -> dict[tuple[object, ...], Tensor | None]:
    """Per distinct lens: the pixels (H, W) bool where it sees nothing, None if there are none."""
    blind: dict[tuple[object, ...], Tensor | None] = {}
    for entry in entries:
        key = _lens_key(entry.camera)
        if key not in blind:
            camera = entry.camera.downscaled(downscale)
            seen = camera.sees().reshape(camera.height, camera.width)
            blind[key] = None if bool(seen.all()) else ~seen
    return blind


def _near(frames: tuple[Frame, ...], entries: list[_Entry], placement: Placement) -> float:
    """A twentieth of the cameras' usual distance from the centre, or just before what the file says is nearest."""
    near = 0.05 * float(torch.stack([f.camera.position.norm() for f in frames]).median())
    stated = [e.near_far[0] for e in entries if e.near_far is not None]
    return max(near, 0.9 * min(stated) / placement.half) if stated else near


def _memory(entry: _Entry, options: LoadOptions) -> int:
    camera = entry.camera.downscaled(options.downscale)
    per_pixel = entry.channels + (entry.mask is not None)
    per_pixel += 4 * (entry.depth is not None) + 6 * (entry.normal is not None)
    return camera.width * camera.height * per_pixel


def _read_frame(entry: _Entry, options: LoadOptions, blind: Tensor | None) -> Frame:
    """Decode one entry; the pose is still the file's. ``blind`` (H, W) is where the lens sees nothing."""
    camera = entry.camera.downscaled(options.downscale)
    colors, alphas = images.read_image(entry.image, options.downscale)
    if alphas is not None and int(alphas.min()) == 255:
        alphas = None  # an alpha channel that says nothing
    mask = None
    if entry.mask is not None and options.masks is MaskUse.ALPHA:
        alphas = images.read_silhouette(entry.mask, options.downscale)
        _check_size(entry.mask, alphas, camera)
    elif entry.mask is not None:
        mask = images.read_mask(entry.mask, options.downscale)
        _check_size(entry.mask, mask, camera)
    if blind is not None:
        mask = ~blind if mask is None else mask & ~blind
    ray_depths, normals = _read_depths(entry, options, camera), _read_normals(entry, options, camera)
    return Frame(entry.name, camera, colors, entry.split, alphas, mask, ray_depths, normals, image_path=entry.image)


def _read_depths(entry: _Entry, options: LoadOptions, camera: Camera) -> Tensor | None:
    """(H, W) along the rays, in the file's units."""
    if entry.depth is None:
        return None
    if not entry.depth.is_file():
        raise SceneError(f"{entry.depth}: expected depths, found no such file; restore it or remove depth_file_path")
    z_depths = depths.read_depth(entry.depth, entry.depth_unit, options.downscale)
    _check_size(entry.depth, z_depths, camera)
    axis = camera.directions()[:, 2].reshape(camera.height, camera.width).float()
    return torch.where(axis > 1e-3, z_depths / axis.clamp_min(1e-3), 0.0)


def _read_normals(entry: _Entry, options: LoadOptions, camera: Camera) -> Tensor | None:
    """(H, W, 3) float16 in the file's world."""
    if entry.normal is None:
        return None
    if not entry.normal.is_file():
        raise SceneError(f"{entry.normal}: expected normals, found no such file; restore it or remove normal_file_path")
    normals = read_normals(entry.normal, options.downscale)
    _check_size(entry.normal, normals, camera)
    if entry.normal_axes is Axes.OPENGL:
        normals = normals * normals.new_tensor([1.0, -1.0, -1.0])
    if entry.normal_axes is not Axes.WORLD:
        normals = normals @ camera.camera_to_world[:3, :3].T.to(normals)
    return normals.half()


def _check_size(path: Path, values: Tensor, camera: Camera) -> None:
    if tuple(values.shape[:2]) != (camera.height, camera.width):
        raise SceneError(
            f"{path}: expected the image's size {camera.width} x {camera.height}, "
            f"got {values.shape[1]} x {values.shape[0]}; resize it"
        )


def _move(frame: Frame, json_to_scene: Tensor, scale: float) -> Frame:
    camera = frame.camera
    pose = transform_poses(json_to_scene, camera.camera_to_world).float()
    distortion = None if camera.distortion is None else camera.distortion.float()
    camera = replace(camera, K=camera.K.float(), camera_to_world=pose, distortion=distortion)
    ray_depths = None if frame.depths is None else frame.depths * scale
    turn = (json_to_scene[:3, :3] / similarity_scale(json_to_scene)).float()
    normals = None if frame.normals is None else (frame.normals.float() @ turn.T).half()
    return replace(frame, camera=camera, depths=ray_depths, normals=normals)


def _place(
    folder: Path, head: Mapping[str, Any], entries: list[_Entry], frames: list[Frame], background: Tensor | None
) -> Placement:
    """Where the content is, from what the file says or from the cameras and silhouettes."""
    cameras = [f.camera for f in frames]
    if "aabb_scale" in head:
        return _instant_ngp(entries[0].name, head)
    if (folder / "cameras_sphere.npz").is_file():  # poses already put the object into the unit sphere (IDR, NeuS)
        cut_out = all(f.mask is not None or f.alphas is not None for f in frames)
        return Placement(torch.zeros(3, dtype=torch.float64), 1.0, 1 if cut_out else 5)
    if any(f.alphas is not None for f in frames) or background is not None:
        if background is None and is_nerf_synthetic(cameras):
            return Placement(torch.zeros(3, dtype=torch.float64), 1.5)
        silhouette: Callable[[Frame], Tensor] = lambda f: _silhouette(f, background)  # noqa: E731
        return place_object(cameras, [silhouette(f) for f in frames])
    ranges = [e.near_far for e in entries if e.near_far is not None]
    near_far = (min(n for n, _ in ranges), max(f for _, f in ranges)) if ranges else None
    return place_capture(cameras, near_far)


def _silhouette(frame: Frame, background: Tensor | None) -> Tensor:
    if frame.alphas is not None:
        return frame.alphas >= 128
    if background is None:
        return torch.ones(frame.colors.shape[:2], dtype=torch.bool)
    return ((frame.colors.float() / 255 - background).abs() > 0.04).any(-1)


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
