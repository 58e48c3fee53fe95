"""Cameras that are put wrong on purpose, and how far they are off: for benchmarks of what finds them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from polyfield.datasets.scene import Scene, Split
from polyfield.geometry import Camera
from polyfield.geometry.transforms import (
    rigid,
    se3_exp,
    similarity,
    similarity_inverse,
    transform_points,
    transform_poses,
)
from torch import Tensor


def perturbed(scene: Scene, degrees: float, share: float, seed: int = 0) -> Scene:
    """Every training camera turned by so many degrees about its centre, which is moved by this share of its distance.

    Directions are random. The distance is the cameras' mean from the middle of the scene.
    """
    shots = [f for f in scene.frames if f.split is Split.TRAIN]
    g = torch.Generator().manual_seed(seed)
    ways = torch.nn.functional.normalize(torch.randn(len(shots), 2, 3, generator=g), dim=-1)
    sizes = torch.tensor([share * distance([f.camera for f in shots]), torch.tensor(degrees).deg2rad()])
    motions = se3_exp((ways * sizes[:, None]).flatten(1))
    moved = {f.name: _moved(f.camera, motion) for f, motion in zip(shots, motions, strict=True)}
    return scene.with_frames(tuple(replace(f, camera=moved.get(f.name, f.camera)) for f in scene.frames))


def _moved(camera: Camera, motion: Tensor) -> Camera:
    pose = camera.camera_to_world
    motion = motion.to(pose)
    return replace(camera, camera_to_world=rigid(motion[:3, :3] @ pose[:3, :3], pose[:3, 3] + motion[:3, 3]))


def distance(cameras: Sequence[Camera]) -> float:
    """Mean distance from the middle of the scene."""
    return float(torch.stack([c.position for c in cameras]).norm(dim=-1).mean())


@dataclass(frozen=True)
class Misplaced:
    """What is left between cameras and the truth once they are put on it by a similarity."""

    degrees: float  # mean angle
    share: float  # mean distance, of the true cameras' mean from the middle
    to_truth: Tensor  # (4, 4) float64: the similarity

    def as_seen(self, camera: Camera) -> Camera:
        """A true camera among the misplaced."""
        pose = camera.camera_to_world
        moved = transform_poses(similarity_inverse(self.to_truth), pose.double())
        return replace(camera, camera_to_world=moved.to(pose))


def misplaced(cameras: Sequence[Camera], truth: Sequence[Camera]) -> Misplaced:
    """Cameras against true ones, after the similarity that turns them all alike and brings their centres together best.

    The turn is the mean over cameras (Moakher, "Means and averaging in the group of rotations", 2002): their centres,
    which may lie close to a line, tell less of it.
    """
    found, true = (torch.stack([c.camera_to_world.double() for c in cs]).detach() for cs in (cameras, truth))
    u, _, vt = torch.linalg.svd((true[:, :3, :3] @ found[:, :3, :3].mT).mean(0))
    turn = u @ torch.tensor([1, 1, torch.linalg.det(u @ vt).sign()]).to(u).diag() @ vt
    a, b = found[:, :3, 3], true[:, :3, 3]
    turned, middle = (a - a.mean(0)) @ turn.T, b.mean(0)
    scale = (turned * (b - middle)).sum() / turned.square().sum()
    to_truth = similarity(scale, turn, middle - scale * turn @ a.mean(0))
    between = true[:, :3, :3].mT @ turn @ found[:, :3, :3]
    chords = (between - torch.eye(3).to(a)).flatten(1).norm(dim=-1) / 8**0.5
    away = (transform_points(to_truth, a) - b).norm(dim=-1).mean()
    angles = 2 * chords.clamp(max=1).asin()
    return Misplaced(float(angles.rad2deg().mean()), float(away) / distance(truth), to_truth)
