"""A picture of a scene's cameras around its points: from above and from the side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..datasets.scene import Frame, Scene, Split
from ..geometry.transforms import transform_points
from ..geometry.types import CameraModel

SIZE = 800  # pixels, a side of each of the two panels
PAPER = (250, 250, 248)
COLORS = {Split.TRAIN: (40, 90, 200), Split.TEST: (225, 110, 20), Split.VAL: (60, 150, 60)}
BOX_EDGES = [(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit]


def camera_picture(scene: Scene) -> Any:
    """A Pillow image: frusta by split, points in their colours, and the region of interest [-1, 1]^3 in grey."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (2 * SIZE, SIZE + 30), PAPER)
    drawing = ImageDraw.Draw(image)
    right, ahead, up = _axes(scene)
    for index, (name, axes) in enumerate((("from above", (right, ahead)), ("from the side", (right, up)))):
        panel = Image.new("RGB", (SIZE, SIZE), PAPER)
        _panel(ImageDraw.Draw(panel), scene, torch.stack(axes))
        image.paste(panel, (index * SIZE, 30))
        drawing.text((index * SIZE + 10, 10), name, fill=(0, 0, 0))
    x = 120
    for split, color in COLORS.items():
        count = len(scene.of(split))
        if count:
            drawing.text((x, 10), f"{split.value}: {count}", fill=color)
            x += 90
    drawing.text((x, 10), "grey: the region of interest", fill=(120, 120, 120))
    return image


def _axes(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Two axes across the scene's up, the first to where cameras spread least in depth, and up itself."""
    up = scene.up.double()
    positions = torch.stack([f.camera.position for f in scene.frames]).double()
    flat = positions - positions.mean(0)
    flat = flat - (flat @ up)[:, None] * up
    axis = torch.linalg.svd(flat, full_matrices=False)[2][0]
    axis = axis - (axis @ up) * up
    if float(axis.norm()) < 1e-6:
        axis = torch.linalg.cross(up, torch.roll(up, 1))
    right = axis / axis.norm()
    return right, torch.linalg.cross(up, right), up


def _panel(drawing: Any, scene: Scene, axes: Tensor) -> None:
    """Draw onto (SIZE, SIZE) along two axes (2, 3)."""
    positions = torch.stack([f.camera.position for f in scene.frames]).double()
    distance = float(positions.norm(dim=-1).median())
    corners = torch.tensor([[(i >> b & 1) * 2.0 - 1 for b in range(3)] for i in range(8)], dtype=torch.float64)
    flat = torch.cat([positions, corners]) @ axes.T
    low, high = flat.min(0).values, flat.max(0).values
    reach = float((high - low).max()) / 2 * 1.2
    middle = (low + high) / 2

    def place(points: Tensor) -> list[tuple[float, float]]:
        spots = (points.double() @ axes.T - middle) / reach * (SIZE / 2)
        return [(SIZE / 2 + x, SIZE / 2 - y) for x, y in spots.tolist()]

    if scene.points is not None:
        chosen = torch.randperm(len(scene.points), generator=torch.Generator().manual_seed(0))[:20_000]
        colors = None if scene.point_colors is None else (scene.point_colors[chosen] * 220).int().tolist()
        for i, (x, y) in enumerate(place(scene.points[chosen])):
            if 0 <= x < SIZE and 0 <= y < SIZE:
                drawing.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(90, 90, 90) if colors is None else tuple(colors[i]))
    box = place(corners)
    for a, b in BOX_EDGES:
        drawing.line((box[a], box[b]), fill=(170, 170, 170))
    for frame in sorted(scene.frames, key=lambda f: f.split is not Split.TRAIN):
        _frustum(drawing, place, frame, 0.12 * distance)


def _frustum(drawing: Any, place: Any, frame: Frame, length: float) -> None:
    """The pyramid of what a camera sees, a bar on the image's upper edge; a cross for panoramas."""
    camera, color = frame.camera, COLORS[frame.split]
    pose = camera.camera_to_world.double()
    if camera.model is CameraModel.EQUIRECTANGULAR:
        ends = torch.cat([torch.eye(3), -torch.eye(3)]).double() * length / 2
        spots = place(transform_points(pose, ends))
        for a, b in zip(spots[:3], spots[3:], strict=True):
            drawing.line((a, b), fill=color)
        return
    K = camera.K.double()
    x = torch.tensor([0.0, camera.width, camera.width, 0.0], dtype=torch.float64)
    y = torch.tensor([0.0, 0.0, camera.height, camera.height], dtype=torch.float64)
    rim = torch.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], torch.ones(4)], -1) * length
    eye, *ends = place(transform_points(pose, torch.cat([torch.zeros(1, 3, dtype=torch.float64), rim])))
    for i in range(4):
        drawing.line((eye, ends[i]), fill=color)
        drawing.line((ends[i], ends[(i + 1) % 4]), fill=color, width=3 if i == 0 else 1)
