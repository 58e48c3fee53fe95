"""COLMAP's sparse models as they are: cameras, images and points, from binary or text files, and back to text.

Schönberger and Frahm 2016; the layout is that of COLMAP's documentation ("Output Format"). Poses are world-to-camera
(unit quaternion w x y z, translation), pixel positions have the first pixel's centre at (0.5, 0.5). Numbers go through
text without loss.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .scene import SceneError

# Names in the order of their numbers in binary files, each with how many parameters it has.
MODELS = {
    "SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8, "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12, "FOV": 5, "SIMPLE_RADIAL_FISHEYE": 4, "RADIAL_FISHEYE": 5, "THIN_PRISM_FISHEYE": 12,
    "RAD_TAN_THIN_PRISM_FISHEYE": 16,
}  # fmt: skip
PARTS = ("cameras", "images", "points3D")


@dataclass(frozen=True)
class ModelCamera:
    """Intrinsics, shared by any number of images."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class ModelImage:
    """One registered image."""

    name: str
    camera: int
    quat: tuple[float, ...]  # world to camera, w x y z
    translation: tuple[float, ...]
    pixels: np.ndarray  # (K, 2) float64 key points
    points: np.ndarray  # (K,) int64 ids of their points, -1 = none


@dataclass(frozen=True)
class ModelPoints:
    """All points; the tracks of point i are rows offsets[i] to offsets[i + 1] of ``tracks``."""

    ids: np.ndarray  # (N,) int64
    positions: np.ndarray  # (N, 3) float64
    colors: np.ndarray  # (N, 3) uint8
    errors: np.ndarray  # (N,) float64 mean reprojection error, pixels
    offsets: np.ndarray  # (N + 1,) int64
    tracks: np.ndarray  # (T, 2) uint32 image id, index of the key point

    @property
    def lengths(self) -> np.ndarray:
        """(N,) how many images see each."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Model:
    """A sparse model."""

    cameras: dict[int, ModelCamera]
    images: dict[int, ModelImage]
    points: ModelPoints | None  # None if there is no such file


def part_file(folder: Path, part: str) -> Path | None:
    """The file of one part (``cameras``, ``images``, ``points3D``), binary before text; None if there is none."""
    return next((p for p in (folder / f"{part}.bin", folder / f"{part}.txt") if p.is_file()), None)


def read_model(folder: Path) -> Model:
    """Read all parts of a model. Raises SceneError naming the file and the remedy."""
    files = {part: part_file(folder, part) for part in PARTS}
    for part in PARTS[:2]:
        if files[part] is None:
            raise SceneError(
                f"{folder}: expected a COLMAP model, found no {part}.bin or {part}.txt; export the whole model "
                "(cameras, images and points3D)"
            )
    cameras, images, points = (None if f is None else read_part(f) for f in files.values())
    assert cameras is not None and images is not None
    for image in images.values():
        if image.camera not in cameras:
            raise SceneError(
                f"{files['images']}: {image.name}: expected a camera of {files['cameras']}, got number "
                f"{image.camera}; the files belong to different models"
            )
    return Model(cameras, images, points)


def read_part(path: Path) -> Any:
    """One file: {id: ModelCamera}, {id: ModelImage} or ModelPoints, as its name says."""
    read = {
        "cameras.bin": _binary_cameras, "images.bin": _binary_images, "points3D.bin": _binary_points,
        "cameras.txt": _text_cameras, "images.txt": _text_images, "points3D.txt": _text_points,
    }[path.name]  # fmt: skip
    try:
        return read(_Bytes(path) if path.suffix == ".bin" else path.read_text(encoding="utf-8"), path)  # type: ignore[operator]
    except (struct.error, IndexError):
        raise SceneError(f"{path}: expected a whole COLMAP file, got one cut short; copy or export it again") from None
    except (ValueError, OverflowError) as error:
        if isinstance(error, SceneError):
            raise
        raise SceneError(f"{path}: expected a COLMAP file, got {error}; export it again") from None
    except OSError as error:
        raise SceneError(f"{path}: expected a readable file, got {error}") from None


class _Bytes:
    """A binary file, read from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.at = 0

    def take(self, layout: str) -> tuple[Any, ...]:
        """Numbers of a ``struct`` layout, little endian. Raises struct.error past the end."""
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: Any, count: int) -> np.ndarray:
        """``count`` rows of a numpy dtype. Raises IndexError past the end."""
        size = np.dtype(dtype).itemsize * count
        if self.at + size > len(self.data):
            raise IndexError
        rows = np.frombuffer(self.data, dtype, count, self.at)
        self.at += size
        return rows

    def text(self) -> str:
        """Up to the next zero byte."""
        end = self.data.index(b"\0", self.at) if b"\0" in self.data[self.at : self.at + 4096] else -1
        if end < 0:
            raise IndexError
        name = self.data[self.at : end].decode("utf-8", "surrogateescape")
        self.at = end + 1
        return name


def _binary_cameras(file: _Bytes, path: Path) -> dict[int, ModelCamera]:
    names = list(MODELS)
    cameras = {}
    for _ in range(file.take("Q")[0]):
        number, model, width, height = file.take("IiQQ")
        if not 0 <= model < len(names):
            raise _unknown(path, number, f"number {model}")
        cameras[number] = ModelCamera(names[model], width, height, file.take(f"{MODELS[names[model]]}d"))
    return cameras


