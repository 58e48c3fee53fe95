"""Agisoft Metashape: the XML of File > Export > Export Cameras, beside the photographs or their ``images`` folder.

Poses are camera-to-chunk with OpenCV axes; the chunk's (or component's) transform leads to the user's world. Pixel
positions count from the image's corner, the principal point from its middle. Lens terms (appendix C of Metashape's
manual): k1 k2 k3 are OpenCV's, p1 and p2 are exchanged, b1 is fx - fy; k4 and b2 have no counterpart here: refused.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

from ..geometry.cameras import Camera, intrinsics
from ..geometry.transforms import similarity
from ..geometry.types import CameraModel
from . import images
from .capture import Capture, Shot, build, fitted_to_image, rigid_pose
from .json_files import numbers
from .masks import with_masks
from .photo_folders import IMAGE_ENDINGS, PhotoFolder, choose_folder
from .scene import LoadOptions, Scene, SceneError

PREFERENCE = 5


def matches(root: Path) -> bool:
    """Such an XML, or a folder with one."""
    return _file(root) is not None


def load(root: Path, options: LoadOptions) -> Scene:
    """Read the cameras and photographs. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the XML says of the largest component; shots in sorted order of their labels."""
    file = _file(root)
    assert file is not None
    try:
        chunk = ElementTree.parse(file).getroot().find("chunk")
    except (ElementTree.ParseError, OSError, UnicodeDecodeError) as error:
        raise SceneError(f"{file}: expected whole XML, got {error}; export the cameras again") from None
    cameras = [] if chunk is None else [c for c in chunk.iter("camera") if c.get("enabled", "1") not in ("0", "false")]
    aligned = [c for c in cameras if c.find("transform") is not None]
    if chunk is None or not aligned:
        raise SceneError(f"{file}: expected aligned cameras, found none; align the photos and export the cameras again")
    component = Counter(c.get("component_id") for c in aligned).most_common(1)[0][0]
    kept = sorted((c for c in aligned if c.get("component_id") == component), key=lambda c: c.get("label", ""))
    warnings: tuple[str, ...] = ()
    if len(kept) < len(cameras):
        warnings += (f"{len(cameras) - len(kept)} of {len(cameras)} photographs left out: not aligned with the others",)
    photos = choose_folder(file.parent, options.downscale) or PhotoFolder(file.parent, 1)
    sensors = {s.get("id"): s for s in chunk.iter("sensor")}
    shots = [_shot(file, photos, camera, sensors) for camera in kept]
    with_mask, found = with_masks(file.parent, shots, [s.name for s in shots], photos.suffix)
    return Capture(
        format="Metashape XML",
        name=file.resolve().parent.name,
        source=file,
        shots=tuple(with_mask),
        to_world=_to_world(file, chunk, component),
        warnings=warnings + found,
    )


def _file(root: Path) -> Path | None:
    files = [root] if root.is_file() else sorted(root.glob("*.xml")) if root.is_dir() else []
    return next((f for f in files if f.suffix.lower() == ".xml" and _is_metashape(f)), None)


def _is_metashape(file: Path) -> bool:
    with open(file, "rb") as opened:
        start = opened.read(2000)
    return b"<document" in start and b"<chunk" in start


def _shot(
    file: Path, photos: PhotoFolder, camera: ElementTree.Element, sensors: dict[str | None, ElementTree.Element]
) -> Shot:
    label = camera.get("label", "")
    what = f"{file}: camera {label}"
    path = _photo(photos.path, label)
    if path is None:
        raise SceneError(f"{what}: expected its photograph in {photos.path}, found none; put the photographs there")
    pose = rigid_pose(f"{what}: transform", _numbers(what, camera.find("transform"), 16).reshape(4, 4))
    sensor = sensors.get(camera.get("sensor_id"))
    if sensor is None:
        raise SceneError(f"{what}: expected a sensor of the file, got {camera.get('sensor_id')}; export again")
    facts = images.image_facts(path)
    stated = _camera(what, sensor, pose)
    name = path.relative_to(photos.path).as_posix()
    return Shot(name, fitted_to_image(what, stated, facts), path, facts.channels, shrunk=photos.shrunk)


def _photo(folder: Path, label: str) -> Path | None:
    for ending in ("", *IMAGE_ENDINGS, *(e.upper() for e in IMAGE_ENDINGS)):
        path = folder / f"{label}{ending}"
        if path.is_file():
            return path
    return None


def _camera(what: str, sensor: ElementTree.Element, pose: Tensor) -> Camera:
    kind = sensor.get("type", "frame")
    calibrations = sensor.findall("calibration")
    adjusted = [c for c in calibrations if c.get("class") == "adjusted"] or calibrations
    resolution = sensor.find("resolution")
    if resolution is None:
        raise SceneError(f"{what}: sensor: expected a resolution, found none; export the cameras again")
    size = numbers(f"{what}: resolution", [_float(resolution.get(k)) for k in ("width", "height")], 2)
    width, height = (int(v) for v in size)
    if kind == "spherical":
        return Camera.equirectangular(width, height, pose)
    if kind not in ("frame", "fisheye") or not adjusted:
        raise SceneError(
            f"{what}: sensor: expected a calibrated frame, fisheye or spherical camera, got {kind}; align the photos "
            "with a known camera type, or export undistorted photos"
        )
    get = lambda key: float(_numbers(f"{what}: {key}", adjusted[0].find(key), 1, 0.0))  # noqa: E731
    focal = get("f")
    if focal <= 0:
        raise SceneError(f"{what}: f: expected a focal length above 0, got {focal:g}; export the cameras again")
    k, p1, p2 = [get(f"k{i}") for i in range(1, 5)], get("p1"), get("p2")
    refused = {"b2": get("b2"), "k4": k[3] if kind == "frame" else 0.0, "p3": get("p3"), "p4": get("p4")}
    refused |= {"p1": p1, "p2": p2} if kind == "fisheye" else {}
    if any(refused.values()):
        bad = ", ".join(name for name, value in refused.items() if value)
        raise SceneError(
            f"{what}: expected a {kind} lens without {bad}; optimize the cameras without them "
            "(Tools > Optimize Cameras), or export undistorted photos"
        )
    K = intrinsics(focal + get("b1"), focal, width / 2 + get("cx"), height / 2 + get("cy"), pose)
    if kind == "fisheye":
        return Camera(K, pose, width, height, CameraModel.FISHEYE, torch.tensor(k, dtype=torch.float64))
    lens = [k[0], k[1], p2, p1, k[2]]
    if not any(lens):
        return Camera(K, pose, width, height)
    return Camera(K, pose, width, height, CameraModel.OPENCV, torch.tensor(lens, dtype=torch.float64))


def _to_world(file: Path, chunk: ElementTree.Element, component: str | None) -> Tensor:
    """(4, 4) similarity from the chunk's (or the component's) frame to the world."""
    places = [c for c in chunk.iter("component") if component is not None and c.get("id") == component]
    transform = next((t for t in (p.find("transform") for p in [*places, chunk]) if t is not None), None)
    if transform is None or transform.find("rotation") is None:
        return torch.eye(4, dtype=torch.float64)
    what = f"{file}: transform"
    rotation = _numbers(what, transform.find("rotation"), 9).reshape(3, 3)
    shift = _numbers(what, transform.find("translation"), 3, 0.0)
    rigid = rigid_pose(what, torch.cat([rotation, shift[:, None]], 1))
    return similarity(_numbers(what, transform.find("scale"), 1, 1.0), rigid[:3, :3], rigid[:3, 3])


def _numbers(what: str, element: ElementTree.Element | None, count: int, default: float | None = None) -> Tensor:
    if element is None and default is not None:
        return torch.full((count,), default, dtype=torch.float64).squeeze()
    words = [] if element is None or element.text is None else element.text.split()
    return numbers(what, [_float(w) for w in words], count)


def _float(word: str | None) -> float | None:
    try:
        return float(word) if word is not None else None
    except ValueError:
        return None
