"""The first Gaussians: as large as the gaps between points, in their colours; where random and mesh points lie."""

import math

import pytest
import torch
from polyfield.fields.gaussian_init import from_points, mesh_points, random_points
from polyfield.geometry import Aabb, Mesh
from polyfield.geometry.gaussians import SH_C0


def test_as_large_as_the_gaps():
    """On a lattice, the three nearest are one step away."""
    axis = torch.arange(12.0) * 0.2
    points = torch.cartesian_prod(axis, axis, axis)
    colors = torch.rand(len(points), 3, generator=torch.Generator().manual_seed(0))
    g = from_points(points, colors, degree=2, opacity=0.3, share=0.5)
    torch.testing.assert_close(g.scales, torch.full((1728, 3), 0.1), rtol=1e-4, atol=0)
    torch.testing.assert_close(g.opacities, torch.full((1728,), 0.3))
    assert torch.equal(g.means, points) and g.means.data_ptr() != points.data_ptr()
    assert g.quats.tolist() == [[1, 0, 0, 0]] * 1728
    assert g.sh.shape == (1728, 9, 3)
    torch.testing.assert_close(g.sh[:, 0] * SH_C0 + 0.5, colors)
    assert not g.sh[:, 1:].any()


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_few_points(count):
    g = from_points(torch.rand(count, 3), torch.rand(count, 3))
    assert len(g) == count
    assert g.log_scales.isfinite().all()


def test_points_in_one_place_and_far_away():
    points = torch.zeros(50, 3)
    assert from_points(points, points).log_scales.isfinite().all()
    points[:10] = torch.rand(10, 3)
    points[-1] = 1e4
    g = from_points(points, torch.zeros(50, 3))
    assert g.log_scales.isfinite().all()
    assert g.scales.max() <= 1e4 * math.sqrt(3) / 10 + 1, "at most a tenth of the extent"


def test_random_points_fill_the_bounds():
    bounds = Aabb(torch.tensor([-1.0, 0, 2]), torch.tensor([1.0, 4, 3]))
    points, colors = random_points(bounds, 5000, torch.Generator().manual_seed(0))
    assert bounds.contains(points).all()
    torch.testing.assert_close(points.mean(0), torch.tensor([0.0, 2.0, 2.5]), atol=0.1, rtol=0)
    assert (colors == 0.5).all()


def test_mesh_points_are_uniform_by_area():
    """Two triangles in a plane, one four times the other."""
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [4, 0, 0], [2, 2, 0]])
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [3, 4, 5]]), colors=vertices / 4)
    points, colors = mesh_points(mesh, 20_000, torch.Generator().manual_seed(0))
    assert (points[:, 2] == 0).all()
    torch.testing.assert_close(colors, points / 4, atol=1e-5, rtol=1e-5)
    small = points[points[:, 0] < 1.5]
    assert len(small) / 20_000 == pytest.approx(0.2, abs=0.02)
    assert (small[:, 0] + small[:, 1] <= 1 + 1e-6).all()
    torch.testing.assert_close(small.mean(0)[:2], torch.full((2,), 1 / 3), atol=0.02, rtol=0)
    grey = mesh_points(Mesh(mesh.vertices, mesh.faces), 10, torch.Generator())[1]
    assert (grey == 0.5).all()


def test_a_mesh_without_a_surface():
    empty = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="mesh_points: mesh: expected a surface, got no triangle with an area"):
        mesh_points(empty, 5, torch.Generator())
    with pytest.raises(ValueError, match="got no triangle"):
        mesh_points(Mesh(empty.vertices, empty.faces[:0]), 5, torch.Generator())