def _binary_images(file: _Bytes, path: Path) -> dict[int, ModelImage]:
    images = {}
    for _ in range(file.take("Q")[0]):
        number, *pose, camera = file.take("I7dI")
        name = file.text()
        rows = file.array([("pixel", "<f8", 2), ("point", "<i8")], file.take("Q")[0])
        images[number] = ModelImage(name, camera, tuple(pose[:4]), tuple(pose[4:]), rows["pixel"], rows["point"])
    return images


def _binary_points(file: _Bytes, path: Path) -> ModelPoints:
    count = file.take("Q")[0]
    if count * 51 > len(file.data):
        raise IndexError
    heads, tracks, offsets = [], [], [0]
    for _ in range(count):
        *head, length = file.take("Q3d3BdQ")
        heads.append(head)
        tracks.append(file.array("<u4", 2 * length))
        offsets.append(offsets[-1] + length)
    flat = np.concatenate(tracks) if tracks else np.zeros(0, np.uint32)
    return _points(heads, offsets, flat)


def _points(heads: list[list[Any]], offsets: list[int], tracks: np.ndarray) -> ModelPoints:
    return ModelPoints(
        np.array([h[0] for h in heads], np.int64),
        np.array([h[1:4] for h in heads], np.float64).reshape(-1, 3),
        np.array([h[4:7] for h in heads], np.uint8).reshape(-1, 3),
        np.array([h[7] for h in heads], np.float64),
        np.array(offsets, np.int64),
        tracks.astype(np.uint32).reshape(-1, 2),
    )


def _rows(text: str) -> Iterator[list[str]]:
    """Words of every line that is neither empty nor a comment."""
    return (line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def _text_cameras(text: str, path: Path) -> dict[int, ModelCamera]:
    cameras = {}
    for number, model, width, height, *params in _rows(text):
        if model not in MODELS:
            raise _unknown(path, int(number), model)
        if len(params) != MODELS[model]:
            raise ValueError(f"{len(params)} parameters instead of {MODELS[model]} for camera {number}, a {model}")
        cameras[int(number)] = ModelCamera(model, int(width), int(height), tuple(map(float, params)))
    return cameras


def _text_images(text: str, path: Path) -> dict[int, ModelImage]:
    images = {}
    lines = iter(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        rows = np.array(next(lines, "").split(), np.float64).reshape(-1, 3)
        images[int(words[0])] = ModelImage(
            words[9].rstrip(), int(words[8]), tuple(map(float, words[1:5])), tuple(map(float, words[5:8])),
            rows[:, :2].copy(), rows[:, 2].astype(np.int64),
        )  # fmt: skip
    return images


def _text_points(text: str, path: Path) -> ModelPoints:
    heads, tracks, offsets = [], [], [0]
    for words in _rows(text):
        heads.append([int(words[0]), *map(float, words[1:4]), *map(int, words[4:7]), float(words[7])])
        tracks.append(np.array(words[8:], np.int64))
        offsets.append(offsets[-1] + len(words[8:]) // 2)
    return _points(heads, offsets, np.concatenate(tracks) if tracks else np.zeros(0))


def _unknown(path: Path, camera: int, got: str) -> SceneError:
    return SceneError(
        f"{path}: camera {camera}: expected one of COLMAP's models {', '.join(MODELS)}, got {got}; undistort the "
        "images with `colmap image_undistorter` and open its output"
    )


def write_text(model: Model, folder: Path) -> None:
    """Write cameras.txt, images.txt and points3D.txt; read again, every number is the same to the bit."""
    from ..geometry.whole_file import write_whole_file

    def put(name: str, lines: Iterator[str]) -> None:
        data = "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
        write_whole_file(folder / name, lambda file: file.write(data))

    folder.mkdir(parents=True, exist_ok=True)
    put("cameras.txt", _camera_lines(model))
    put("images.txt", _image_lines(model))
    if model.points is not None:
        put("points3D.txt", _point_lines(model.points))


def _words(values: Any) -> str:
    return " ".join(repr(v) for v in (values.tolist() if isinstance(values, np.ndarray) else values))


def _camera_lines(model: Model) -> Iterator[str]:
    yield "# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"
    for number, c in model.cameras.items():
        yield f"{number} {c.model} {c.width} {c.height} {_words(c.params)}"


def _image_lines(model: Model) -> Iterator[str]:
    yield "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of X Y POINT3D_ID"
    for number, i in model.images.items():
        yield f"{number} {_words(i.quat)} {_words(i.translation)} {i.camera} {i.name}"
        yield " ".join(f"{_words(p)} {q}" for p, q in zip(i.pixels, i.points.tolist(), strict=True))


def _point_lines(points: ModelPoints) -> Iterator[str]:
    yield "# POINT3D_ID X Y Z R G B ERROR TRACK[] of IMAGE_ID POINT2D_IDX"
    for i, number in enumerate(points.ids.tolist()):
        track = points.tracks[points.offsets[i] : points.offsets[i + 1]].reshape(-1)
        head = f"{number} {_words(points.positions[i])} {_words(points.colors[i])} {float(points.errors[i])!r}"
        yield f"{head} {_words(track)}".rstrip()
