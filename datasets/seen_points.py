"""What structure from motion says of a photograph's depths: the points that it saw there, and how far to trust each.

A point weighs exp(-(e / mean e)^2), e its mean reprojection error (Deng et al. 2022, "Depth-supervised NeRF: Fewer
Views and Faster Training for Free"). Points are kept in space rather than as pixels, so that shrinking, straightening
and cropping a photograph need not know of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import Camera
from .colmap_model import ModelPoints


@dataclass(frozen=True)
class SeenPoints:
    """Of one photograph."""

    positions: Tensor  # (K, 3)
    weights: Tensor  # (K,) in [0, 1]

    def depths(self, camera: Camera) -> tuple[Tensor, Tensor]:
        """(H, W) depths along the ray and weights; 0 where no point is. Of several points in a pixel, the nearest."""
        pixels, _ = camera.project(self.positions.to(camera.camera_to_world))
        column, row = pixels.nan_to_num(-1.0).floor().long().unbind(-1)
        inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
        place = (row * camera.width + column)[inside]
        distance = (self.positions[inside].to(pixels) - camera.position.to(pixels)).norm(dim=-1).float()
        depths = torch.full((camera.height * camera.width,), torch.inf)
        depths.scatter_reduce_(0, place, distance, "amin")
        nearest = distance == depths[place]
        weights = torch.zeros_like(depths)
        weights.scatter_reduce_(0, place[nearest], self.weights[inside][nearest].float(), "amax")
        size = (camera.height, camera.width)
        return torch.where(depths.isinf(), 0.0, depths).view(size), weights.view(size)


def seen_points(points: ModelPoints | None, kept: np.ndarray | None) -> Mapping[int, SeenPoints]:
    """By image number: of the ``kept`` (N,) points, those whose tracks name it."""
    if points is None or kept is None or not kept.any():
        return {}
    owner = np.repeat(np.arange(len(points.ids)), points.lengths)
    errors = np.maximum(points.errors, 0.0)  # below 0: none was computed
    weights = np.exp(-np.square(errors / max(float(errors[kept].mean()), 1e-12)))
    some = kept[owner]
    image, owner = points.tracks[some, 0], owner[some]
    if not len(image):  # points without tracks
        return {}
    order = np.argsort(image, kind="stable")
    numbers, first = np.unique(image[order], return_index=True)
    parts = [np.unique(part) for part in np.split(owner[order], first[1:])]
    found = zip(numbers.tolist(), parts, strict=True)
    return {i: SeenPoints(torch.from_numpy(points.positions[p]), torch.from_numpy(weights[p])) for i, p in found}
