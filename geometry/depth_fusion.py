"""Meshes from depth maps: each view's distances to its surface, averaged, and the surface where the mean is zero.

    D(x) = sum_v w_v d_v / sum_v w_v,   d_v(x) = min(1, (depth_v - |x - eye_v|) / truncation),   w_v = min(1, 1 + d_v),

over the views with d_v > -1: those in front of whose surface, or just behind it, x lies. A pixel without a depth sees
nothing on all of its ray. What no view knows counts as solid, so that D has one sign inside of things; triangles that
only close off what nobody saw are dropped. D is evaluated in blocks around the depths alone: time and memory grow with
the surface. Views are kept at 7 bytes per pixel.

Source: Curless & Levoy, "A Volumetric Method for Building Complex Models from Range Images", SIGGRAPH 1996.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .cameras import Camera
from .isosurface import isosurface
from .mesh_ops import joined, keep_faces
from .sampling import sampled
from .sparse_blocks import OpenSurfaceWarning, block_lattice
from .types import Aabb, Mesh, Pixels

NOTHING = 1e9  # the depth of a pixel that sees nothing
CHUNK = 1 << 18  # points at a time


def fuse_depths(
    cameras: Sequence[Camera],
    views: Iterable[Pixels],
    bounds: Aabb,
    voxel: float,
    *,
    cascades: int = 1,
    truncation: float = 4.0,
    max_bytes: int = 2**31,
) -> Mesh:
    """The surface that posed depth maps show inside ``bounds``, on the device of the bounds.

    Args:
        cameras: of the views, with any lens.
        views: as many Pixels (H, W), taken one after the other: depths along the ray, with alphas (below 1/2, a pixel
            sees nothing; absent: where the depth is not positive) and, for vertex colours, colours.
        bounds: where to look.
        voxel: edge of a cell, in world units.
        cascades: boxes, each twice the size of the one before, as are its voxels. Meshes of neighbours overlap by a
            triangle where they meet, and are not stitched.
        truncation: how far behind a surface a view says something, in voxels. Things thinner than that may suffer.
        max_bytes: cap on the memory of the blocks that hold the surface; views and cameras come on top.

    Returns:
        A Mesh with normals that point to the viewers' side; open where no view saw what lies behind an edge.

    Raises:
        ValueError: views without depths, or not as many as cameras; a voxel that is not positive; no surface in bounds.
    """
    if not voxel > 0 or not truncation >= 1 or cascades < 1:
        raise ValueError(
            "fuse_depths: voxel, truncation, cascades: expected a positive voxel, and at least 1 of the others, got "
            f"{voxel}, {truncation} and {cascades}"
        )
    with torch.no_grad():
        maps = [_DepthMap.of(camera, view, bounds.low.device) for camera, view in zip(cameras, views, strict=True)]
        middle, half = (bounds.low + bounds.high) / 2, bounds.extent / 2
        meshes: list[Mesh] = []
        for cascade in range(cascades):
            scale = 2.0**cascade
            box = Aabb(middle - half * scale, middle + half * scale)
            mesh = _fuse(maps, box, voxel * scale, truncation * voxel * scale, max_bytes)
            if mesh is not None and cascade:
                inner = Aabb(middle - half * scale / 2, middle + half * scale / 2)
                mesh = keep_faces(mesh, ~inner.contains(mesh.vertices)[mesh.faces].all(1))
            if mesh is not None and len(mesh.faces):
                meshes.append(mesh)
    if not meshes:
        raise ValueError("fuse_depths: views: expected a surface inside the bounds, found none; choose other bounds")
    return joined(meshes)


def blocks_with(points: Iterable[Tensor], bounds: Aabb, resolution: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """``occupied`` of an ``isosurface`` of the same bounds and resolution: blocks that hold any of the points (N, 3).

    None if there is no point inside the bounds.
    """
    shape = torch.tensor(block_lattice(bounds, resolution)[1], device=bounds.low.device)
    filled = torch.zeros(shape.tolist(), dtype=torch.bool, device=shape.device)
    size = bounds.extent / shape

    def cells(at: Tensor) -> tuple[Tensor, ...]:
        return tuple(((at - bounds.low) / size).long().clamp_min(0).minimum(shape - 1).unbind(-1))

    for part in points:
        filled[cells(part[bounds.contains(part)])] = True
    return (lambda centers, half: filled[cells(centers)]) if bool(filled.any()) else None


@dataclass(frozen=True)
class _DepthMap:
    """A view as it is kept."""

    camera: Camera
    depths: Tensor  # (H, W) float32 along the ray, NOTHING where nothing is seen
    colors: Tensor | None  # (H, W, 3) uint8

    @staticmethod
    def of(camera: Camera, view: Pixels, device: torch.device) -> _DepthMap:
        if view.depths is None or view.depths.shape != (camera.height, camera.width):
            got = None if view.depths is None else tuple(view.depths.shape)
            raise ValueError(
                f"fuse_depths: views: expected depths of shape {(camera.height, camera.width)}, got {got}; "
                "render the cameras' own images"
            )
        seen = view.depths > 0 if view.alphas is None else (view.alphas >= 0.5) & (view.depths > 0)
        colors = None if view.colors is None else (view.colors.clamp(0, 1) * 255).round().byte().to(device)
        depths = torch.where(seen, view.depths, NOTHING).float()
        return _DepthMap(camera.to(device), depths.to(device), colors)

    def points(self) -> Tensor:
        """(N, 3) where its rays end."""
        rays = self.camera.rays()
        depths = self.depths.reshape(-1)
        seen = depths < NOTHING
        return (rays.origins + rays.directions * depths[:, None])[seen]

    def look(self, points: Tensor, truncation: float) -> tuple[Tensor, Tensor, Tensor]:
        """points (N, 3) -> d (N,) at most 1, their weights (N,), and where they are in the image (N, 2)."""
        pixels, _ = self.camera.project(points)
        unit = pixels / pixels.new_tensor([self.camera.width, self.camera.height])
        inside = ((unit >= 0) & (unit <= 1)).all(-1)  # NaN compares False
        places = (unit * 2 - 1).nan_to_num(2.0)
        depth, nearest = (sampled(self.depths[None], places, mode)[:, 0] for mode in ("bilinear", "nearest"))
        depth = torch.where((depth - nearest).abs() < truncation, depth, nearest)  # nothing lies between two surfaces
        d = ((depth - (points - self.camera.position).norm(dim=-1)) / truncation).clamp(max=1)
        return d, (1 + d).clamp(0, 1) * inside, places


def _fuse(maps: list[_DepthMap], bounds: Aabb, voxel: float, truncation: float, max_bytes: int) -> Mesh | None:
    """The mesh of one box; None if no depth lies in it."""
    resolution = max(1, round(float(bounds.extent.max()) / voxel))
    occupied = blocks_with((view.points() for view in maps), bounds, resolution)
    if occupied is None:
        return None

    def distance(points: Tensor) -> Tensor:
        total, weights = torch.zeros_like(points[:, 0]), torch.zeros_like(points[:, 0])
        for view in maps:
            d, weight, _ = view.look(points, truncation)
            total += d * weight
            weights += weight
        return torch.where(weights > 0, total / weights, -1.0)

    options = dict(occupied=occupied, margin=math.inf, gradient_normals=False, chunk=CHUNK, max_bytes=max_bytes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OpenSurfaceWarning)  # what closes off the unseen often meets the bounds
        mesh = isosurface(distance, bounds, resolution, **options)  # type: ignore[arg-type]
    assert mesh.normals is not None
    parts = [
        _attributes(maps, v, n, truncation)
        for v, n in zip(mesh.vertices.split(CHUNK), mesh.normals.split(CHUNK), strict=True)
    ]
    seen, colors = (torch.cat(part) for part in zip(*parts, strict=True))
    if any(view.colors is not None for view in maps):
        mesh = replace(mesh, colors=colors)
    return keep_faces(mesh, seen[mesh.faces].all(1))


def _attributes(maps: list[_DepthMap], vertices: Tensor, normals: Tensor, truncation: float) -> tuple[Tensor, Tensor]:
    """(V,) bool: whether a view has a depth near a vertex; (V, 3) the views' colours there, those that face it most."""
    seen = torch.zeros(len(vertices), dtype=torch.bool, device=vertices.device)
    colors, weights = torch.zeros_like(vertices), torch.zeros_like(vertices[:, :1])
    for view in maps:
        d, weight, places = view.look(vertices, truncation)
        near = (d < 1) & (weight > 0)
        seen |= near
        if view.colors is None:
            continue
        towards = functional.normalize(view.camera.position - vertices, dim=-1)
        facing = (towards * normals).sum(-1).clamp(min=0.01).square()
        weight = (weight * near * facing)[:, None]
        colors += weight * sampled(view.colors.permute(2, 0, 1).float() / 255, places)
        weights += weight
    return seen, colors / weights.clamp(min=1e-12)
