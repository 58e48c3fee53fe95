"""Reading images: decoded once, kept as uint8, shrunk by exact area averages (premultiplied where there is alpha).

A shrunken pixel is the mean over the rectangle it covers, also where sizes do not divide: row weights W_ij = overlap of
output cell i with input cell j, out = W_rows image W_columns^T. Intrinsics then scale by the exact ratio of the sizes.
A JPEG is decoded at a quarter or an eighth of its size where that is what is asked for: libjpeg-turbo transforms its
blocks back to the means of 4 x 4 or 8 x 8 pixels, exactly but for rounding. Colours of half the resolution are averaged
as they are stored, not as they are interpolated. At a half that would show, so two times are averaged here; and so are
they with other decoders, whose blocks of fewer points leave out a little more (below 1 of 255).
A photograph is turned as its EXIF orientation says; of 16 bits the upper eight are kept.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import downscaled_size
from .scene import SceneError

HEIC = (".heic", ".heif")
ORIENTATION = 0x0112  # the EXIF tag: 1 = as stored, 5 to 8 exchange width and height
A = TypeVar("A")
B = TypeVar("B")


def in_threads(work: Callable[[A], B], items: Sequence[A], most: int | None = None) -> list[B]:
    """``[work(i) for i in items]`` on as many threads as torch may use, each of which runs torch's operators alone.

    At most ``most`` threads. Decoders and operators release Python's lock. The first error is raised.
    """
    workers = min(torch.get_num_threads(), most or 1 << 30)
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


class ImageFacts(NamedTuple):
    """What a file's header says; width and height are those of the picture turned upright."""

    width: int
    height: int
    channels: int  # 3, or 4 with alpha
    turned: bool  # whether width and height are exchanged in the file


def image_facts(path: Path) -> ImageFacts:
    """Size and channels, without decoding. Raises SceneError if it is no readable image."""
    with open_image(path) as image:
        turned = _orientation(image) >= 5
        width, height = image.size[::-1] if turned else image.size
        if turned and image.format == "TIFF":  # some versions of Pillow exchange these themselves
            width, height = _upright(path, image).size
        return ImageFacts(width, height, 4 if _has_alpha(image) else 3, turned)


def read_image(path: Path, downscale: int = 1) -> tuple[Tensor, Tensor | None]:
    """Colours (H, W, 3) uint8 with straight alpha, and alphas (H, W) uint8 if the file has them."""
    with open_image(path) as image:
        downscale //= _decode_smaller(image, downscale)
        pixels = _decode(path, image, "RGBA" if _has_alpha(image) else "RGB")
    colors, alphas = pixels[..., :3], pixels[..., 3] if pixels.shape[-1] == 4 else None
    if downscale > 1:
        colors, alphas = shrink(colors, alphas, downscale)
    return torch.from_numpy(colors.copy()), None if alphas is None else torch.from_numpy(alphas.copy())


def read_mask(path: Path, downscale: int = 1, *, white_counts: bool = True) -> Tensor:
    """(H, W) bool: brighter than half (or, in an image with alpha only, opaque). Shrunk, a pixel counts if all do.

    ``white_counts`` False: what is darker counts.
    """
    counts = (_read_grey(path) >= 128) == white_counts
    return torch.from_numpy(_mean(counts, downscale) > 1 - 1e-4)


def read_silhouette(path: Path, downscale: int = 1) -> Tensor:
    """(H, W) uint8: a mask as alpha, averaged when shrunk."""
    return torch.from_numpy(_to_uint8(_mean(_read_grey(path), downscale)))


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


def open_image(path: Path) -> Any:
    """The file as Pillow opens it, not decoded yet. Raises SceneError if it is no readable image."""
    from PIL import Image, UnidentifiedImageError

    if path.suffix.lower() in HEIC:
        _learn_heic(path)
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise SceneError(f"{path}: expected an image, found no such file; restore it or remove its frame") from None
    except UnidentifiedImageError:
        raise SceneError(f"{path}: expected an image, got a file of no known image format; write it again") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise SceneError(f"{path}: expected a readable image, got {error}; write it again") from None


def _learn_heic(path: Path) -> None:
    """Let Pillow open HEIC, if the package for it is there. Raises SceneError else."""
    try:
        import pillow_heif
    except ImportError:
        raise SceneError(
            f"{path}: expected a format that is installed, got HEIC; pip install pillow-heif, or convert it to JPEG"
        ) from None
    pillow_heif.register_heif_opener()


