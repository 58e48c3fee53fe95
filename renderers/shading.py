"""Light on a surface that a distance describes: what a white one sends back, for pictures of shapes.

    shade = ambient (3/4 + 1/4 n.up) open + sun max(0, n.s) lit + headlight max(0, n.v)

s points to the sun and v to the viewer. ``lit`` is what a cone of rays towards the sun finds free: the least
f / (softness t) on the way, smoothed. ``open`` falls where distances along the normal are shorter than without
neighbours, the nearer the more: 1 - 1.2 sum_i w_i (1 - f(x + d_i n) / d_i), w_i = 2^-i / sum_j 2^-j, over places d_i up
to ``reach``.

Source: Evans, "Fast approximations for global illumination on dynamic scenes", 2006 (occlusion); Quilez, "Soft shadows
in raymarched SDFs", 2010.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cuda.sphere_tracing import sphere_trace
from ..geometry.transforms import frame_around

LOOKS = 5  # places along the normal
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lighting:
    """Where light comes from, and what stands in its way."""

    shadows: bool = False
    """Ask whether the sun sees each point: about as many evaluations again."""
    occlusion: bool = False
    """Darken what neighbours surround: five evaluations per point."""
    azimuth: float = -0.8
    """Of the sun, radians around the scene's up."""
    elevation: float = 0.9
    """Of the sun, radians above the plane across up."""
    softness: float = 0.15
    """Of shadows: tangent of half the angle that the sun fills."""
    reach: float = 0.25
    """Length within which neighbours occlude, scene units."""
    ambient: float = 0.3
    sun: float = 0.35
    headlight: float = 0.4
    """Light from where the viewer is."""
    color: tuple[float, float, float] = (0.86, 0.83, 0.78)
    """Of surfaces that have none of their own."""

    def to_sun(self, up: Tensor) -> Tensor:
        """(3,) unit."""
        x, y, z = frame_around(up)
        flat = math.cos(self.azimuth) * x + math.sin(self.azimuth) * y
        return math.cos(self.elevation) * flat + math.sin(self.elevation) * z

    def shades(
        self, function: Function, points: Tensor, normals: Tensor, directions: Tensor, up: Tensor, offset: float
    ) -> Tensor:
        """(N,) in [0, 1] at points (N, 3) with unit normals, seen along unit directions; no gradients.

        function: distance to the surface, positive on the viewer's side. offset: how far from the surface shadow rays
        begin, a few times what a distance may be off by.
        """
        sun = self.to_sun(up)
        straight = (normals @ sun).clamp(min=0)
        if self.shadows:
            lit = (straight > 0).nonzero()[:, 0]
            straight[lit] *= sunlight(function, points[lit] + offset * normals[lit], sun, self.softness)
        around = self.ambient * (0.75 + 0.25 * (normals @ up))
        if self.occlusion:
            around = around * openness(function, points, normals, self.reach)
        seen = -(normals * directions).sum(-1).clamp(max=0)
        return (around + self.sun * straight + self.headlight * seen).clamp(0, 1)


@torch.no_grad()
def sunlight(function: Function, points: Tensor, to_sun: Tensor, softness: float, reach: float = 4.0) -> Tensor:
    """(N,) share of the sun, a disc of half angle atan(softness), that points (N, 3) see within ``reach``."""
    near = torch.zeros_like(points[:, 0])
    free = torch.full_like(near, math.inf)
    directions = to_sun.expand_as(points).contiguous()
    met = sphere_trace(function, points, directions, near, near + reach, relaxation=1.0, openness=free).isfinite()
    share = torch.where(met, 0.0, (free / softness).clamp(0, 1))
    return share * share * (3 - 2 * share)


@torch.no_grad()
def openness(function: Function, points: Tensor, normals: Tensor, reach: float) -> Tensor:
    """(N,) 1 where nothing is near points (N, 3) but the surface that they lie on, down to 0."""
    lengths = reach * (torch.arange(1, LOOKS + 1, device=points.device) / LOOKS) ** 1.5
    shares = 0.5 ** torch.arange(1, LOOKS + 1, device=points.device)
    lost = torch.zeros_like(points[:, 0])
    for length, share in zip(lengths, shares / shares.sum(), strict=True):
        lost += share * (1 - function(points + length * normals) / length).clamp(0, 1)
    return (1 - 1.2 * lost).clamp(0, 1)
