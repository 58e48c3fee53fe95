"""The vocabulary: cameras, rays, samples, pixels, meshes and boxes, as frozen dataclasses of tensors.

Axis letters: R rays, S samples, N points, V vertices, F faces, H W image, C channels. Lengths are in the scene's own
units, colours in [0, 1], depths along the ray (``z_depths`` where measured along the camera's axis).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..cuda.marching import interval_points

T = TypeVar("T", bound="_TensorDataclass")


class _TensorDataclass:
    """Moving and detaching, for every dataclass of tensors in this file."""

    def _map(self: T, change) -> T:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {k: change(v) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)  # type: ignore[type-var]

    def to(self: T, device: torch.device | str) -> T:
        """The same on another device."""
        return self._map(lambda t: t.to(device))

    def send(self: T, device: torch.device) -> T:
        """The same on a GPU, from the CPU, without waiting for it: by way of pinned memory."""
        return self._map(lambda t: t.pin_memory().to(device, non_blocking=True))

    def detach(self: T) -> T:
        """The same, cut from the autograd graph."""
        return self._map(lambda t: t.detach())


@dataclass(frozen=True)
class Aabb(_TensorDataclass):
    """An axis-aligned box."""

    low: Tensor  # (3,)
    high: Tensor  # (3,)

    @staticmethod
    def cube(half: float = 1.0) -> Aabb:
        """[-half, half]^3."""
        return Aabb(torch.full((3,), -float(half)), torch.full((3,), float(half)))

    @property
    def extent(self) -> Tensor:
        """(3,) edge lengths."""
        return self.high - self.low

    @property
    def diagonal(self) -> float:
        """Length of the diagonal."""
        return float(self.extent.norm())

    def contains(self, points: Tensor) -> Tensor:
        """points (*, 3) -> (*) bool."""
        return ((points >= self.low) & (points <= self.high)).all(-1)

    def normalize(self, points: Tensor) -> Tensor:
        """World points (*, 3) -> the unit cube [0, 1]^3."""
        scale = 1 / self.extent
        return torch.addcmul(-self.low * scale, points, scale)


class CameraModel(Enum):
    """How a camera-space direction meets the image; ``distortion`` holds the coefficients named here."""

    PINHOLE = "pinhole"  # none
    OPENCV = "opencv"  # k1 k2 p1 p2 [k3 [k4 k5 k6]]: radial-tangential
    FISHEYE = "fisheye"  # k1 k2 k3 k4: OpenCV's equidistant fisheye
    EQUIRECTANGULAR = "equirectangular"  # none; K holds pixels per radian: the image covers 360 x 180 degrees


@dataclass(frozen=True)
class Rays(_TensorDataclass):
    """Half-lines cut at near and far; t is metric distance because directions have unit length."""

    origins: Tensor  # (R, 3) world
    directions: Tensor  # (R, 3) unit
    near: Tensor  # (R,)
    far: Tensor  # (R,)
    camera_indices: Tensor | None = None  # (R,) int64: which frame a ray belongs to
    times: Tensor | None = None  # (R,) seconds
    image_points: Tensor | None = None  # (R, 2) x, y of where a ray meets its image, which spans [0, 1]^2

    def __len__(self) -> int:
        return self.origins.shape[0]

    def __getitem__(self, index: Any) -> Rays:
        """A selection of the rays, by slice, mask or indices."""
        return self._map(lambda t: t[index])

    def at(self, t: Tensor) -> Tensor:
        """Points (R, 3) at distance t (R,)."""
        return self.origins + self.directions * t[:, None]


@dataclass(frozen=True)
class Samples(_TensorDataclass):
    """Intervals of all rays, packed; ray r owns [ray_offsets[r], ray_offsets[r + 1])."""

    t_starts: Tensor  # (S,)
    t_ends: Tensor  # (S,)
    ray_indices: Tensor  # (S,) int32
    ray_offsets: Tensor  # (R + 1,) int32

    def __len__(self) -> int:
        return self.t_starts.shape[0]

    def positions(self, rays: Rays) -> Tensor:
        """(S, 3) interval midpoints."""
        return interval_points(rays.origins, rays.directions, self.t_starts, self.t_ends, self.ray_indices)

    def directions(self, rays: Rays) -> Tensor:
        """(S, 3) direction of each sample's ray."""
        return rays.directions.index_select(0, self.ray_indices)


@dataclass(frozen=True)
class Points(_TensorDataclass):
    """Places in space, and what is known there of the nearest surface; None = not available."""

    positions: Tensor  # (N, 3)
    distances: Tensor | None = None  # (N,) to the surface, negative inside
    normals: Tensor | None = None  # (N, 3) unit: where the distance grows

    def __len__(self) -> int:
        return self.positions.shape[0]

    def __getitem__(self, index: Any) -> Points:
        """A selection of the points, by slice, mask or indices."""
        return self._map(lambda t: t[index])


@dataclass(frozen=True)
class Pixels(_TensorDataclass):
    """What a view shows. Predictions, ground truth and a teacher's renders are all Pixels; None = not available."""

    colors: Tensor | None = None  # (*P, 3)
    alphas: Tensor | None = None  # (*P,)
    depths: Tensor | None = None  # (*P,) along the ray
    normals: Tensor | None = None  # (*P, 3) world, unit
    features: Tensor | None = None  # (*P, C)
    masks: Tensor | None = None  # (*P,) bool, True = counts; False = ignored by every loss and metric
    shades: Tensor | None = None  # (*P,) in [0, 1]: the light that a white surface there would send back
    depth_weights: Tensor | None = None  # (*P,) in [0, 1]: how far depths are to be trusted; None = alike

    @staticmethod
    def joined(parts: Sequence[Pixels], height: int, width: int) -> Pixels:
        """Flat pixels of an image in order, at least one part -> the image (H, W)."""

        def join(name: str) -> Tensor | None:
            pieces = [getattr(part, name) for part in parts]
            return None if pieces[0] is None else torch.cat(pieces).reshape(height, width, *pieces[0].shape[1:])

        return Pixels(**{f.name: join(f.name) for f in fields(Pixels)})


@dataclass(frozen=True)
class Mesh(_TensorDataclass):
    """Triangles; counter-clockwise seen from outside."""

    vertices: Tensor  # (V, 3)
    faces: Tensor  # (F, 3) int64
    normals: Tensor | None = None  # (V, 3) unit
    colors: Tensor | None = None  # (V, 3) in [0, 1]
