"""Reading images: decoded once, kept as uint8, shrunk by exact area averages (premultiplied where there is alpha).

A shrunken pixel is the mean over the rectangle it covers, also where sizes do not divide: row weights W_ij = overlap of
output cell i with input cell j, out = W_rows image W_columns^T. Intrinsics then scale by the exact ratio of the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import downscaled_size
from .scene import SceneError

A = TypeVar("A")
B = TypeVar("B")


def in_threads(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """``[work(i) for i in items]`` on as many threads as torch may use, each of which runs torch's operators alone.

    Decoders and operators release Python's lock. The first error is raised.
    """
    workers = torch.get_num_threads()
    with one_torch_thread(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, items))


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Operators run on the calling thread alone: for many small ones, whose barriers would cost more than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def image_size(path: Path) -> tuple[int, int, int]:
    """Width, height and channels (3 or 4) without decoding. Raises SceneError if it is no readable image."""
    image = _open(path)
    with image:
        return image.width, image.height, 4 if _has_alpha(image) else 3


def read_image(path: Path, downscale: int = 1) -> tuple[Tensor, Tensor | None]:
    """Colours (H, W, 3) uint8 with straight alpha, and alphas (H, W) uint8 if the file has them."""
    image = _open(path)
    with image:
        pixels = _decode(path, image, "RGBA" if _has_alpha(image) else "RGB")
    colors, alphas = pixels[..., :3], pixels[..., 3] if pixels.shape[-1] == 4 else None
    if downscale > 1:
        colors, alphas = shrink(colors, alphas, downscale)
    return torch.from_numpy(colors.copy()), None if alphas is None else torch.from_numpy(alphas.copy())


def read_mask(path: Path, downscale: int = 1) -> Tensor:
    """(H, W) bool: brighter than half (or, in an image with alpha only, opaque). Shrunk, a pixel counts if all do."""
    image = _open(path)
    with image:
        grey = _decode(path, image, "L")
    return torch.from_numpy(_mean(grey >= 128, downscale) > 1 - 1e-4)


def read_silhouette(path: Path, downscale: int = 1) -> Tensor:
    """(H, W) uint8: a mask as alpha, averaged when shrunk."""
    image = _open(path)
    with image:
        grey = _decode(path, image, "L")
    return torch.from_numpy(_to_uint8(_mean(grey, downscale)))


def read_depth(path: Path, unit: float, downscale: int = 1) -> Tensor:
    """(H, W) float32: 16-bit PNG times ``unit``, or .npy in world units; 0 where unknown.

    Shrunk, a pixel is the mean of those of its depths that are known and within 5 % of the nearest: averaging across a
    silhouette would invent a surface between the two.
    """
    if path.suffix == ".npy":
        try:
            depth = np.load(path, allow_pickle=False).squeeze()
        except (OSError, ValueError, EOFError) as error:
            raise SceneError(f"{path}: expected depths as a .npy array, got {error}; write it again") from None
        depth = depth.astype(np.float32)
    else:
        image = _open(path)
        with image:
            try:
                depth = np.asarray(image).astype(np.float32) * np.float32(unit)
            except (OSError, SyntaxError) as error:
                raise SceneError(f"{path}: expected a readable depth image, got {error}; write it again") from None
    if depth.ndim != 2:
        raise SceneError(f"{path}: expected depths of shape (H, W), got {depth.shape}; use 16-bit grey PNG or .npy")
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
    return torch.from_numpy(_shrink_depth(depth, downscale))


def shrink(colors: np.ndarray, alphas: np.ndarray | None, factor: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Average (H, W, 3) uint8 over blocks; with alphas (H, W), colours are averaged premultiplied."""
    if alphas is None:
        return _to_uint8(_mean(colors, factor)), None
    weight = _mean(alphas, factor)
    total = _mean(colors.astype(np.float32) * alphas[..., None], factor)
    straight = np.where(weight[..., None] > 0, total / np.maximum(weight[..., None], 1e-12), 0)
    return _to_uint8(straight), _to_uint8(weight)


def check_memory(needed: int, allowed: int, downscale: int, what: Path) -> None:
    """Raise SceneError if decoded images take more than allowed, saying which downscale would fit."""
    if needed <= allowed:
        return
    factor = downscale
    while needed * (downscale / factor) ** 2 > allowed:
        factor += 1
    raise SceneError(
        f"{what}: its images need {needed / 2**20:.0f} MB of memory, more than the {allowed / 2**20:.0f} MB allowed; "
        f"use --downscale {factor}, or allow more"
    )


def _open(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path)
    except FileNotFoundError:
        raise SceneError(f"{path}: expected an image, found no such file; restore it or remove its frame") from None
    except UnidentifiedImageError:
        raise SceneError(f"{path}: expected an image, got a file of no known image format; write it again") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise SceneError(f"{path}: expected a readable image, got {error}; write it again") from None


def _decode(path: Path, image: Any, mode: str) -> np.ndarray:
    try:
        if mode != "L" and image.mode.startswith("I;16"):
            return np.repeat((np.asarray(image)[..., None] >> 8).astype(np.uint8), 3, -1)
        if mode == "L" and _has_alpha(image) and image.convert("L").getextrema() == (0, 0):
            return np.asarray(image.convert("RGBA"))[..., 3]
        return np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise SceneError(f"{path}: expected a complete image, got {error}; copy or render it again") from None


def _has_alpha(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def _mean(values: np.ndarray, factor: int) -> np.ndarray:
    """Area average of (H, W[, C]) in float32 (float64 where sizes do not divide)."""
    if factor == 1:
        return values.astype(np.float32)
    height, width = values.shape[:2]
    new_width, new_height = downscaled_size(width, height, factor)
    if new_width * factor == width and new_height * factor == height:
        # Rows first, then columns: integer sums are exact in float32 here.
        rows = values.reshape(new_height, factor, *values.shape[1:]).sum(1, dtype=np.float32)
        return rows.reshape(new_height, new_width, factor, *values.shape[2:]).sum(2) / np.float32(factor * factor)
    rows, columns = _overlaps(height, new_height), _overlaps(width, new_width)
    return np.einsum(
        "ih,hw...->iw...", rows, np.einsum("jw,hw...->hj...", columns, values, optimize=True), optimize=True
    )


def _overlaps(old: int, new: int) -> np.ndarray:
    """(new, old) the share of output cell i that input cell j covers."""
    edges = np.arange(new + 1) * (old / new)
    cells = np.arange(old)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.maximum(overlap, 0) * (new / old)


def _shrink_depth(depth: np.ndarray, factor: int) -> np.ndarray:
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
