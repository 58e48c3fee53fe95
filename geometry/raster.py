"""Triangles over a grid of pixels: which pixel's centre lies in which triangle, and what a camera sees of a mesh.

Pixel (0, 0) has its centre at (0.5, 0.5), as everywhere. Work is done in portions of candidate pixels (those in the
bounding boxes of the triangles), so that memory does not depend on how large a triangle is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Camera
from .types import Mesh

PORTION = 1 << 20


def barycentric(corners: Tensor, points: Tensor) -> Tensor:
    """Triangles (N, 3, 2) and points (N, 2) -> weights (N, 3) that add up to 1; NaN or infinite without area."""
    a, b, c = corners.unbind(1)
    area = _cross(b - a, c - a)
    weights = torch.stack([_cross(c - b, points - b), _cross(a - c, points - c), _cross(b - a, points - a)], -1)
    return weights / area[:, None]


def nearest_weights(corners: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (N, 3) of the corners at the point of a triangle (N, 3, 2) nearest to (N, 2), and its distance."""
    weights = barycentric(corners, points)
    inside = (weights >= 0).all(1)  # not where there is no area
    distance = torch.where(inside, 0.0, torch.inf).to(points)
    for k in range(3):
        start, edge = corners[:, k], corners[:, (k + 1) % 3] - corners[:, k]
        share = ((points - start) * edge).sum(1) / edge.square().sum(1).clamp_min(1e-30)
        share = share.clamp(0, 1)
        away = (start + share[:, None] * edge - points).norm(dim=1)
        on_edge = torch.zeros_like(weights)
        on_edge[:, k], on_edge[:, (k + 1) % 3] = 1 - share, share
        nearer = away < distance
        weights = torch.where(nearer[:, None], on_edge, weights)
        distance = torch.where(nearer, away, distance)
    return weights, distance


def covered(
    corners: Tensor, width: int, height: int, *, margin: float = 0.0, portion: int = PORTION
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Which pixels each triangle covers.

    Args:
        corners: (F, 3, 2) x, y in pixels; triangles without area or with NaN cover nothing.
        width, height: of the grid.
        margin: how far from a triangle, in pixels, a centre may lie.
        portion: candidates at a time.

    Yields:
        triangle (N,) int64, pixel (N,) int64 = row * width + column, and how far from the triangle the centre lies
        (N,), 0 inside. A pixel on a shared edge comes once for each triangle.
    """
    corners = corners.double()
    a, b, c = corners.unbind(1)
    area = _cross(b - a, c - a)
    usable = area.isfinite() & (area != 0)
    limit = torch.tensor([width - 1, height - 1], dtype=torch.float64, device=corners.device)
    still = torch.where(usable[:, None, None], corners, 0.0)
    low = (still.amin(1) - 0.5 - margin).ceil().clamp_min(0)
    high = torch.minimum((still.amax(1) - 0.5 + margin).floor(), limit)
    size = (high - low + 1).clamp_min(0).long() * usable[:, None]
    ends = size.prod(1).cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, portion):
        candidate = torch.arange(start, min(start + portion, total), device=corners.device)
        triangle = torch.searchsorted(ends, candidate, right=True)
        within = candidate - (ends - size.prod(1))[triangle]
        column = low[triangle, 0].long() + within % size[triangle, 0]
        row = low[triangle, 1].long() + within // size[triangle, 0]
        centers = torch.stack([column, row], -1) + 0.5
        kept = (_beyond_edges(corners[triangle], centers) <= margin).nonzero()[:, 0]
        triangle, pixel = triangle[kept], (row * width + column)[kept]
        distance = torch.zeros_like(centers[kept, 0])
        if margin > 0:
            distance = nearest_weights(corners[triangle], centers[kept].double())[1]
            near = (distance <= margin).nonzero()[:, 0]
            triangle, pixel, distance = triangle[near], pixel[near], distance[near]
        yield triangle, pixel, distance


def _beyond_edges(corners: Tensor, points: Tensor) -> Tensor:
    """(N,): how far points (N, 2) lie beyond the line of that edge which they lie farthest beyond; 0 inside."""
    turn = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).sign()
    most = torch.zeros_like(points[:, 0])
    for k in range(3):
        start, edge = corners[:, k], corners[:, (k + 1) % 3] - corners[:, k]
        most = torch.maximum(most, -turn * _cross(edge, points - start) / edge.norm(dim=1))
    return most


def bilinear(picture: Tensor, position: Tensor) -> Tensor:
    """A picture (H, W, C) of any type at pixel positions (N, 2) -> (N, C) float32, between the four nearest centres."""
    height, width, channels = picture.shape
    first = (position - 0.5).floor()
    share = (position - 0.5 - first).float()
    result = share.new_zeros(len(position), channels)
    for dx in (0, 1):
        for dy in (0, 1):
            column = (first[:, 0].long() + dx).clamp(0, width - 1)
            row = (first[:, 1].long() + dy).clamp(0, height - 1)
            part = (share[:, 0] if dx else 1 - share[:, 0]) * (share[:, 1] if dy else 1 - share[:, 1])
            result += part[:, None] * picture[row, column].float()
    return result


@dataclass(frozen=True)
class SeenMesh:
    """What a camera sees of a mesh."""

    faces: Tensor  # (H, W) int64, -1 where there is nothing
    weights: Tensor  # (H, W, 3) of the corners at the point that is seen
    z_depths: Tensor  # (H, W) along the optical axis, infinite where there is nothing


def see_mesh(mesh: Mesh, camera: Camera) -> SeenMesh:
    """The nearest triangle at every pixel's centre, from either side.

    Triangles with a corner behind the camera are left out, and edges are straight in the picture: with a distorting
    lens, triangles should be small.
    """
    pixels, depths = camera.project(mesh.vertices)
    depths = torch.where(depths > 0, depths, torch.nan).double()
    corners, corner_depths = pixels.double()[mesh.faces], depths[mesh.faces]
    corners = torch.where(corner_depths[..., None].isfinite().all(1, keepdim=True), corners, torch.nan)
    nothing = torch.iinfo(torch.int64).max
    nearest = torch.full((camera.height * camera.width,), nothing, dtype=torch.int64, device=corners.device)
    for triangle, pixel, _ in covered(corners, camera.width, camera.height):
        z = 1 / (_weights_at(corners, triangle, pixel, camera.width) / corner_depths[triangle]).sum(1)
        # Bits of positive floats are in the order of the floats: the nearest comes first, then the lower number.
        key = (z.float().view(torch.int32).long() << 32) | triangle
        nearest.scatter_reduce_(0, pixel, key, "amin")
    seen = (nearest != nothing).nonzero()[:, 0]
    triangle = nearest[seen] & 0xFFFFFFFF
    weights = _weights_at(corners, triangle, seen, camera.width) / corner_depths[triangle]
    inverse = weights.sum(1, keepdim=True)
    shape = (camera.height, camera.width)
    faces, shares = torch.full_like(nearest, -1), corners.new_zeros(len(nearest), 3)
    z_depths = torch.full_like(shares[:, 0], torch.inf)
    faces[seen], shares[seen], z_depths[seen] = triangle, weights / inverse, 1 / inverse[:, 0]
    return SeenMesh(faces.view(shape), shares.float().view(*shape, 3), z_depths.float().view(shape))


def _weights_at(corners: Tensor, triangle: Tensor, pixel: Tensor, width: int) -> Tensor:
    centers = torch.stack([pixel % width, pixel // width], -1) + 0.5
    return barycentric(corners[triangle], centers.to(corners))


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
