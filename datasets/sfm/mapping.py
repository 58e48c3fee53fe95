"""From matches to cameras and points: incremental (one photograph after the other) or global mapping by COLMAP.

Incremental mapping begins with a pair that sees much under a wide angle. Where no pair is that good, the demands are
lowered step by step. Of several reconstructions that do not hang together the largest is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .features import Features

STARTS = ((100, 16.0), (50, 6.0), (25, 2.0))  # inliers and degrees that the first pair must have
ENOUGH = 0.5  # of the photographs that could be registered: fewer, and the next start is tried


class Mapper(Enum):
    """How cameras are found."""

    INCREMENTAL = "incremental"
    """One photograph after the other: robust, and precise."""
    GLOBAL = "global"
    """All at once: quicker for many photographs."""


def reconstruct_model(
    database: Path, features: Sequence[Features], mapper: Mapper, seed: int, tell: Callable[[int, int], None], most: int
) -> Any | None:
    """A pycolmap ``Reconstruction`` with names and colours, or None. ``most``: photographs that may hang together."""
    import pycolmap

    pycolmap.set_random_seed(seed)
    scratch = database.with_name("mapping")
    scratch.mkdir()
    best = None
    if mapper is Mapper.GLOBAL:
        best = _largest(pycolmap.global_mapping(database, database.parent, scratch, _global_options(seed)))
    else:
        for inliers, degrees in STARTS:
            found = _largest(_incremental(database, scratch, _options(seed, inliers, degrees), tell, most))
            if found is not None and (best is None or found.num_reg_images() > best.num_reg_images()):
                best = found
            if best is not None and best.num_reg_images() >= ENOUGH * most:
                break
    if best is not None:
        _name_and_color(best, features)
    return best


def _incremental(database: Path, scratch: Path, options: Any, tell: Callable[[int, int], None], most: int) -> Any:
    import pycolmap

    registered = 0

    def first() -> None:
        nonlocal registered
        registered = 2
        tell(registered, most)

    def following() -> None:
        nonlocal registered
        registered += 1
        tell(min(registered, most), most)

    return pycolmap.incremental_mapping(
        database, database.parent, scratch, options, initial_image_pair_callback=first, next_image_callback=following
    )


def _options(seed: int, inliers: int, degrees: float) -> Any:
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed, options.num_threads = seed, torch.get_num_threads()
    options.extract_colors = False  # those of the key points are known already
    options.min_model_size, options.max_num_models = 3, 5
    options.mapper.init_min_num_inliers, options.mapper.init_min_tri_angle = inliers, degrees
    return options


def _global_options(seed: int) -> Any:
    import pycolmap

    options = pycolmap.GlobalPipelineOptions()
    options.random_seed, options.num_threads = seed, torch.get_num_threads()
    return options


def _largest(models: dict[int, Any]) -> Any | None:
    """The one with most photographs, of those with points."""
    usable = [m for _, m in sorted(models.items()) if m.num_reg_images() >= 2 and m.num_points3D() > 0]
    return max(usable, key=lambda m: (m.num_reg_images(), m.num_points3D()), default=None)


def _name_and_color(model: Any, features: Sequence[Features]) -> None:
    """Photographs get their names, points the mean colour of their key points."""
    for image in model.images.values():
        image.name = features[image.image_id - 1].name
    for point in model.points3D.values():
        seen = [features[e.image_id - 1].colors[e.point2D_idx] for e in point.track.elements]
        point.color = np.mean(seen, 0).round().astype(np.uint8)


def triangulation_angle(model: Any) -> float:
    """Median over points of the widest angle, in degrees, between the rays of their photographs."""
    centers = {number: image.projection_center() for number, image in model.images.items() if image.has_pose}
    widest = []
    for point in list(model.points3D.values())[:: max(1, model.num_points3D() // 2000)]:
        rays = np.array([centers[e.image_id] - point.xyz for e in point.track.elements if e.image_id in centers])
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        widest.append(float(np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1, 1)))))
    return float(np.median(widest)) if widest else 0.0
