"""A capture as its files state it, before any image is decoded, and the scene that is made of it.

A format's ``read`` yields a ``Capture`` in the data set's own frame and float64; ``build`` decodes the images, holds
views out, finds where the content is and moves everything into the scene's frame. So formats differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..geometry.cameras import Camera, downscaled_size
from ..geometry.transforms import similarity_inverse, similarity_scale, transform_points, transform_poses
from ..geometry.types import Aabb
from . import depths, image_cache, images
from .cut_out import cut_out, plain_background
from .normalize import Placement, is_nerf_synthetic, place_capture, place_object
from .normals import Axes, read_normals
from .scene import Frame, LoadOptions, MaskUse, Scene, SceneError, Split
from .seen_points import SeenPoints


@dataclass(frozen=True)
class Shot:
    """One photograph as the files state it."""

    name: str
    camera: Camera  # of the image as it lies in its file; the data set's frame, OpenCV axes, float64
    image: Path
    channels: int  # 3, or 4 with alpha
    split: Split = Split.TRAIN
    shrunk: int = 1  # of the downscale asked for, how much the file has had already
    mask: Path | None = None
    depth: Path | None = None
    depth_unit: float | None = None
    depth_camera: Camera | None = None  # where depths have pixels of their own; same axes and centre as ``camera``
    normal: Path | None = None
    normal_axes: Axes = Axes.OPENGL
    near_far: tuple[float, float] | None = None
    seen: SeenPoints | None = None  # the data set's frame, float64


@dataclass(frozen=True)
class Capture:
    """What a data set's files say."""

    format: str  # in words, for people
    name: str
    source: Path  # the file or folder that a message names
    shots: tuple[Shot, ...]  # in sorted order of their names
    to_world: Tensor = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))  # similarity: to user's units
    splits_stated: bool = False  # the data set says which views are held out
    first_held_out: int = 0  # otherwise: which of each ``LoadOptions.hold_out`` views
    placement: Placement | None = None  # where the content is, if the files say so
    unit_sphere: bool = False  # poses put the object into the unit sphere already (IDR, NeuS)
    points: Tensor | None = None  # (N, 3) float64, the data set's frame
    point_colors: Tensor | None = None  # (N, 3) float32 in [0, 1]
    warnings: tuple[str, ...] = ()


def build(capture: Capture, options: LoadOptions, root: Path) -> Scene:
    """Decode the images and move everything into the scene's frame. Raises SceneError."""
    if len(capture.shots) < 2:
        raise SceneError(
            f"{capture.source}: expected two frames or more, got {len(capture.shots)}; one view holds no depth"
        )
    if options.masks is MaskUse.NONE:
        capture = replace(capture, shots=tuple(replace(s, mask=None) for s in capture.shots))
    shots = _hold_out(capture, options.hold_out)
    needed = sum(_memory(shot, options) for shot in shots)
    images.check_memory(needed, options.max_memory, options.downscale, capture.source)
    blind = _blind_pixels(shots, options.downscale)
    layouts = [_layout(shot, options) for shot in shots]
    planes, kept = image_cache.read_all(layouts, lambda i: _decode(shots[i], options), root, options.downscale)
    pairs = list(zip(shots, planes, strict=True))
    frames = images.in_threads(lambda p: _frame(*p, options.downscale, blind[lens_key(p[0].camera)]), pairs)
    background = None if any(f.alphas is not None for f in frames) else plain_background(frames)
    with images.one_torch_thread():
        placement = capture.placement or _place(capture, frames, background)
    if background is not None:
        frames = images.in_threads(lambda frame: cut_out(frame, background), frames)
    to_capture = placement.scene_to_world
    to_scene = similarity_inverse(to_capture)
    moved = tuple(_move(f, to_scene, 1 / placement.half) for f in frames)
    return Scene(
        name=capture.name,
        frames=moved,
        scene_to_world=capture.to_world @ to_capture,
        bounds=Aabb.cube(2.0 ** (placement.cascades - 1)),
        cascades=placement.cascades,
        near=_near(moved, shots, placement),
        background=background,
        points=None if capture.points is None else transform_points(to_scene, capture.points).float(),
        point_colors=capture.point_colors,
        source=root,
        notes=() if kept is None else (f"the pixels in use are kept in {kept}, for the next start",),
    )


