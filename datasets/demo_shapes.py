"""Solids with exact signed distances, exact ray intersections and tessellations: what the demo scene is built of.

Spheres, capsules and cylinders are met in closed form, rounded boxes by Newton's method (they are convex), tori by
sphere tracing (Hart 1996) with Newton steps close to the tube. Shadows are soft: how closely a ray to the light passes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Vector = tuple[float, float, float]
MISS = math.inf


@lru_cache(maxsize=256)
def vector(values: Vector) -> Tensor:
    """(3,) float32, made once."""
    return torch.tensor(values)


class Solid(ABC):
    """A closed solid in world coordinates."""

    bound_center: Vector
    bound_radius: float
    thin = False  # a surface with two sides and no inside: distances to it are unsigned

    @abstractmethod
    def distance(self, p: Tensor) -> Tensor:
        """(N, 3) -> (N,) exact signed distance, negative inside."""

    @abstractmethod
    def triangles(self, segments: int) -> tuple[Tensor, Tensor]:
        """Vertices (V, 3) on the surface and faces (F, 3), counter-clockwise seen from outside."""

    @abstractmethod
    def hit(self, origin: Tensor, directions: Tensor) -> Tensor:
        """From a point (3,) along unit directions (N, 3) -> (N,) distance to the first point met, or infinity."""

    def normal(self, p: Tensor) -> Tensor:
        """(N, 3) near the surface -> (N, 3) outward unit normals."""
        step = 1e-3
        tetrahedron = p.new_tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
        total = sum(v * self.distance(p + step * v)[:, None] for v in tetrahedron)
        return torch.nn.functional.normalize(total, dim=-1)  # type: ignore[arg-type]

    def openness(self, p: Tensor, light: Tensor) -> Tensor:
        """(N,) tangent of the angle by which a ray from p (N, 3) towards ``light`` clears the solid; <= 0: blocked."""
        along = (vector(self.bound_center) - p) @ light
        t, leave = (along - self.bound_radius).clamp_min(0.03), (along + self.bound_radius).clamp_min(0.03)
        least = torch.full_like(t, MISS)
        smallest = 0.06 * self.bound_radius
        for _ in range(24):
            gap = self.distance(p + t[:, None] * light)
            least = torch.minimum(least, gap / t)
            t = torch.minimum(t + gap.clamp_min(smallest), leave)
        return least


@dataclass(frozen=True)
class Sphere(Solid):
    """A ball."""

    center: Vector
    radius: float

    @property
    def bound_center(self) -> Vector:  # type: ignore[override]
        return self.center

    @property
    def bound_radius(self) -> float:  # type: ignore[override]
        return self.radius

    def distance(self, p: Tensor) -> Tensor:
        return length(p - vector(self.center)) - self.radius

    def hit(self, origin: Tensor, directions: Tensor) -> Tensor:
        return _sphere_span(origin, directions, self.center, self.radius)[0]

    def normal(self, p: Tensor) -> Tensor:
        return torch.nn.functional.normalize(p - vector(self.center), dim=-1)

    def openness(self, p: Tensor, light: Tensor) -> Tensor:
        to_center = vector(self.center) - p
        along = to_center @ light
        across = (dot(to_center, to_center) - along * along).clamp_min(0).sqrt() - self.radius
        return torch.where(along > 0, across / along.clamp_min(1e-6), MISS)

    def triangles(self, segments: int) -> tuple[Tensor, Tensor]:
        c = torch.tensor(self.center)
        return _revolve(_arc(self.radius, -math.pi / 2, math.pi / 2, segments // 2), segments, c, torch.eye(3))


@dataclass(frozen=True)
class Capsule(Solid):
    """All points within ``radius`` of the segment from ``a`` to ``b``."""

    a: Vector
    b: Vector
    radius: float

    @property
    def bound_center(self) -> Vector:  # type: ignore[override]
        return tuple((x + y) / 2 for x, y in zip(self.a, self.b, strict=True))  # type: ignore[return-value]

    @property
    def bound_radius(self) -> float:  # type: ignore[override]
        return math.dist(self.a, self.b) / 2 + self.radius

    def _nearest(self, p: Tensor) -> Tensor:
        a, b = vector(self.a), vector(self.b)
        share = ((p - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
        return a + share[:, None] * (b - a)

    def distance(self, p: Tensor) -> Tensor:
        return length(p - self._nearest(p)) - self.radius

    def normal(self, p: Tensor) -> Tensor:
        return torch.nn.functional.normalize(p - self._nearest(p), dim=-1)

    def hit(self, origin: Tensor, directions: Tensor) -> Tensor:
        a, b = vector(self.a), vector(self.b)
        axis = b - a
        length = axis.square().sum()
        from_a = origin - a
        slope, start = directions @ axis / length, from_a @ axis / length
        # Quadratic of the infinite cylinder: components across the axis.
        d, o = directions - slope[:, None] * axis, from_a - start * axis
        qa, qb, qc = dot(d, d).clamp_min(1e-12), d @ o, o.square().sum() - self.radius**2
        root = qb * qb - qa * qc
        t = (-qb - root.clamp_min(0).sqrt()) / qa
        at = start + t * slope
        side = torch.where((root > 0) & (at >= 0) & (at <= 1), t, MISS)
        ends = torch.minimum(
            _sphere_span(origin, directions, self.a, self.radius)[0],
            _sphere_span(origin, directions, self.b, self.radius)[0],
        )
        return torch.minimum(side, ends)

    def openness(self, p: Tensor, light: Tensor) -> Tensor:
        """Where the ray and the segment come nearest to each other."""
        a, b = vector(self.a), vector(self.b)
        axis = b - a
        from_a = p - a
        bb, ld, fl, fa = axis.square().sum(), light @ axis, from_a @ light, from_a @ axis
        share = ((fa - fl * ld) / (bb - ld * ld).clamp_min(1e-9)).clamp(0, 1)
        along = ((a + share[:, None] * axis - p) @ light).clamp_min(1e-6)
        gap = (p + along[:, None] * light - (a + share[:, None] * axis)).norm(dim=-1) - self.radius
        return torch.where(along > 1e-5, gap / along, MISS)

    def triangles(self, segments: int) -> tuple[Tensor, Tensor]:
        a, b = torch.tensor(self.a), torch.tensor(self.b)
        length = float((b - a).norm())
        half = max(4, segments // 4)
        shaft = max(2, segments)
        low, high = _arc(self.radius, -math.pi / 2, 0.0, half), _arc(self.radius, 0.0, math.pi / 2, half)
        middle = torch.stack([torch.full((shaft,), self.radius), torch.linspace(0, length, shaft + 2)[1:-1]], -1)
        profile = torch.cat([low, middle, high + torch.tensor([0.0, length])])
        return _revolve(profile, max(24, segments // 4), a, _frame((b - a) / length))


@dataclass(frozen=True)
class Cylinder(Solid):
    """An upright cylinder: a disc with thickness."""

    center: Vector
    radius: float
    half_height: float

    @property
    def bound_center(self) -> Vector:  # type: ignore[override]
        return self.center

    @property
    def bound_radius(self) -> float:  # type: ignore[override]
        return math.hypot(self.radius, self.half_height)

    def distance(self, p: Tensor) -> Tensor:
        q = p - vector(self.center)
        across = torch.hypot(q[:, 0], q[:, 1]) - self.radius
        along = q[:, 2].abs() - self.half_height
        return torch.hypot(across.clamp_min(0), along.clamp_min(0)) + torch.maximum(across, along).clamp_max(0)

    def normal(self, p: Tensor) -> Tensor:
        q = p - vector(self.center)
        across = torch.hypot(q[:, 0], q[:, 1])
        cap = q[:, 2].abs() - self.half_height > across - self.radius
        zero = torch.zeros_like(across)
        side = torch.stack([q[:, 0] / across.clamp_min(1e-6), q[:, 1] / across.clamp_min(1e-6), zero], -1)
        return torch.where(cap[:, None], torch.stack([zero, zero, q[:, 2].sign()], -1), side)

    def hit(self, origin: Tensor, directions: Tensor) -> Tensor:
        o = origin - vector(self.center)
        x, y, z = directions.unbind(-1)
        z = torch.where(z.abs() < 1e-9, 1e-9, z)
        t_low, t_high = (-self.half_height - o[2]) / z, (self.half_height - o[2]) / z
        qa = (x * x + y * y).clamp_min(1e-12)
        qb, qc = x * o[0] + y * o[1], o[0] ** 2 + o[1] ** 2 - self.radius**2
        root = qb * qb - qa * qc
        spread = root.clamp_min(0).sqrt() / qa
        entry = torch.maximum(torch.minimum(t_low, t_high), -qb / qa - spread)
        leave = torch.minimum(torch.maximum(t_low, t_high), -qb / qa + spread)
        return torch.where((root > 0) & (entry < leave) & (entry > 0), entry, MISS)

    def triangles(self, segments: int) -> tuple[Tensor, Tensor]:
        r, h = self.radius, self.half_height
        rings, sides = max(8, segments // 3), 4
        disc = torch.linspace(0, r, rings + 1)[1:]
        flat = torch.stack([disc, torch.full_like(disc, -h)], -1)
        wall = torch.stack([torch.full((sides + 1,), r), torch.linspace(-h, h, sides + 1)], -1)
        profile = torch.cat([torch.tensor([[0.0, -h]]), flat, wall[1:-1], flat.flip(0) * torch.tensor([1.0, -1.0])])
        profile = torch.cat([profile, torch.tensor([[0.0, h]])])
        return _revolve(profile, segments, torch.tensor(self.center), torch.eye(3))


@dataclass(frozen=True)
class Torus(Solid):
    """A ring of radius ``ring`` around ``axis``, ``tube`` thick."""

    center: Vector
    axis: Vector
    ring: float
    tube: float

    @property
    def bound_center(self) -> Vector:  # type: ignore[override]
        return self.center

    @property
    def bound_radius(self) -> float:  # type: ignore[override]
        return self.ring + self.tube

    def _parts(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        axis = vector(self.axis)
        q = p - vector(self.center)
        height = q @ axis
        flat = q - height[:, None] * axis
        return height, flat, flat.norm(dim=-1)

    def distance(self, p: Tensor) -> Tensor:
        q = p - vector(self.center)
        height = q @ vector(self.axis)
        across = (dot(q, q) - height * height).clamp_min(0).sqrt()
        return torch.hypot(across - self.ring, height) - self.tube

    def normal(self, p: Tensor) -> Tensor:
        height, flat, across = self._parts(p)
        out = flat * (1 - self.ring / across.clamp_min(1e-6))[:, None] + height[:, None] * vector(self.axis)
        return torch.nn.functional.normalize(out, dim=-1)

    def hit(self, origin: Tensor, directions: Tensor) -> Tensor:
        """Sphere tracing within the slab that holds the ring, then Newton's steps."""
        frame = _frame(vector(self.axis))
        ox, oy, oz = ((origin - vector(self.center)) @ frame).tolist()
        dx, dy, dz = (directions @ frame).unbind(-1)
        entry, leave = _sphere_span(origin, directions, self.center, self.bound_radius)
        slope = torch.where(dz.abs() < 1e-9, 1e-9, dz).reciprocal()
        low, high = (-self.tube - oz) * slope, (self.tube - oz) * slope
        t = torch.maximum(entry, torch.minimum(low, high))
        far = torch.minimum(leave, torch.maximum(low, high))
        result = torch.full_like(t, MISS)
        index = (t < far).nonzero()[:, 0]
        t, far, dx, dy, dz = (v[index] for v in (t, far, dx, dy, dz))
        for steps in (1, 2, *[4] * 11):
            for _ in range(steps):
                x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
                across = torch.addcmul(x * x, y, y).sqrt()
                gap = torch.addcmul(z * z, across - self.ring, across - self.ring).sqrt() - self.tube
                t = t + gap
            # Close to the tube, Newton's step instead of the last one: tracing alone crawls where a ray grazes.
            slope = ((across - self.ring) * (x * dx + y * dy) / across.clamp_min(1e-6) + z * dz) / (gap + self.tube)
            newton = -gap / slope.clamp_max(-0.2)
            t = torch.where(gap < 0.2 * self.tube, t - gap + newton, t)
            done = gap.abs() < 1e-5
            result[index[done]] = t[done]
            left = (~done & (t < far)).nonzero()[:, 0]
            if not len(left):
                break
            index, t, far, dx, dy, dz = (v[left] for v in (index, t, far, dx, dy, dz))
        return result

    def triangles(self, segments: int) -> tuple[Tensor, Tensor]:
        around = max(24, int(1.5 * segments * self.tube / self.ring))
        phi = torch.arange(around + 1) * (2 * math.pi / around) - math.pi
        profile = torch.stack([self.ring + self.tube * phi.cos(), self.tube * phi.sin()], -1)
        profile[-1] = profile[0]
        frame = _frame(torch.tensor(self.axis))
        return _revolve(profile, segments, torch.tensor(self.center), frame, closed=True)


