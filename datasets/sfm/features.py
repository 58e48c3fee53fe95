"""Key points of photographs: SIFT (Lowe 2004), RootSIFT descriptors (Arandjelović and Zisserman 2012), by pycolmap.

Photographs are read as everywhere else in polyfield (turned as EXIF says, of 16 bits the upper eight, ...), so that
positions and poses are those of the picture that a fit sees; then shrunk by a whole factor. Positions are in pixels of
the full size, the first pixel's centre at (0.5, 0.5).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import images
from ..scene import SceneError
from .intrinsics import Taken, read_taken
from .sharpness import blur

FINE = 1000  # pixels; pictures whose longer side is shorter are looked at at twice their size as well
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Features:
    """What is known of one photograph; K key points."""

    name: str
    taken: Taken
    pixels: np.ndarray  # (K, 4) float32: x, y, scale, orientation
    descriptors: np.ndarray  # (K, 128) uint8
    colors: np.ndarray  # (K, 3) uint8
    blur: float  # 0 sharp to 1, at the size that was looked at

    def __len__(self) -> int:
        return len(self.pixels)


def all_features(
    folder: Path, names: Sequence[str], max_size: int, max_features: int, tell: Callable[[int, int], None]
) -> tuple[list[Features], list[str]]:
    """Key points of every photograph that can be read, in order, and what is wrong with the others.

    Photographs are shrunk by the least whole factor that brings their longer side to ``max_size`` pixels or fewer.
    """
    own = threading.local()
    done: list[str] = []

    def look(name: str) -> Features | str:
        try:
            found: Features | str = _features(folder, name, max_size, _extractor(own, max_features))
        except SceneError as error:
            found = str(error)
        done.append(name)
        tell(len(done), len(names))
        return found

    workers = torch.get_num_threads()
    with images.one_torch_thread(), ThreadPoolExecutor(workers) as pool:
        try:
            found = list(pool.map(look, names))
        except BaseException:  # Ctrl-C as well: those that have not begun never do
            pool.shutdown(cancel_futures=True)
            raise
    return [f for f in found if isinstance(f, Features)], [f for f in found if isinstance(f, str)]


def _extractor(own: threading.local, max_features: int) -> Callable[[bool], Any]:
    """A thread's own extractors, by whether they look at pictures at twice their size."""
    import pycolmap

    def get(fine: bool) -> Any:
        key = f"fine_{fine}"
        if not hasattr(own, key):
            options = pycolmap.FeatureExtractionOptions()
            options.num_threads, options.max_image_size, options.use_gpu = 1, 1 << 20, False
            options.sift.max_num_features = max_features
            options.sift.first_octave = -1 if fine else 0
            setattr(own, key, pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu))
        return getattr(own, key)

    return get


def _features(folder: Path, name: str, max_size: int, extractor: Callable[[bool], Any]) -> Features:
    import pycolmap

    taken = read_taken(folder / name)
    longer = max(taken.width, taken.height)
    colors = images.read_image(folder / name, -(-longer // max_size))[0].numpy()
    grey = (colors @ LUMINANCE + 0.5).astype(np.uint8)
    height, width = grey.shape
    found, described = extractor(max(width, height) <= FINE).extract_from_uint8_array(grey)
    pixels = np.asarray(pycolmap.keypoints_to_matrix(found), np.float32).reshape(-1, 4).copy()
    at = np.clip(pixels[:, :2].astype(int), 0, [width - 1, height - 1])
    seen = colors[at[:, 1], at[:, 0]]
    pixels[:, :2] *= np.array([taken.width / width, taken.height / height], np.float32)
    pixels[:, 2] *= taken.width / width
    return Features(name, taken, pixels, np.asarray(described.data, np.uint8).reshape(-1, 128), seen, blur(grey))
