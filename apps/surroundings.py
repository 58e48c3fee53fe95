"""Points for what a scene's own points leave out of the photographs: a floor, and a far shell around everything.

Structure from motion finds no points on lawns, gravel and sky. Gaussians that have to grow there from elsewhere come
too late and at wrong distances. So pixels with no point near them are put where their rays meet the floor, near the
height of the lowest points and where photographs agree best, or, of rays that do not, far away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..datasets.scene import Frame, Scene
from ..geometry.floor import FloorView, Plane, find_floor

HOLE = 0.04  # of an image's diagonal: farther than this from all points there is a hole
LOWEST = 0.02  # quantile of the points' heights that counts as the floor's
FAR = 4.0  # times the distance of the farthest points but a twentieth
ASKED = 600  # pixels of each photograph, by which the floor is found
STRIDE = 8  # pixels, of the map of holes


def surroundings(scene: Scene, points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to ``count`` points (N, 3) in the holes that the scene's ``points`` (P, 3) leave, and their colours (N, 3).

    As many from each photograph as its holes are large; none where there are no holes. On the CPU, as photographs are.
    """
    up = scene.up.to(points)
    frames = scene.train
    eyes = torch.stack([f.camera.position for f in frames]).to(points)
    height = float((points @ up).quantile(LOWEST))
    distances = torch.cat([(points - eye).norm(dim=-1) for eye in eyes])
    far = FAR * float(distances.kthvalue(max(1, round(0.95 * len(distances)))).values)
    holes = [_holes(f, points) for f in frames]
    total = sum(len(h) for h in holes)
    floor = _floor(frames, holes, Plane(up, height), float((eyes @ up).median()) - height, generator)
    places, colors = [], []
    for frame, pixels in zip(frames, holes, strict=True):
        share = count * len(pixels) // max(total, 1)
        if not share:
            continue
        chosen = pixels[torch.randint(len(pixels), (share,), generator=generator)]
        jitter = torch.rand(share, 2, generator=generator).to(points)
        at = (chosen + jitter * STRIDE).minimum(chosen.new_tensor([frame.camera.width, frame.camera.height]) - 0.5)
        rays = frame.camera.rays(at)
        t = floor.distances(rays).clamp(max=far)
        places.append(rays.origins + rays.directions * t[:, None])
        column, row = at.long().unbind(-1)
        colors.append(frame.colors[row, column].to(points) / 255)
    if not places:
        return points[:0], points[:0]
    return torch.cat(places), torch.cat(colors)


def _floor(
    frames: Sequence[Frame], holes: Sequence[Tensor], guess: Plane, eye_height: float, generator: torch.Generator
) -> Plane:
    if not eye_height > 0:  # cameras below the lowest points: nobody stands there
        return Plane(guess.normal, -math.inf)
    views = []
    for frame, hole in zip(frames, holes, strict=True):
        corners = hole[frame.camera.rays(hole).directions @ guess.normal < -0.02]
        chosen = torch.randperm(len(corners), generator=generator)[:ASKED]
        brightness = frame.colors.float().mean(-1)[None, None].to(guess.normal) / 255
        small = functional.avg_pool2d(brightness, STRIDE // 2)[0, 0]
        views.append(FloorView(frame.camera, small, corners[chosen] + STRIDE / 2))
    return find_floor(views, guess, eye_height)


def _holes(frame: Frame, points: Tensor) -> Tensor:
    """Corners (N, 2) of the squares of a photograph, STRIDE wide, that are far from all points."""
    from scipy.ndimage import distance_transform_edt

    camera = frame.camera
    width, height = -(-camera.width // STRIDE), -(-camera.height // STRIDE)
    pixels, z = camera.project(points)
    inside = ((pixels >= 0) & (pixels < pixels.new_tensor([camera.width, camera.height]))).all(-1) & (z > 0)
    column, row = (pixels[inside] / STRIDE).long().unbind(-1)
    empty = torch.ones(height, width, dtype=torch.bool)
    empty[row, column] = False
    away = torch.from_numpy(distance_transform_edt(empty.numpy())) if not bool(empty.all()) else empty * 1e9
    hole = away > HOLE * (width**2 + height**2) ** 0.5
    if frame.mask is not None:
        hole &= frame.mask[::STRIDE, ::STRIDE]
    if frame.alphas is not None:
        hole &= frame.alphas[::STRIDE, ::STRIDE] > 0
    return (hole.nonzero().flip(-1) * STRIDE).to(points)
