"""Photographs of a room's corner, papered with noise: rich in key points, and every camera is known.

Three planes x = 0, y = 0 and z = 0, drawn by intersecting each pixel's ray with them. Units are arbitrary.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from polyfield.geometry import Camera
from polyfield.geometry.transforms import look_at

WIDTH, HEIGHT, FOCAL = 256, 192, 230.0
TARGET = (0.9, 0.9, 0.7)
TEXELS, REACH = 512, 4.0  # of a wall's paper, and the length after which it repeats


@cache
def paper(wall: int) -> np.ndarray:
    """(TEXELS, TEXELS, 3) noise of several octaves, in [0, 255]."""
    random = np.random.default_rng(wall)
    total = np.zeros((TEXELS, TEXELS, 3))
    for octave in (16, 32, 64, 128):
        noise = random.random((octave, octave, 3))
        grown = Image.fromarray((noise * 255).astype(np.uint8)).resize((TEXELS, TEXELS), Image.Resampling.BICUBIC)
        total += np.asarray(grown, np.float64) - 127.5
    return np.clip(127.5 + 0.8 * total, 0, 255)


def pose(azimuth: float, height: float = 1.6, distance: float = 3.6, target=TARGET) -> torch.Tensor:
    """(4, 4) camera to world: around the corner's diagonal by ``azimuth`` degrees."""
    angle = math.radians(45 + azimuth)
    eye = torch.tensor([[distance * math.cos(angle), distance * math.sin(angle), height]], dtype=torch.float64)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return look_at(eye, torch.tensor([target], dtype=torch.float64), up)[0]


def around(count: int, spread: float = 50.0) -> list[Camera]:
    """Cameras on an arc of ``spread`` degrees, at changing heights."""
    found = []
    for i in range(count):
        share = i / max(count - 1, 1) - 0.5
        found.append(camera(pose(share * spread, height=1.5 + 0.5 * math.sin(2.1 * i), distance=3.6 + 0.2 * (i % 3))))
    return found


def turning(count: int, spread: float = 40.0) -> list[Camera]:
    """Cameras in one place that only turn."""
    place = pose(0.0)[:3, 3]
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    found = []
    for i in range(count):
        angle = math.radians(225 + (i / (count - 1) - 0.5) * spread)
        ahead = torch.tensor([math.cos(angle), math.sin(angle), -0.3 - 0.05 * (i % 2)], dtype=torch.float64)
        found.append(camera(look_at(place[None], (place + ahead)[None], up)[0]))
    return found


def camera(camera_to_world: torch.Tensor, width: int = WIDTH, height: int = HEIGHT, focal: float = FOCAL) -> Camera:
    """A pinhole whose centre is the image's."""
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, camera_to_world, width, height)


def draw(view: Camera) -> np.ndarray:
    """(H, W, 3) uint8: what the camera sees."""
    rays = view.rays()
    origin, directions = rays.origins[0].double().numpy(), rays.directions.double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        t = -origin / directions  # (N, 3) to each wall
    t[~(t > 1e-6)] = np.inf
    wall = t.argmin(1)
    points = origin + directions * t.min(1)[:, None]
    colors = np.zeros((len(points), 3))
    for k in range(3):
        mine = wall == k
        at = (np.delete(points[mine], k, 1) / REACH * TEXELS) % TEXELS
        colors[mine] = _bilinear(paper(k), at)
    return colors.round().astype(np.uint8).reshape(view.height, view.width, 3)


def _bilinear(texture: np.ndarray, at: np.ndarray) -> np.ndarray:
    low = np.floor(at).astype(int)
    share = (at - low)[..., None]
    corner = [[texture[(low[:, 0] + a) % TEXELS, (low[:, 1] + b) % TEXELS] for b in (0, 1)] for a in (0, 1)]
    left, right = (corner[a][0] * (1 - share[:, 1]) + corner[a][1] * share[:, 1] for a in (0, 1))
    return left * (1 - share[:, 0]) + right * share[:, 0]


def save(path: Path, pixels: np.ndarray, **options) -> None:
    """Write an image, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_photos(folder: Path, cameras: list[Camera], ending: str = ".png") -> list[str]:
    """One photograph per camera, ``photo_000`` and so on; returns their names."""
    names = [f"photo_{i:03d}{ending}" for i in range(len(cameras))]
    for name, view in zip(names, cameras, strict=True):
        save(folder / name, draw(view))
    return names