@dataclass(frozen=True)
class RoundedBox(Solid):
    """A cube of half size ``half`` turned about z by ``turn``, its edges rounded by ``rounding``."""

    center: Vector
    half: float
    rounding: float
    turn: float

    @property
    def bound_center(self) -> Vector:  # type: ignore[override]
        return self.center

    @property
    def bound_radius(self) -> float:  # type: ignore[override]
        return (self.half - self.rounding) * math.sqrt(3) + self.rounding

    def local(self, p: Tensor) -> Tensor:
        """World -> the box's own axes."""
        return (p - vector(self.center)) @ self._turned(p)

    def _turned(self, like: Tensor) -> Tensor:
        c, s = math.cos(self.turn), math.sin(self.turn)
        return like.new_tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])

    def distance(self, p: Tensor) -> Tensor:
        q = self.local(p).abs() - (self.half - self.rounding)
        return length(q.clamp_min(0)) + q.amax(-1).clamp_max(0) - self.rounding

    def hit(self, origin: Tensor, directions: Tensor) -> Tensor:
        """Newton's method: distance to a convex solid is convex along a line, so steps never pass the first root."""
        turn = self._turned(origin)
        o, d = ((origin - vector(self.center)) @ turn).tolist(), (directions @ turn).unbind(-1)
        t = _sphere_span(origin, directions, self.center, self.bound_radius)[0]
        meets = t < MISS
        t = torch.where(meets, t, 0.0)
        for _ in range(10):
            square, slope = torch.full_like(t, 1e-18), torch.zeros_like(t)
            for from_zero, along in zip(o, d, strict=True):
                x = from_zero + t * along
                out = (x.abs() - (self.half - self.rounding)).clamp_min(0)
                square = torch.addcmul(square, out, out)
                slope = torch.addcmul(slope, torch.copysign(out, x), along)
            gap = square.sqrt()
            slope = slope / gap
            gap = gap - self.rounding
            meets = meets & ((slope < 0) | (gap < 1e-5))
            t = t - gap / slope.clamp_max(-1e-3)
        return torch.where(meets & (gap < 1e-4), t, MISS)

    def triangles(self, segments: int) -> tuple[Tensor, Tensor]:
        n = max(8, segments // 3)
        # Every grid point of a cube, pushed from the inner cube outwards by the rounding.
        grid = torch.tan(torch.linspace(-math.pi / 4, math.pi / 4, n + 1))
        u, v = torch.meshgrid(grid, grid, indexing="ij")
        inner = self.half - self.rounding
        points: list[Tensor] = []
        faces: list[Tensor] = []
        quads = _grid_faces(n + 1, n + 1)
        for axis in range(3):
            for sign in (-1.0, 1.0):
                p = torch.empty(n + 1, n + 1, 3)
                p[..., axis], p[..., (axis + 1) % 3], p[..., (axis + 2) % 3] = sign, u, v
                p = p.reshape(-1, 3) * self.half
                core = p.clamp(-inner, inner)
                p = core + torch.nn.functional.normalize(p - core, dim=-1) * self.rounding
                faces.append((quads if sign > 0 else quads.flip(1)) + sum(q.shape[0] for q in points))
                points.append(p)
        vertices = torch.cat(points)
        return _weld(vertices @ self._turned(vertices).T + torch.tensor(self.center), torch.cat(faces))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(N, 3), (N, 3) -> (N,); quicker than a reduction over so short an axis."""
    return torch.addcmul(torch.addcmul(a[:, 0] * b[:, 0], a[:, 1], b[:, 1]), a[:, 2], b[:, 2])


def length(a: Tensor) -> Tensor:
    """(N, 3) -> (N,)."""
    return dot(a, a).sqrt()


def _sphere_span(origin: Tensor, directions: Tensor, center: Vector, radius: float) -> tuple[Tensor, Tensor]:
    """Where unit rays enter and leave a sphere; infinity twice where they miss it or it lies behind."""
    to_center = vector(center) - origin
    along = directions @ to_center
    off = to_center - along[:, None] * directions
    root = radius**2 - dot(off, off)
    half = root.clamp_min(0).sqrt()
    meets = (root > 0) & (along + half > 0)
    return torch.where(meets, along - half, MISS), torch.where(meets, along + half, MISS)


def _arc(radius: float, start: float, stop: float, steps: int) -> Tensor:
    """(steps + 1, 2) radius and height along a circle's arc."""
    angle = torch.linspace(start, stop, steps + 1)
    arc = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    arc[arc[:, 0] < 1e-7, 0] = 0
    return arc


def _frame(axis: Tensor) -> Tensor:
    """(3, 3) rotation whose third column is ``axis``."""
    helper = torch.zeros(3)
    helper[int(axis.abs().argmin())] = 1
    x = torch.nn.functional.normalize(torch.linalg.cross(helper, axis), dim=0)
    return torch.stack([x, torch.linalg.cross(axis, x), axis], -1)


def _grid_faces(rows: int, columns: int) -> Tensor:
    """Two triangles per cell of a grid of vertices, row by row."""
    i, j = torch.meshgrid(torch.arange(rows - 1), torch.arange(columns - 1), indexing="ij")
    a = (i * columns + j).reshape(-1)
    b, c, d = a + columns, a + columns + 1, a + 1
    return torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)])


def _revolve(
    profile: Tensor, segments: int, center: Tensor, frame: Tensor, closed: bool = False
) -> tuple[Tensor, Tensor]:
    """Turn a profile (radius, height), from bottom to top outside the axis, around the frame's third axis."""
    angle = torch.arange(segments + 1) * (2 * math.pi / segments)
    angle[-1] = 0
    x, y = profile[:, :1] * angle.cos(), profile[:, :1] * angle.sin()
    points = torch.stack([x, y, profile[:, 1:].expand_as(x)], -1).reshape(-1, 3)
    faces = _grid_faces(len(profile), segments + 1).flip(1)
    return _weld(points @ frame.T + center, faces)


def _weld(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Join vertices at (nearly) the same place; drop triangles that collapse."""
    keys = (vertices.double() * 1e6).round().long()
    _, index = torch.unique(keys, dim=0, return_inverse=True)
    first = torch.full((int(index.max()) + 1,), len(vertices), dtype=torch.long)
    first.scatter_reduce_(0, index, torch.arange(len(vertices)), "amin")
    faces = index[faces]
    kept = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return vertices[first], faces[kept]
