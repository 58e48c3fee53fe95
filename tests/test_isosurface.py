import math
import warnings

import pytest
import torch
from polyfield.cuda.marching_cubes import marching_cubes
from polyfield.geometry import Aabb
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.metrics import chamfer
from polyfield.geometry.sparse_blocks import OpenSurfaceWarning
from polyfield.geometry.types import Mesh


class Counted:
    """A function that counts its points and remembers the largest call."""

    def __init__(self, function):
        self.function, self.points, self.largest = function, 0, 0

    def __call__(self, points):
        assert not torch.is_grad_enabled()
        self.points += len(points)
        self.largest = max(self.largest, len(points))
        return self.function(points)


def sphere(points):
    return points.norm(dim=1) - 0.6


def torus(points):
    x, y, z = points.unbind(1)
    return ((x.square() + y.square()).sqrt() - 0.6).square().add(z.square()).sqrt() - 0.2


def edge_counts(mesh):
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    return torch.unique(edges.sort(1).values, dim=0, return_counts=True)


def signed_volume(mesh):
    a, b, c = mesh.vertices.double()[mesh.faces].unbind(1)
    return float((a * b.cross(c, dim=1)).sum() / 6)


@pytest.mark.parametrize(("function", "characteristic"), [(sphere, 2), (torus, 0)])
@pytest.mark.parametrize("resolution", [16, 50, 96])
def test_closed_shapes(function, characteristic, resolution):
    mesh = isosurface(function, Aabb.cube(), resolution)
    edges, counts = edge_counts(mesh)
    assert (counts == 2).all()
    assert len(mesh.vertices) - len(edges) + len(mesh.faces) == characteristic
    assert function(mesh.vertices).abs().max() < 2 / resolution**1.5
    assert signed_volume(mesh) > 0
    grown = mesh.vertices + 0.05 * mesh.normals
    assert (function(grown) > 0.042).all()


def test_equals_the_dense_lattice():
    axis = torch.linspace(-1, 1, 65)
    points = torch.cartesian_prod(axis, axis, axis)
    vertices, faces = marching_cubes(torus(points).view(65, 65, 65))
    mesh = isosurface(torus, Aabb.cube(), 64)
    assert len(mesh.vertices) == len(vertices) and len(mesh.faces) == len(faces)
    world = vertices / 32 - 1
    order = lambda v: v[(v * 1e3).round().mul(torch.tensor([1e8, 1e4, 1.0]).double()).sum(1).argsort()]  # noqa: E731
    torch.testing.assert_close(world.sum(0), mesh.vertices.sum(0), atol=1e-2, rtol=0)
    assert chamfer(order(world), order(mesh.vertices)) < 1e-6


def test_a_density_is_the_same_surface_turned():
    distance = isosurface(sphere, Aabb.cube(), 32)
    density = isosurface(lambda p: 10 - 5 * sphere(p), Aabb.cube(), 32, 10.0, inside_is_above=True)
    assert len(density.faces) == len(distance.faces)
    assert signed_volume(density) == pytest.approx(signed_volume(distance), rel=1e-4)
    assert signed_volume(density) > 0
    assert ((density.normals * density.vertices).sum(1) > 0.5).all()


def test_a_sphere_at_512_without_a_dense_lattice():
    function = Counted(sphere)
    mesh = isosurface(function, Aabb.cube(), 512, gradient_normals=False)
    assert function.points < 0.11 * 512**3
    assert function.largest <= 2**18
    assert (mesh.vertices.norm(dim=1) - 0.6).abs().max() < 1e-5
    assert len(mesh.faces) > 5e5
    assert ((mesh.normals * mesh.vertices).sum(1) / 0.6 > 0.99).all()


def test_growth_follows_the_surface_out_of_the_candidates():
    """Only one block is a candidate at first, and yet nothing is cut off."""

    def occupied(centers, half):
        target = torch.tensor([0.6, 0.0, 0.0])
        return ((centers - target).abs() < half + 1e-6).all(1)

    function = Counted(sphere)
    mesh = isosurface(function, Aabb.cube(), 128, occupied=occupied, gradient_normals=False)
    assert (edge_counts(mesh)[1] == 2).all()
    assert len(mesh.faces) == len(isosurface(sphere, Aabb.cube(), 128).faces)
    assert function.points < 0.25 * 128**3


