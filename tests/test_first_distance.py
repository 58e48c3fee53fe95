"""Where fits of distances begin: carving by depths, distances to what is left, and the field that learns them."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.first_distance import FirstDistance, lattice, looked_at, solid_distances
from polyfield.apps.fit import Budget
from polyfield.apps.recipes import neus
from polyfield.datasets.scene import open_scene
from polyfield.geometry import Aabb, Camera, Pixels
from polyfield.geometry import transforms as tf

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


def test_what_lies_beside_a_wire_is_not_looked_through():
    camera = Camera.perspective(64, 64, 0.6, tf.orbit(torch.zeros(3), 3.0, 1, 0.0, torch.tensor([0.0, 0, 1]))[0])
    depths, alphas = torch.full((64, 64), 3.0), torch.zeros(64, 64)
    alphas[:, 31] = 1.0  # one column of pixels shows it
    pixel = 2 * 3.0 * torch.tan(torch.tensor(0.3)) / 64
    at = camera.position + 3.0 * camera.forward
    points = torch.stack([at + (k + 0.5) * pixel * camera.camera_to_world[:3, 0] for k in (-3, -2, -1, 0, 1, 2)])
    _, empty = looked_at(camera, Pixels(depths=depths, alphas=alphas), points, 0.05)
    assert empty.tolist() == [True, False, False, False, True, True]


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
