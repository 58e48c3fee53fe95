"""Reading depth maps: PNG or TIFF in integers times a unit, .npy, .exr and .pfm in world units; 0 where unknown.

Of 16 bits, all ones is unknown as well, as depth cameras have it.

EXR files need the official OpenEXR bindings (``pip install polyfield[exr]``). Of several channels, the one that is
named as depth usually is counts: Z, V, Y, D or Depth (also behind a layer's name), else R, where all colours are equal.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import downscaled_size
from .images import open_image
from .scene import SceneError

MILLIMETRES = 1e-3
FAR = 1e9  # Blender writes 1e10 where it sees nothing
SATURATED = 65535
DEPTH_CHANNELS = ("z", "v", "depth", "d", "y")


def read_depth(path: Path, unit: float | None = None, downscale: int = 1) -> Tensor:
    """(H, W) float32 in world units; 0 where unknown.

    ``unit`` is that of the file's numbers: by default, millimetres in integer images, 1 elsewhere.
    Shrunk, a pixel is the mean of those of its depths that are known and within 5 % of the nearest: averaging across a
    silhouette would invent a surface between the two.
    """
    kind = path.suffix.lower()
    read = {".npy": _read_npy, ".exr": _read_exr, ".pfm": _read_pfm}.get(kind, _read_image)
    depth = read(path)
    if depth.ndim != 2:
        raise SceneError(
            f"{path}: expected depths of shape (H, W), got {depth.shape}; use 16-bit grey PNG, .npy, .exr or .pfm"
        )
    scale = unit if unit is not None else MILLIMETRES if read is _read_image else 1.0
    depth = depth.astype(np.float32) * np.float32(scale)
    known = np.isfinite(depth) & (depth > 0) & (depth < FAR * scale)
    return torch.from_numpy(_shrink(np.where(known, depth, np.float32(0)), downscale))


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False).squeeze()
    except (OSError, ValueError, EOFError) as error:
        raise SceneError(f"{path}: expected depths as a .npy array, got {error}; write it again") from None


def _read_image(path: Path) -> np.ndarray:
    with open_image(path) as image:
        if image.mode in ("1", "P"):
            raise SceneError(f"{path}: expected depths, got an image of mode {image.mode}; use 16-bit grey PNG")
        try:
            values = np.asarray(image)
            return np.where(values == SATURATED, 0, values) if image.mode.startswith("I") else values
        except (OSError, SyntaxError) as error:
            raise SceneError(f"{path}: expected a readable depth image, got {error}; write it again") from None


def _read_pfm(path: Path) -> np.ndarray:
    """A grey Portable FloatMap; its rows begin at the bottom."""
    try:
        with open(path, "rb") as file:
            kind, size, scale = (file.readline().split() for _ in range(3))
            width, height = map(int, size)
            if kind != [b"Pf"] or min(width, height) < 1:
                raise ValueError("another header")
            values = np.frombuffer(file.read(4 * width * height), "<f4" if float(scale[0]) < 0 else ">f4")
            return values.reshape(height, width)[::-1].astype(np.float32)
    except (OSError, ValueError, IndexError) as error:
        raise SceneError(f"{path}: expected a complete grey .pfm, got {error}; write it again") from None


def _read_exr(path: Path) -> np.ndarray:
    try:
        import OpenEXR
    except ImportError:
        raise SceneError(
            f"{path}: expected the package OpenEXR to read it, found none; pip install polyfield[exr], or convert the "
            "depths to .npy"
        ) from None
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except Exception as error:  # its bindings raise bare RuntimeErrors, among others
        raise SceneError(f"{path}: expected a complete EXR file, got: {error}; write it again") from None
    return channels[_depth_channel(path, channels)]


def _depth_channel(path: Path, channels: dict[str, np.ndarray]) -> str:
    """The name of the channel that holds depths."""
    names = sorted(channels)
    if len(names) == 1:
        return names[0]
    last = {name.rpartition(".")[2].lower(): name for name in names}
    for wanted in DEPTH_CHANNELS:
        if wanted in last:
            return last[wanted]
    if {"R", "G", "B"} <= set(names) and all(np.array_equal(channels["R"], channels[c], True) for c in "GB"):
        return "R"
    raise SceneError(
        f"{path}: expected a channel of depths (Z, V, Y, D or Depth), got {', '.join(names)}; name it Z, or write it "
        "alone"
    )


def _shrink(depth: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return depth
    height, width = depth.shape
    new_width, new_height = downscaled_size(width, height, factor)
    rows = np.clip(
        ((np.arange(new_height * factor) + 0.5) * (height / (new_height * factor))).astype(int), 0, height - 1
    )
    columns = np.clip(
        ((np.arange(new_width * factor) + 0.5) * (width / (new_width * factor))).astype(int), 0, width - 1
    )
    blocks = depth[rows][:, columns].reshape(new_height, factor, new_width, factor).swapaxes(1, 2)
    blocks = blocks.reshape(new_height, new_width, -1)
    nearest = np.where(blocks > 0, blocks, np.inf).min(-1, keepdims=True)
    kept = (blocks > 0) & (blocks <= 1.05 * nearest)
    count = kept.sum(-1)
    return np.where(count > 0, (blocks * kept).sum(-1) / np.maximum(count, 1), 0).astype(np.float32)