def test_occupied_keeps_unconnected_parts_out():
    def two(points):
        return torch.minimum((points - 0.5).norm(dim=1), (points + 0.5).norm(dim=1)) - 0.3

    mesh = isosurface(two, Aabb.cube(), 64, occupied=lambda centers, half: centers[:, 0] > 0)
    assert (mesh.vertices > 0.1).all()
    assert (edge_counts(mesh)[1] == 2).all()


def test_bounds_of_any_shape():
    bounds = Aabb(torch.tensor([-0.7, -1.0, -2.0]), torch.tensor([0.9, 1.1, 1.5]))
    mesh = isosurface(sphere, bounds, 70)
    assert (edge_counts(mesh)[1] == 2).all()
    assert (mesh.vertices.norm(dim=1) - 0.6).abs().max() < 1e-2
    assert isosurface(sphere, bounds, 1).faces.shape[0] > 0


def test_results_of_a_function_that_depends_on_its_batch():
    """A network's last bits change with the batch; shared values must still agree."""

    def shaky(points):
        return torus(points) + 1e-7 * torch.rand(len(points), generator=torch.Generator().manual_seed(len(points)))

    mesh = isosurface(shaky, Aabb.cube(), 64, occupied=lambda c, h: c.norm(dim=1) < 0.7, chunk=5000)
    assert (edge_counts(mesh)[1] == 2).all()


def test_an_open_surface_warns():
    with pytest.warns(OpenSurfaceWarning, match="meets the bounds"):
        mesh = isosurface(lambda p: p[:, 2] - 0.1, Aabb.cube(), 24)
    assert mesh.vertices[:, 2].sub(0.1).abs().max() < 1e-5
    torch.testing.assert_close(mesh.normals, torch.tensor([0.0, 0.0, 1.0]).expand_as(mesh.normals), atol=1e-3, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        isosurface(sphere, Aabb.cube(), 24)


def test_runs_are_identical():
    a, b = (isosurface(torus, Aabb.cube(), 40) for _ in range(2))
    assert torch.equal(a.vertices, b.vertices) and torch.equal(a.faces, b.faces) and torch.equal(a.normals, b.normals)
    assert isinstance(a, Mesh) and a.faces.dtype == torch.int64


def test_errors():
    cube = Aabb.cube()
    with pytest.raises(
        ValueError, match=r"isosurface: level: expected .* got 5; values found range from -0\.\d+ to 1\.\d+"
    ):
        isosurface(sphere, cube, 32, 5.0)
    with pytest.raises(ValueError, match="isosurface: level"):
        isosurface(lambda p: torch.zeros(len(p)), cube, 32)
    with pytest.raises(ValueError, match=r"isosurface: level: .*values found range from inf to -inf"):
        isosurface(sphere, cube, 32, occupied=lambda c, h: torch.zeros(len(c), dtype=torch.bool))
    with pytest.raises(ValueError, match=r"isosurface: function: expected numbers, got NaN at \[.*\]"):
        isosurface(lambda p: torch.where(p[:, 0] > 0.5, math.nan, sphere(p)), cube, 32)
    with pytest.raises(ValueError, match=r"isosurface: function: expected values of shape \((\d+),\) .* got \(\1, 1\)"):
        isosurface(lambda p: sphere(p)[:, None], cube, 32)
    with pytest.raises(ValueError, match="isosurface: resolution: expected at least 1 cell, got 0"):
        isosurface(sphere, cube, 0)
    with pytest.raises(ValueError, match="isosurface: bounds: expected low < high"):
        isosurface(sphere, Aabb(cube.high, cube.low), 32)
    with pytest.raises(ValueError, match="isosurface: max_bytes: expected the surface's blocks to fit into 1 MiB"):
        isosurface(sphere, cube, 256, max_bytes=2**20)
