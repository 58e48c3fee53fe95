"""Open surfaces without thickness: what the built-in scenes ``demo_bowl`` and ``demo_cloth`` are built of.

Both are pieces of quadrics, so that rays meet them in closed form and distances to them, unsigned, are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .demo_shapes import MISS, Solid, Vector, _arc, _grid_faces, _revolve, _sphere_span, length, vector


@dataclass(frozen=True)
class Bowl(Solid):
    """The part of a sphere that lies below ``height`` over its centre."""

    center: Vector
    radius: float
    height: float

    thin = True

    @property
    def bound_center(self) -> Vector:  # type: ignore[override]
        return self.center

    @property
    def bound_radius(self) -> float:  # type: ignore[override]
        return self.radius

    def distance(self, p: Tensor) -> Tensor:
        """To the sphere, or to the rim where that is nearer than what is left of the sphere."""
        q = p - vector(self.center)
        far = length(q)
        rim = math.sqrt(self.radius**2 - self.height**2)
        to_rim = torch.hypot(torch.hypot(q[:, 0], q[:, 1]) - rim, q[:, 2] - self.height)
        return torch.where(q[:, 2] * self.radius <= self.height * far, (far - self.radius).abs(), to_rim)

    def normal(self, p: Tensor) -> Tensor:
        return torch.nn.functional.normalize(p - vector(self.center), dim=-1)

    def hit(self, origin: Tensor, directions: Tensor) -> Tensor:
        """Where a ray enters the sphere, or leaves it, if only that is below the rim."""
        top = self.center[2] + self.height
        result = torch.full_like(directions[:, 0], MISS)
        for t in reversed(_sphere_span(origin, directions, self.center, self.radius)):
            result = torch.where((t > 0) & (origin[2] + t * directions[:, 2] <= top), t, result)
        return result

    def triangles(self, segments: int) -> tuple[Tensor, Tensor]:
        profile = _arc(self.radius, -math.pi / 2, math.asin(self.height / self.radius), segments // 2)
        return _revolve(profile, segments, torch.tensor(self.center), torch.eye(3))


@dataclass(frozen=True)
class Cloth(Solid):
    """A waving sheet: arcs of ``angle`` to both sides of their tops, by turns upwards and downwards, along x."""

    center: Vector
    radius: float
    angle: float
    arcs: int
    half_width: float  # along y

    thin = True

    @property
    def bound_center(self) -> Vector:  # type: ignore[override]
        return self.center

    @property
    def bound_radius(self) -> float:  # type: ignore[override]
        return math.hypot(self.arcs * self.radius * math.sin(self.angle), self.half_width, self.radius)

    def _axes(self) -> list[tuple[float, float, float]]:
        """x and z of the arcs' axes from the centre, and 1 of those that bend upwards, else -1."""
        step = 2 * self.radius * math.sin(self.angle)
        drop = self.radius * math.cos(self.angle)
        sides = [1.0 - 2 * (k % 2) for k in range(self.arcs)]
        return [((k - (self.arcs - 1) / 2) * step, -side * drop, side) for k, side in enumerate(sides)]

    def distance(self, p: Tensor) -> Tensor:
        q = p - vector(self.center)
        beside = (q[:, 1].abs() - self.half_width).clamp_min(0)
        nearest = torch.full_like(beside, MISS)
        for x, z, side in self._axes():
            turned = torch.atan2(q[:, 0] - x, side * (q[:, 2] - z)).clamp(-self.angle, self.angle)
            flat = torch.hypot(
                q[:, 0] - x - self.radius * turned.sin(), q[:, 2] - z - side * self.radius * turned.cos()
            )
            nearest = torch.minimum(nearest, torch.hypot(flat, beside))
        return nearest

    def normal(self, p: Tensor) -> Tensor:
        """Upwards."""
        q = p - vector(self.center)
        step = 2 * self.radius * math.sin(self.angle)
        axes = torch.tensor(self._axes())
        x, z, side = axes[(q[:, 0] / step + self.arcs / 2).floor().long().clamp(0, self.arcs - 1)].unbind(-1)
        out = torch.stack([q[:, 0] - x, torch.zeros_like(x), q[:, 2] - z], -1)
        return torch.nn.functional.normalize(out * side[:, None], dim=-1)

    def hit(self, origin: Tensor, directions: Tensor) -> Tensor:
        o = origin - vector(self.center)
        d = directions
        result = torch.full_like(d[:, 0], MISS)
        for x, z, side in self._axes():
            qa = (d[:, 0].square() + d[:, 2].square()).clamp_min(1e-12)
            qb = d[:, 0] * (o[0] - x) + d[:, 2] * (o[2] - z)
            root = qb * qb - qa * ((o[0] - x) ** 2 + (o[2] - z) ** 2 - self.radius**2)
            for sign in (1.0, -1.0):
                t = (-qb + sign * root.clamp_min(0).sqrt()) / qa
                high = side * (o[2] + t * d[:, 2] - z) >= self.radius * math.cos(self.angle)
                on = (root > 0) & (t > 0) & high & ((o[1] + t * d[:, 1]).abs() <= self.half_width)
                result = torch.where(on & (t < result), t, result)
        return result

    def triangles(self, segments: int) -> tuple[Tensor, Tensor]:
        turns = torch.linspace(-self.angle, self.angle, max(8, segments // self.arcs) + 1)
        rows = []
        for k, (x, z, side) in enumerate(self._axes()):
            arc = torch.stack([x + self.radius * turns.sin(), z + side * self.radius * turns.cos()], -1)
            rows.append(arc if k == 0 else arc[1:])
        line = torch.cat(rows)
        across = torch.linspace(-self.half_width, self.half_width, max(8, segments // 2) + 1)
        along, beside = torch.meshgrid(line[:, 0], across, indexing="ij")
        points = torch.stack([along, beside, line[:, 1:].expand_as(along)], -1).reshape(-1, 3)
        return points + torch.tensor(self.center), _grid_faces(len(line), len(across))


def bands(p: Tensor) -> Tensor:
    """(N, 3) world -> (N, 3) linear: tiles that run round an upright axis, in two colours and with a fine grain."""
    turn, height = torch.atan2(p[:, 1], p[:, 0]), p[:, 2]
    tile = torch.sigmoid(12 * (9 * turn + 2.0 * (7 * height).sin()).sin() * (13 * height).sin())
    grain = 0.85 + 0.15 * (41 * p[:, 0] + 7 * (23 * p[:, 1]).sin()).sin() * (37 * p[:, 2] + 3 * p[:, 1]).sin()
    warm, cool = p.new_tensor([0.72, 0.30, 0.08]), p.new_tensor([0.06, 0.20, 0.42])
    return torch.lerp(cool, warm, tile[:, None]) * grain[:, None]


def weave(p: Tensor) -> Tensor:
    """(N, 3) world -> (N, 3) linear: a tartan over x and y."""
    wide = torch.sigmoid(14 * ((9 * p[:, 0]).sin() - 0.3)), torch.sigmoid(14 * ((9 * p[:, 1] + 1).sin() - 0.3))
    thin = torch.sigmoid(20 * ((27 * p[:, 0] + 2).sin() - 0.8)), torch.sigmoid(20 * ((27 * p[:, 1]).sin() - 0.8))
    color = torch.lerp(
        p.new_tensor([0.50, 0.05, 0.06]), p.new_tensor([0.05, 0.16, 0.09]), (wide[0] + wide[1])[:, None] / 2
    )
    color = torch.lerp(color, p.new_tensor([0.80, 0.70, 0.35]), 0.7 * torch.maximum(*thin)[:, None])
    grain = 0.88 + 0.12 * (61 * p[:, 0] + 5 * (17 * p[:, 1]).sin()).sin() * (57 * p[:, 1]).sin()
    return color * grain[:, None]
