"""Where a capture's content is: the similarity that takes its region of interest to [-1, 1]^3.

The focus is the point nearest to all optical axes, sum (I - f f^T) x = sum (I - f f^T) p, reweighted against cameras
that look elsewhere. Objects before an empty background are located by their silhouettes (the bounding box of the visual
hull). Only a shift and a scale are applied: the axes stay the user's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.cameras import Camera
from ..geometry.transforms import similarity
from ..geometry.types import CameraModel

CASCADES_OUTSIDE = 5  # background up to 16 times the region of interest


@dataclass(frozen=True)
class Placement:
    """The region of interest: a cube about ``center``, and how far the content reaches beyond it."""

    center: Tensor  # (3,) float64, the data set's units
    half: float
    cascades: int = 1

    @property
    def scene_to_world(self) -> Tensor:
        """(4, 4) float64."""
        return similarity(self.half, torch.eye(3, dtype=torch.float64), self.center)


def focus_point(positions: Tensor, forwards: Tensor) -> tuple[Tensor, float]:
    """Positions and unit axes (V, 3) -> the point (3,) nearest to the axes, and how well they fix it.

    The second is the smallest eigenvalue of mean (I - f f^T): 0 for parallel axes, 2/3 for axes from all sides.
    """
    across = torch.eye(3, dtype=positions.dtype) - forwards[:, :, None] * forwards[:, None, :]
    certainty = float(torch.linalg.eigvalsh(across.mean(0))[0])
    weights = torch.ones_like(positions[:, 0])
    point = positions.mean(0)
    for _ in range(20):
        system = (weights[:, None, None] * across).sum(0) + 1e-9 * torch.eye(3, dtype=positions.dtype)
        right = (weights[:, None, None] * across @ positions[:, :, None]).sum(0)[:, 0] + 1e-9 * positions.mean(0)
        point = torch.linalg.solve(system, right)
        misses = (across @ (point - positions)[:, :, None])[..., 0].norm(dim=-1)
        scale = misses.median().clamp_min(1e-9)
        weights = 1 / (1 + (misses / (2 * scale)) ** 2)
    return point, certainty


def place_capture(cameras: Sequence[Camera], near_far: tuple[float, float] | None = None) -> Placement:
    """The region of interest of photographs with a background.

    Around a subject: the sphere about the focus that every camera sees. Forward-facing: the middle of the depth range,
    in disparity. Otherwise (walking through rooms): all camera positions.
    """
    cameras = together(cameras)
    positions, forwards = _axes(cameras)
    point, certainty = focus_point(positions, forwards)
    toward = point - positions
    distance = toward.norm(dim=-1)
    ahead = float(((toward * forwards).sum(-1) > 0).double().mean())
    spread = float((positions - positions.mean(0)).norm(dim=-1).max())
    mean_forward = forwards.mean(0)
    if certainty > 0.02 and ahead > 0.8:
        seen = torch.tensor([_narrow_tangent(c) for c in cameras], dtype=torch.float64).clamp_max(1) * distance
        return Placement(point, float(seen.median()), CASCADES_OUTSIDE)
    if float(mean_forward.norm()) > 0.8:
        near, far = near_far or (2.0 * spread, 20.0 * spread)
        middle = 2 / (1 / near + 1 / far)
        forward = mean_forward / mean_forward.norm()
        half = max(middle - near, middle * max(_narrow_tangent(c) for c in cameras))
        cascades = max(2, math.ceil(math.log2(max((far - middle) / half, 1.0))) + 1)
        return Placement(positions.mean(0) + forward * middle, half, min(cascades, CASCADES_OUTSIDE))
    center = (positions.min(0).values + positions.max(0).values) / 2
    half = float((positions - center).abs().max())
    return Placement(center, half * 1.25 if half > 0 else 1.0, CASCADES_OUTSIDE)


def together(cameras: Sequence[Camera], limit: float = 8.0) -> Sequence[Camera]:
    """Without those that lie ``limit`` times farther from the median position than usual: their poses went wrong."""
    positions, _ = _axes(cameras)
    distance = (positions - positions.median(0).values).norm(dim=-1)
    near = distance <= limit * distance.median()
    kept = [c for c, is_near in zip(cameras, near.tolist(), strict=True) if is_near]
    return kept if len(kept) * 3 >= len(cameras) * 2 else cameras


def up_direction(poses: Tensor) -> Tensor:
    """Camera-to-world poses (V, 4, 4) of upright photographs -> (3,) unit, upwards.

    The direction across all images' horizontal axes, which looking up or down does not turn; cameras held askew or
    on end weigh little. Where the horizontal axes do not fix it (all looking one way), the mean upward axis.
    """
    poses = poses.double()
    across, mean = poses[:, :3, 0], torch.nn.functional.normalize(-poses[:, :3, 1].mean(0), dim=0)
    up, weights = mean, torch.ones(len(poses), dtype=torch.float64)
    for _ in range(20):
        spread, axes = torch.linalg.eigh((weights[:, None, None] * across[:, :, None] * across[:, None, :]).sum(0))
        if float(spread[1]) < 0.05 * float(spread[2]):
            return mean
        up = axes[:, 0] * torch.sign(axes[:, 0] @ mean)
        leaning = (across @ up).abs()
        weights = 1 / (1 + (leaning / (2 * leaning.median().clamp_min(0.01))) ** 2)
    return up if float(up @ mean) > 0.3 else mean


def is_nerf_synthetic(cameras: Sequence[Camera]) -> bool:
    """Whether cameras look from about 4 units at the origin, as in the synthetic scenes of Mildenhall et al. (2020),
    whose content lies in [-1.5, 1.5]^3."""
    positions, forwards = _axes(cameras)
    point, certainty = focus_point(positions, forwards)
    distance = positions.norm(dim=-1)
    return certainty > 0.02 and float(point.norm()) < 0.3 and bool(((distance > 3) & (distance < 5)).all())


def place_object(cameras: Sequence[Camera], silhouettes: Sequence[Tensor], margin: float = 1.08) -> Placement:
    """The cube about the visual hull of silhouettes (H, W) bool; what a camera cannot see, it does not carve."""
    positions, forwards = _axes(cameras)
    point, _ = focus_point(positions, forwards)
    half = float((point - positions).norm(dim=-1).median())
    every = max(1, len(cameras) // 40)
    views = [_small(c, s) for c, s in zip(cameras[::every], silhouettes[::every], strict=True)]
    low, high = point - half, point + half
    for resolution in (48, 48, 64):
        cell = (high - low) / resolution
        axes = [low[i] + (torch.arange(resolution, dtype=torch.float64) + 0.5) * cell[i] for i in range(3)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        inside = points[_hull(points, views, float(cell.max()) * 0.87)]
        if not len(inside):  # silhouettes contradict each other: fall back on what the cameras look at
            return Placement(point, 0.5 * half)
        low, high = inside.min(0).values - cell, inside.max(0).values + cell
    return Placement((low + high) / 2, float((high - low).max()) / 2 * margin)


def _hull(points: Tensor, views: Sequence[tuple[Camera, Tensor]], radius: float) -> Tensor:
    """(N,) bool: points whose neighbourhood of ``radius`` meets every silhouette that could show it."""
    kept = torch.arange(len(points))
    seen = torch.zeros(len(points), dtype=torch.long)
    for camera, silhouette in views:
        pixels, depths = camera.project(points[kept])
        size = pixels.new_tensor([camera.width, camera.height])
        inside = ((pixels >= 0) & (pixels < size)).all(-1)
        reach = 0
        if bool(inside.any()):
            reach = int((camera.K[0, 0] * radius / depths[inside].clamp_min(radius)).median().ceil().clamp_max(48))
        grown = torch.nn.functional.max_pool2d(silhouette[None, None], (2 * reach + 1, 1), 1, (reach, 0))
        grown = torch.nn.functional.max_pool2d(grown, (1, 2 * reach + 1), 1, (0, reach))[0, 0] > 0
        column, row = pixels[inside].long().unbind(-1)
        seen[kept[inside]] += 1
        carved = torch.zeros(len(kept), dtype=torch.bool)
        carved[inside] = ~grown[row, column]
        kept = kept[~carved]
    result = torch.zeros(len(points), dtype=torch.bool)
    result[kept] = seen[kept] * 2 >= len(views)
    return result


def _small(camera: Camera, silhouette: Tensor, size: int = 96) -> tuple[Camera, Tensor]:
    """The camera and its silhouette (H, W) float at up to ``size`` pixels a side; a pixel is filled if any of it is."""
    shrink = max(1.0, max(camera.width, camera.height) / size)
    small = camera.downscaled(shrink)
    filled = torch.nn.functional.adaptive_max_pool2d(silhouette[None, None].float(), (small.height, small.width))
    return small, filled[0, 0]


def _axes(cameras: Sequence[Camera]) -> tuple[Tensor, Tensor]:
    positions = torch.stack([c.position for c in cameras]).double()
    return positions, torch.stack([c.forward for c in cameras]).double()


def _narrow_tangent(camera: Camera) -> float:
    """Tangent of half the narrower field of view, at most that of 45 degrees for very wide lenses."""
    if camera.model is CameraModel.EQUIRECTANGULAR:
        return 1.0
    return min(camera.width / float(camera.K[0, 0]), camera.height / float(camera.K[1, 1])) / 2
