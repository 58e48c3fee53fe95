"""Where fits of distances begin: carving by depths, distances to what is left, and the field that learns them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from polyfield.apps.first_distance import FirstDistance, cells_met, lattice, looked_at, solid_distances
from polyfield.apps.fit import Budget
from polyfield.apps.recipes import neus
from polyfield.datasets.scene import open_scene
from polyfield.geometry import Aabb, Camera, Pixels
from polyfield.geometry import transforms as tf
from torch import nn

from .test_surface_fit import RECIPES

R = 32


def test_lattice_goes_through_x_first():
    points = lattice(Aabb(torch.tensor([-1.0, -2, -3]), torch.tensor([1.0, 2, 3])), 4)
    assert points.shape == (64, 3)
    torch.testing.assert_close(points[1] - points[0], torch.tensor([0.5, 0, 0]))
    torch.testing.assert_close(points[16] - points[0], torch.tensor([0, 0, 1.5]))
    torch.testing.assert_close(points.mean(0), torch.zeros(3))


def test_distances_to_a_ball():
    points = lattice(Aabb.cube(1.0), R)
    truth = points.norm(dim=-1) - 0.5
    found = solid_distances((truth < 0).view(R, R, R)).flatten()
    assert (found - truth).abs().max() < 2 / R
    assert ((found < 0) == (truth < 0)).all()


@pytest.mark.parametrize("solid", [False, True])
def test_all_empty_or_all_solid_says_nothing(solid):
    assert solid_distances(torch.full((4, 4, 4), solid)) is None


def test_a_view_looks_through_what_lies_before_its_depths():
    camera = Camera.perspective(64, 64, 0.6, tf.orbit(torch.zeros(3), 3.0, 1, 0.0, torch.tensor([0.0, 0, 1]))[0])
    eye, forward = camera.position, camera.forward
    depths, alphas = torch.full((64, 64), 3.0), torch.ones(64, 64)
    alphas[:, :32] = 0.0
    right = camera.camera_to_world[:3, 0]
    points = torch.stack(
        [
            eye + 2.0 * forward + 0.1 * right,  # before the surface
            eye + 3.0 * forward + 0.1 * right,  # on it
            eye + 3.4 * forward + 0.1 * right,  # behind it
            eye + 5.0 * forward - 0.1 * right,  # where the picture is empty
            eye - 2.0 * forward,  # behind the camera
            eye + 2.0 * forward + 3.0 * right,  # beside the picture
        ]
    )
    inside, empty = looked_at(camera, Pixels(depths=depths, alphas=alphas), points, 0.05)
    assert inside.tolist() == [True, True, True, True, False, False]
    assert empty.tolist() == [True, False, False, True, False, False]


def test_rays_end_in_cells():
    camera = Camera.perspective(64, 64, 0.6, tf.orbit(torch.zeros(3), 3.0, 1, 0.0, torch.tensor([0.0, 0, 1]))[0])
    depths, alphas = torch.full((64, 64), 3.0), torch.zeros(64, 64)
    alphas[20:40, 31] = 1.0  # a wire, one pixel wide
    cells = cells_met(camera, Pixels(depths=depths, alphas=alphas), R)
    assert len(cells) == len(cells.unique()) > 5
    places = lattice(Aabb.cube(1.0), R)[cells]
    assert (((places - camera.position) @ camera.camera_to_world[:3, 0]).abs() < 2 / R).all()
    assert ((places - camera.position).norm(dim=-1) - 3).abs().max() < 2 * 3**0.5 / R
    assert not len(cells_met(camera, Pixels(depths=depths, alphas=0 * alphas), R))


class _Balls(nn.Module):
    """Two opaque balls, drawn exactly; of every third view one pixel in a hundred says that there is nothing."""

    centers, radius = torch.tensor([[0.0, 0, 0.35], [0, 0, -0.35]]), 0.25

    def __init__(self):
        super().__init__()
        self.drawn = 0

    def distance(self, points):
        return (points[:, None] - self.centers).norm(dim=-1).amin(-1) - self.radius

    def render(self, field, camera):
        rays = camera.rays()
        away = rays.origins[:, None] - self.centers
        middle = -(away * rays.directions[:, None]).sum(-1)
        depths = (
            middle - (self.radius**2 - (away + middle[..., None] * rays.directions[:, None]).square().sum(-1)).sqrt()
        )
        depths = depths.nan_to_num(torch.inf).amin(-1)
        if self.drawn % 3 == 0:
            depths[torch.arange(0, len(depths), 100)] = torch.inf
        self.drawn += 1
        shape = (camera.height, camera.width)
        alphas = depths.isfinite().float().view(shape)
        return SimpleNamespace(pixels=Pixels(depths=depths.nan_to_num(posinf=0.0).view(shape), alphas=alphas))


def test_views_vote_for_what_is_solid():
    """What few wrong pixels look through stays, and the gap between two things that are near to one another opens."""
    scene, balls = open_scene("demo", downscale=2), _Balls()
    solid = FirstDistance(resolution=64)._carve(SimpleNamespace(renderer=balls, field=None), scene)
    truth = balls.distance(lattice(Aabb.cube(1.0), 64)).view(64, 64, 64)
    assert solid[truth < -2 / 64].all()
    assert not solid[truth > 3 / 64].any()


def test_a_fit_begins_at_the_surfaces():
    scene = open_scene("demo", downscale=4)
    small = replace(RECIPES["neus"], first=FirstDistance(0.5, 1.0, 150, 48, 20, 50, 120, 4096))
    at_surface = scene.mesh.vertices[::50]
    sphere = small.build(scene, 0).field.distance(at_surface).abs().median()
    job = small.build(scene, 0, budget=Budget(steps=300))
    taught = job.field.distance(at_surface).abs().median()
    assert taught < 0.06 < sphere
    assert job.elapsed > 0
    assert job.step == 0


def test_a_share_of_none_begins_as_a_sphere():
    scene = open_scene("demo", downscale=8)
    config = replace(RECIPES["neus"], first=replace(neus.Config().first, grid_share=0.0))
    field = config.build(scene, 0, budget=Budget(steps=300)).field
    torch.testing.assert_close(field.distance(torch.eye(3)), torch.full((3,), 0.5))
