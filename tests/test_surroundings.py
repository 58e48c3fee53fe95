"""The floor that photographs show, and points for what structure from motion leaves out."""

import math
from dataclasses import replace

import pytest
import torch
from polyfield.apps.surroundings import surroundings
from polyfield.datasets.scene import Frame, Scene
from polyfield.geometry import Aabb, Camera, Rays
from polyfield.geometry.floor import FloorView, Plane, find_floor
from polyfield.geometry.transforms import look_at
from torch.nn import functional

UP = functional.normalize(torch.tensor([0.03, -0.02, 1.0]), dim=0)
FLOOR = Plane(UP, -0.5)
SKY, WALL = (0.2, 0.4, 0.9), 2.0  # a wall of points stands at x = WALL


def cameras() -> list[Camera]:
    """A walk along the wall, looking at it and a little upwards."""
    found = []
    for y in torch.linspace(-0.8, 0.8, 6).tolist():
        pose = look_at(torch.tensor([-1.0, y, 0.0]), torch.tensor([WALL, 0.2 * y, 0.3]), torch.tensor([0.0, 0.0, 1.0]))
        found.append(Camera.perspective(256, 192, math.radians(60), pose))
    return found


def pattern(points: torch.Tensor) -> torch.Tensor:
    x, y = points[:, 0], points[:, 1]
    fading = 1 / (1 + (points[:, :2].norm(dim=-1) / 4) ** 4)  # before its waves are finer than pixels
    return 0.5 + fading * (0.2 * torch.sin(5 * x + 2 * y) + 0.2 * torch.cos(4 * y - x))


def photograph(camera: Camera, gain: float) -> torch.Tensor:
    rays = camera.rays()
    t = FLOOR.distances(rays)
    floor = pattern(rays.origins + rays.directions * t.clamp(max=100)[:, None]) * gain
    colors = torch.where((t < 50)[:, None], floor[:, None].expand(-1, 3), torch.tensor(SKY))
    return (colors * 255).round().to(torch.uint8).view(camera.height, camera.width, 3)


def test_distances_to_a_plane():
    rays = Rays(
        torch.zeros(3, 3),
        torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.6, -0.8], [0.0, 0.0, 1.0]]),
        torch.zeros(3),
        torch.full((3,), math.inf),
    )
    torch.testing.assert_close(
        Plane(torch.tensor([0.0, 0.0, 1.0]), -2.0).distances(rays), torch.tensor([2.0, 2.5, math.inf])
    )


def test_the_floor_is_found_where_photographs_agree():
    views = []
    for i, camera in enumerate(cameras()):
        image = photograph(camera, 1 - 0.05 * i).float().mean(-1) / 255
        pixels = camera.pixel_centers().reshape(-1, 2)
        pixels = pixels[camera.rays(pixels).directions[:, 2] < -0.05]
        views.append(FloorView(camera, image, pixels[::20]))
    guess = Plane(torch.tensor([0.0, 0.0, 1.0]), -0.62)
    found = find_floor(views, guess, 0.62)
    below = torch.tensor([-1.0, 0.0, 0.0])
    assert float((found.normal @ UP).clamp(max=1).acos()) < math.radians(0.7)
    assert float(below @ found.normal) - found.height == pytest.approx(float(below @ UP) + 0.5, rel=0.03)


def test_views_without_a_floor_leave_the_guess():
    views = [FloorView(c, torch.zeros(c.height, c.width), c.pixel_centers().reshape(-1, 2)[-200:]) for c in cameras()]
    guess = Plane(torch.tensor([0.0, 0.0, 1.0]), -0.62)
    assert find_floor(views, guess, 0.62) is guess


def scene(**changes) -> Scene:
    frames = tuple(Frame(f"{i}.png", c, photograph(c, 1.0)) for i, c in enumerate(cameras()))
    wall = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.0, 3.0, 1.0])
    points = wall + torch.tensor([WALL, -1.5, -0.5])
    return Scene("walk", frames, torch.eye(4), Aabb.cube(16.0), cascades=5, points=points, **changes)


def test_holes_are_filled_by_a_floor_and_a_far_shell():
    walk = scene()
    points, colors = surroundings(walk, walk.points, 3000, torch.Generator().manual_seed(1))
    assert 2900 <= len(points) <= 3100 and points.shape == colors.shape
    heights = points @ UP
    far = torch.stack([(points - c.position).norm(dim=-1) for c in cameras()]).amin(0) > 8
    assert 0.1 < far.float().mean() < 0.9
    near = heights[~far]
    assert float((near + 0.5).abs().median()) < 0.04  # on the floor
    assert float((colors[far] - torch.tensor(SKY)).abs().median()) < 0.02  # the sky's colour is far away
    sky = (colors - torch.tensor(SKY)).abs().amax(-1) < 0.01
    assert float(far[sky].float().mean()) > 0.95


def test_no_points_where_there_are_no_holes():
    walk = scene()
    full = torch.cat([c.rays().origins + 3 * c.rays().directions for c in cameras()])
    points, colors = surroundings(walk, full, 100, torch.Generator().manual_seed(1))
    assert len(points) == len(colors) == 0


def test_masked_pixels_give_no_points():
    walk = scene()
    masked = tuple(replace(f, mask=torch.zeros(f.camera.height, f.camera.width, dtype=torch.bool)) for f in walk.frames)
    points, _ = surroundings(walk.with_frames(masked), walk.points, 100, torch.Generator().manual_seed(1))
    assert len(points) == 0