def _read_grey(path: Path) -> np.ndarray:
    """A mask, (H, W) uint8. Where its values are 0 and 1 alone, 1 is white."""
    with open_image(path) as image:
        grey = _decode(path, image, "L")
    return grey * np.uint8(255) if grey.max(initial=0) == 1 else grey


def _orientation(image: Any) -> int:
    """How the picture has to be turned: the number of EXIF's orientation tag."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asked, Pillow would decode the file to look for the tag behind the pixels
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):  # a mangled tag says nothing
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(path: Path, image: Any) -> Any:
    """The decoded picture, turned as its orientation tag says."""
    from PIL.Image import Transpose

    orientation = _orientation(image)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise SceneError(f"{path}: expected a complete image, got {error}; copy or render it again") from None
    if image.format == "TIFF":
        orientation = _orientation(image)  # gone if Pillow has turned the picture while loading it
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image if orientation == 1 else image.transpose(turns[orientation])


def _decode_smaller(image: Any, downscale: int) -> int:
    """Let a JPEG's decoder shrink it; returns by how much. Averaging may go on from there, or nothing is done."""
    from PIL import features

    width, height = image.size
    means = features.check_feature("libjpeg_turbo")
    for factor in (8, 4, 2):
        enough = downscale % (2 * factor) == 0 or (means and factor > 2 and downscale % factor == 0)
        if enough and width % factor == 0 and height % factor == 0:
            image.draft(image.mode, (width // factor, height // factor))  # of no effect on other formats
            return width // image.size[0]
    return 1


def _decode(path: Path, image: Any, mode: str) -> np.ndarray:
    """(H, W[, C]) uint8 of mode L, RGB or RGBA."""
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not deep:
        raise SceneError(f"{path}: expected 8 or 16 bits per channel, got 32; convert the image to PNG")
    image = _upright(path, image)
    try:
        if deep:
            return _from_16_bits(np.asarray(image), image.info.get("transparency"), mode)
        if mode == "L" and _has_alpha(image) and image.convert("L").getextrema() == (0, 0):
            return np.asarray(image.convert("RGBA"))[..., 3]
        return np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise SceneError(f"{path}: expected a complete image, got {error}; copy or render it again") from None


def _from_16_bits(grey: np.ndarray, transparent: int | None, mode: str) -> np.ndarray:
    """(H, W) of 16 bits -> uint8 of mode L, RGB or RGBA; Pillow would cut off whatever exceeds 255."""
    upper = (grey >> 8).astype(np.uint8)
    if mode == "L":
        return upper
    alpha = [] if mode == "RGB" else [np.where(grey == transparent, 0, 255).astype(np.uint8)]
    return np.stack([upper] * 3 + alpha, -1)


def _has_alpha(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def _mean(values: np.ndarray, factor: int) -> np.ndarray:
    """Area average of (H, W[, C]) in float32."""
    if factor == 1:
        return values.astype(np.float32)
    height, width = values.shape[:2]
    new_width, new_height = downscaled_size(width, height, factor)
    if new_width * factor == width and new_height * factor == height:
        # Rows first, then columns; the sums of integers are exact.
        kind = np.float32 if values.dtype == np.float32 else np.uint32
        rows: np.ndarray = values[::factor].astype(kind)
        for i in range(1, factor):
            rows += values[i::factor]
        total = rows[:, ::factor].copy()
        for i in range(1, factor):
            total += rows[:, i::factor]
        return total.astype(np.float32) / np.float32(factor * factor)
    return _average(_average(values, new_height, 0), new_width, 1)


def _average(values: np.ndarray, new: int, axis: int) -> np.ndarray:
    """One axis of (H, W[, C]) averaged to ``new`` cells, each of which covers parts of a few old ones; float32."""
    old = values.shape[axis]
    edges = np.arange(new + 1) * (old / new)
    first = np.floor(edges[:-1]).astype(np.int64)
    total = np.zeros([new if i == axis else size for i, size in enumerate(values.shape)], np.float32)
    for cells in (first + i for i in range(math.ceil(old / new) + 1)):
        overlap = np.maximum(np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells), 0) * (new / old)
        weights = overlap.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        total += weights * np.take(values, np.minimum(cells, old - 1), axis)
    return total