def rigid_pose(what: str, rows: Any) -> Tensor:
    """Rows of a 4 x 4 (or 3 x 4) matrix -> (4, 4) float64, exactly rigid. Raises SceneError if it is not nearly so."""
    try:
        matrix = torch.as_tensor(rows, dtype=torch.float64).clone()
    except (TypeError, ValueError, RuntimeError):
        matrix = torch.empty(0)
    if tuple(matrix.shape) not in ((4, 4), (3, 4)):
        raise SceneError(f"{what}: expected 4 x 4 numbers, got {str(rows)[:60]}; export the file again")
    if not bool(matrix.isfinite().all()):
        raise SceneError(f"{what}: expected finite numbers, got NaN or infinity; remove the frame")
    if matrix.shape[0] == 3:
        matrix = torch.cat([matrix, matrix.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    rotation = matrix[:3, :3]
    u, singular, vt = torch.linalg.svd(rotation)
    off = float((singular - 1).abs().max())
    if off > 1e-2 or float(torch.linalg.det(rotation)) <= 0 or matrix[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        raise SceneError(
            f"{what}: expected a rotation and a shift, got scales {singular[0]:.3g}, "
            f"{singular[1]:.3g}, {singular[2]:.3g} and determinant {float(torch.linalg.det(rotation)):.3g}; "
            "export rigid camera poses"
        )
    matrix[:3, :3] = u @ vt
    return matrix


def fitted_to_image(what: str, camera: Camera, image: images.ImageFacts) -> Camera:
    """A camera that was calibrated at another size of the image (images_4), scaled by the exact ratio of the sizes."""
    width, height = camera.width, camera.height
    if (image.width, image.height) == (width, height):
        return camera
    if abs(image.height - height * image.width / width) <= 1 or abs(image.width - width * image.height / height) <= 1:
        return camera.resized(image.width, image.height)
    if image.turned:
        raise SceneError(
            f"{what}: expected an image of {width} x {height}, got one of {image.width} x {image.height} when turned "
            "as its EXIF orientation says; if the camera was calibrated for the pixels as stored, remove the tag from "
            "the images (exiftool -Orientation= FILES)"
        )
    raise SceneError(
        f"{what}: expected an image of {width} x {height} or that shape, got {image.width} x {image.height}; use the "
        "images that the cameras were calibrated for"
    )


def plausible(what: str, camera: Camera) -> Camera:
    """The camera. Raises SceneError if its intrinsics are those of another image, or of none."""
    fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if not (fx > 0 and fy > 0 and 0 <= cx <= camera.width and 0 <= cy <= camera.height):
        raise SceneError(
            f"{what}: expected focal lengths above 0 and a principal point inside the image of {camera.width} x "
            f"{camera.height}, got {fx:.1f}, {fy:.1f} and ({cx:.1f}, {cy:.1f}); use the images that the camera was "
            "calibrated for"
        )
    return camera


def lens_key(camera: Camera) -> tuple[object, ...]:
    """What decides which pixels a camera's lens can see: equal for the frames of one camera."""
    distortion = () if camera.distortion is None else tuple(camera.distortion.tolist())
    return (camera.model, camera.width, camera.height, tuple(camera.K.flatten().tolist()), distortion)


def _hold_out(capture: Capture, every: int) -> list[Shot]:
    """Every so many-th shot becomes a test view, unless the data set said which."""
    shots = list(capture.shots)
    if capture.splits_stated or every < 1 or any(s.split is not Split.TRAIN for s in shots):
        return shots
    first = capture.first_held_out % every
    return [replace(s, split=Split.TEST) if i % every == first else s for i, s in enumerate(shots)]


def _remaining(shot: Shot, options_downscale: int) -> int:
    return max(1, options_downscale // shot.shrunk)


def _memory(shot: Shot, options: LoadOptions) -> int:
    camera = shot.camera.downscaled(_remaining(shot, options.downscale))
    per_pixel = shot.channels + (shot.mask is not None) + 4 * (shot.depth is not None) + 6 * (shot.normal is not None)
    return camera.width * camera.height * per_pixel


def _blind_pixels(shots: Sequence[Shot], downscale: int) -> dict[tuple[object, ...], Tensor | None]:
    """Per distinct lens: the pixels (H, W) bool where it sees nothing, None if there are none."""
    blind: dict[tuple[object, ...], Tensor | None] = {}
    for shot in shots:
        key = lens_key(shot.camera)
        if key not in blind:
            camera = shot.camera.downscaled(_remaining(shot, downscale))
            seen = camera.sees().reshape(camera.height, camera.width)
            blind[key] = None if bool(seen.all()) else ~seen
    return blind


def _layout(shot: Shot, options: LoadOptions) -> image_cache.Layout:
    """What ``_decode`` will yield."""
    downscale = _remaining(shot, options.downscale)
    camera, silhouette = shot.camera.downscaled(downscale), options.masks is MaskUse.ALPHA
    masked = shot.mask is not None
    return image_cache.Layout(
        camera.width,
        camera.height,
        alphas=shot.channels == 4 or (masked and silhouette),
        mask=masked and not silhouette,
        full=shot.camera.width * shot.camera.height,
        files=(shot.image,) if shot.mask is None else (shot.image, shot.mask),
        how=f"shrunk {downscale}, masks {options.masks.value}",
    )


def _decode(shot: Shot, options: LoadOptions) -> image_cache.Planes:
    """A photograph and its mask, right-sized."""
    downscale = _remaining(shot, options.downscale)
    camera = shot.camera.downscaled(downscale)
    colors, alphas = images.read_image(shot.image, downscale)
    mask = None
    if shot.mask is not None:
        factor = _mask_factor(shot.mask, camera, downscale)
        if options.masks is MaskUse.ALPHA:
            alphas = images.read_silhouette(shot.mask, factor)
            _check_size(shot.mask, alphas, camera)
        else:
            mask = images.read_mask(shot.mask, factor, white_counts=options.masks is not MaskUse.IGNORE_WHITE)
            _check_size(shot.mask, mask, camera)
    return image_cache.Planes(colors, alphas, mask)


def _frame(shot: Shot, planes: image_cache.Planes, downscale: int, blind: Tensor | None) -> Frame:
    """A shot with its pixels; the pose is still the data set's. ``blind`` (H, W) is where the lens sees nothing."""
    downscale = _remaining(shot, downscale)
    camera = shot.camera.downscaled(downscale)
    colors, alphas, mask = planes
    if alphas is not None and int(alphas.min()) == 255:
        alphas = None  # an alpha channel that says nothing
    if blind is not None:
        mask = ~blind if mask is None else mask & ~blind
    ray_depths = None if shot.depth is None else _ray_depths(shot, shot.depth, camera, downscale)
    normals = None if shot.normal is None else _normals(shot, shot.normal, camera, downscale)
    known = dict(depths=ray_depths, normals=normals, seen=shot.seen)
    return Frame(shot.name, camera, colors, shot.split, alphas, mask, image_path=shot.image, **known)  # type: ignore[arg-type]


def _mask_factor(path: Path, camera: Camera, usual: int) -> int:
    """By how much a mask has to be shrunk: it may be that of the photograph before that was shrunk (images_4)."""
    facts = images.image_facts(path)
    factor = max(1, round(facts.width / camera.width))
    fits = downscaled_size(facts.width, facts.height, factor) == (camera.width, camera.height)
    return factor if fits else usual


def _ray_depths(shot: Shot, path: Path, camera: Camera, downscale: int) -> Tensor:
    """(H, W) float32 along the ray; 0 where unknown. Depths with pixels of their own are looked up, not blended."""
    if not path.is_file():
        raise SceneError(f"{path}: expected depths, found no such file; restore it or remove depth_file_path")
    directions = camera.directions().double()
    if shot.depth_camera is None:
        z_depths = depths.read_depth(path, shot.depth_unit, downscale)
        _check_size(path, z_depths, camera)
    else:
        grid, sensor = depths.read_depth(path, shot.depth_unit), shot.depth_camera
        _check_size(path, grid, sensor)
        local = replace(sensor, camera_to_world=torch.eye(4, dtype=torch.float64))
        pixels = local.project(directions)[0].nan_to_num(-1.0).floor().long()
        inside = ((pixels >= 0) & (pixels < pixels.new_tensor([sensor.width, sensor.height]))).all(-1)
        x, y = pixels.clamp_min(0).unbind(-1)
        found = grid[y.clamp_max(sensor.height - 1), x.clamp_max(sensor.width - 1)]
        z_depths = torch.where(inside, found, 0.0).reshape(camera.height, camera.width)
    axis = directions[:, 2].reshape(camera.height, camera.width).float()
    return torch.where(axis > 1e-3, z_depths / axis.clamp_min(1e-3), 0.0)


def _normals(shot: Shot, path: Path, camera: Camera, downscale: int) -> Tensor:
    """(H, W, 3) float16 in the data set's frame."""
    if not path.is_file():
        raise SceneError(f"{path}: expected normals, found no such file; restore it or remove normal_file_path")
    normals = read_normals(path, downscale)
    _check_size(path, normals, camera)
    if shot.normal_axes is Axes.OPENGL:
        normals = normals * normals.new_tensor([1.0, -1.0, -1.0])
    if shot.normal_axes is not Axes.WORLD:
        normals = normals @ camera.camera_to_world[:3, :3].T.to(normals)
    return normals.half()


def _check_size(path: Path, values: Tensor, camera: Camera) -> None:
    if tuple(values.shape[:2]) != (camera.height, camera.width):
        raise SceneError(
            f"{path}: expected the image's size {camera.width} x {camera.height}, "
            f"got {values.shape[1]} x {values.shape[0]}; resize it"
        )


def _move(frame: Frame, to_scene: Tensor, scale: float) -> Frame:
    camera = frame.camera
    pose = transform_poses(to_scene, camera.camera_to_world).float()
    distortion = None if camera.distortion is None else camera.distortion.float()
    camera = replace(camera, K=camera.K.float(), camera_to_world=pose, distortion=distortion)
    ray_depths = None if frame.depths is None else frame.depths * scale
    turn = (to_scene[:3, :3] / similarity_scale(to_scene)).float()
    normals = None if frame.normals is None else (frame.normals.float() @ turn.T).half()
    seen = frame.seen
    if seen is not None:
        seen = SeenPoints(transform_points(to_scene, seen.positions).float(), seen.weights.float())
    return replace(frame, camera=camera, depths=ray_depths, normals=normals, seen=seen)


def _near(frames: tuple[Frame, ...], shots: Sequence[Shot], placement: Placement) -> float:
    """A twentieth of the cameras' usual distance from the centre, or just before what the file says is nearest."""
    near = 0.05 * float(torch.stack([f.camera.position.norm() for f in frames]).median())
    stated = [s.near_far[0] for s in shots if s.near_far is not None]
    return max(near, 0.9 * min(stated) / placement.half) if stated else near


def _place(capture: Capture, frames: list[Frame], background: Tensor | None) -> Placement:
    """Where the content is, from the cameras, silhouettes and points."""
    cameras = [f.camera for f in frames]
    if capture.unit_sphere:
        cut_out = all(f.mask is not None or f.alphas is not None for f in frames)
        return Placement(torch.zeros(3, dtype=torch.float64), 1.0, 1 if cut_out else 5)
    if any(f.alphas is not None for f in frames) or background is not None:
        if background is None and is_nerf_synthetic(cameras):
            return Placement(torch.zeros(3, dtype=torch.float64), 1.5)
        silhouette: Callable[[Frame], Tensor] = lambda f: _silhouette(f, background)  # noqa: E731
        return place_object(cameras, [silhouette(f) for f in frames])
    ranges = [s.near_far for s in capture.shots if s.near_far is not None]
    if ranges:
        near_far: tuple[float, float] | None = (min(n for n, _ in ranges), max(f for _, f in ranges))
    else:
        near_far = None if capture.points is None else depth_range(cameras, capture.points)
    return place_capture(cameras, near_far)


def depth_range(cameras: Sequence[Camera], points: Tensor) -> tuple[float, float] | None:
    """Nearest and farthest depth of points (N, 3) before the cameras, each without its outermost percent."""
    some = points[:: max(1, len(points) // 2000)]
    z = torch.cat([c.project(some)[1][_inside(c, some)] for c in cameras[:: max(1, len(cameras) // 50)]])
    z = z[z > 0]
    if len(z) < 20:
        return None
    near, far = torch.quantile(z[:: max(1, len(z) // 100_000)], z.new_tensor([0.01, 0.99])).tolist()
    return (near, far) if near < far else None


def _inside(camera: Camera, points: Tensor) -> Tensor:
    pixels, _ = camera.project(points)
    return ((pixels >= 0) & (pixels <= pixels.new_tensor([camera.width, camera.height]))).all(-1)


def _silhouette(frame: Frame, background: Tensor | None) -> Tensor:
    if frame.alphas is not None:
        return frame.alphas >= 128
    if background is None:
        return torch.ones(frame.colors.shape[:2], dtype=torch.bool)
    return ((frame.colors.float() / 255 - background).abs() > 0.04).any(-1)
