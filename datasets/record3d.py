"""Record3D's export "EXR + RGB": ``metadata.json``, ``rgb/0.jpg, 1.jpg, ...`` and ``depth/0.exr, ...``.

``poses`` are quaternions x y z w and positions, camera-to-world with OpenGL axes; ``K`` lists its columns;
``perFrameIntrinsicCoeffs`` (fx, fy, cx, cy) win over it. Depths are metres on a coarser grid over the same view.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..geometry.cameras import Camera, intrinsics
from ..geometry.transforms import opengl_to_opencv, quaternion_to_matrix, rigid
from . import images
from .capture import Capture, Shot, build, fitted_to_image
from .json_files import numbers, read_json
from .masks import with_masks
from .photo_folders import by_number, photos_in
from .scene import LoadOptions, Scene, SceneError

PREFERENCE = 5
FILE = "metadata.json"
FOLDERS = ("rgb", "rgbd", "images")


def matches(root: Path) -> bool:
    """A folder with ``metadata.json`` and ``rgb``."""
    return (root / FILE).is_file() and any(photos_in(root / name) for name in FOLDERS)


def load(root: Path, options: LoadOptions) -> Scene:
    """Read the export. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the files say; photographs in order of their numbers."""
    file = root / FILE
    data = read_json(file)
    if not isinstance(data, dict) or not isinstance(data.get("poses"), list):
        raise SceneError(f"{file}: expected an object with poses, found none; export from Record3D again")
    folder = next(root / name for name in FOLDERS if photos_in(root / name))
    photos = sorted(photos_in(folder), key=by_number)
    if len(photos) != len(data["poses"]):
        raise SceneError(
            f"{file}: expected as many photographs as poses ({len(data['poses'])}), found {len(photos)} in {folder}; "
            "export from Record3D again"
        )
    width, height = (int(v) for v in numbers(f"{file}: w, h", [data.get("w"), data.get("h")], 2))
    has_depths, warnings = _depths(root)
    shots = []
    for index, (path, row) in enumerate(zip(photos, data["poses"], strict=True)):
        pose = numbers(f"{file}: poses: {index}", row, 7)
        if float(pose[:4].norm()) < 1e-6:
            raise SceneError(f"{file}: poses: {index}: expected a rotation, got {row}; export from Record3D again")
        matrix = opengl_to_opencv(rigid(quaternion_to_matrix(pose[[3, 0, 1, 2]]), pose[4:]))
        fx, fy, cx, cy = _intrinsics(file, data, index)
        facts = images.image_facts(path)
        camera = Camera(intrinsics(fx, fy, cx, cy, matrix), matrix, width, height)
        camera = fitted_to_image(str(path), camera, facts)
        depth = root / "depth" / f"{path.stem}.exr" if has_depths else None
        if depth is None or not depth.is_file():
            shots.append(Shot(path.name, camera, path, facts.channels))
            continue
        grid = [int(v) for v in numbers(f"{file}: dw, dh", [data.get("dw", width), data.get("dh", height)], 2)]
        shots.append(Shot(path.name, camera, path, facts.channels, depth=depth, depth_camera=camera.resized(*grid)))
    with_mask, found = with_masks(root, shots, [s.name for s in shots])
    return Capture(
        format="Record3D, EXR + RGB",
        name=root.resolve().name,
        source=file,
        shots=tuple(with_mask),
        warnings=warnings + found,
    )


def _depths(root: Path) -> tuple[bool, tuple[str, ...]]:
    """Whether depths are there and can be read."""
    if next((root / "depth").glob("*.exr"), None) is None:
        return False, ()
    if importlib.util.find_spec("OpenEXR") is None:
        return False, ("depth maps are left out: reading .exr needs pip install polyfield[exr]",)
    return True, ()


def _intrinsics(file: Path, data: dict[str, object], index: int) -> list[float]:
    """fx, fy, cx, cy of one photograph."""
    each = data.get("perFrameIntrinsicCoeffs")
    if isinstance(each, list) and index < len(each):
        found = numbers(f"{file}: perFrameIntrinsicCoeffs: {index}", each[index], 4).tolist()
    else:
        K = numbers(f"{file}: K", data.get("K"), 9).tolist()
        found = [K[0], K[4], K[6], K[7]]
    if min(found[:2]) <= 0:
        raise SceneError(f"{file}: expected focal lengths above 0, got {found[:2]}; export from Record3D again")
    return found
