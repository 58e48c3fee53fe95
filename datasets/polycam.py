"""Polycam's raw data: ``keyframes/cameras/*.json``, ``images`` and ``depth`` (``corrected_*`` where there are such).

Poses t_00 ... t_23 are camera-to-world with OpenGL axes, y up, as ARKit has them; intrinsics count from the image's
corner. Depths are 16-bit millimetres on a coarser grid over the same view.
"""

from __future__ import annotations

from pathlib import Path

from ..geometry.cameras import Camera, intrinsics
from ..geometry.transforms import opengl_to_opencv
from . import images
from .capture import Capture, Shot, build, fitted_to_image, rigid_pose
from .json_files import numbers, read_json
from .masks import with_masks
from .scene import LoadOptions, Scene, SceneError

PREFERENCE = 5


def matches(root: Path) -> bool:
    """A folder with ``keyframes/cameras``, or such a ``keyframes`` folder."""
    return _keyframes(root) is not None


def load(root: Path, options: LoadOptions) -> Scene:
    """Read the keyframes. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the files say; keyframes in sorted order of their names, with depths where there are any."""
    folder = _keyframes(root)
    assert folder is not None
    corrected = (folder / "corrected_cameras").is_dir() and (folder / "corrected_images").is_dir()
    prefix = "corrected_" if corrected else ""
    shots = [_shot(folder, prefix, file) for file in sorted((folder / f"{prefix}cameras").glob("*.json"))]
    if not shots:
        raise SceneError(f"{folder}: expected keyframes in cameras/*.json, found none; export raw data again")
    with_mask, warnings = with_masks(folder, shots, [s.name for s in shots])
    if not corrected:
        warnings += ("poses are those of the live capture: no corrected_cameras (process it in Polycam first)",)
    return Capture(
        format=f"Polycam raw data, {prefix}cameras",
        name=folder.resolve().parent.name,
        source=folder,
        shots=tuple(with_mask),
        warnings=warnings,
    )


def _keyframes(root: Path) -> Path | None:
    return next((p for p in (root / "keyframes", root) if (p / "cameras").is_dir() and _has_json(p / "cameras")), None)


def _has_json(folder: Path) -> bool:
    return next(folder.glob("*.json"), None) is not None


def _shot(folder: Path, prefix: str, file: Path) -> Shot:
    data = read_json(file)
    if not isinstance(data, dict):
        raise SceneError(f"{file}: expected an object, got something else; export raw data again")
    rows = [[data.get(f"t_{i}{j}") for j in range(4)] for i in range(3)]
    pose = opengl_to_opencv(rigid_pose(f"{file}: t_00 to t_23", rows))
    values = numbers(f"{file}: fx, fy, cx, cy, width, height",
                     [data.get(k) for k in ("fx", "fy", "cx", "cy", "width", "height")], 6)  # fmt: skip
    fx, fy, cx, cy, width, height = values.tolist()
    path = next((p for p in sorted((folder / f"{prefix}images").glob(f"{file.stem}.*"))), None)
    if path is None:
        raise SceneError(f"{file}: expected an image {prefix}images/{file.stem}.jpg, found none; export raw data again")
    camera = Camera(intrinsics(fx, fy, cx, cy, pose), pose, int(width), int(height))
    facts = images.image_facts(path)
    camera = fitted_to_image(str(path), camera, facts)
    depth = folder / "depth" / f"{file.stem}.png"
    if not depth.is_file():
        return Shot(path.name, camera, path, facts.channels)
    grid = images.image_facts(depth)
    sensor = camera.resized(grid.width, grid.height)
    return Shot(path.name, camera, path, facts.channels, depth=depth, depth_camera=sensor)
