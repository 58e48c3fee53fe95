import pytest
import torch
from polyfield.geometry import Aabb
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.mesh_ops import sample_surface
from polyfield.geometry.metrics import chamfer, distances, f_score, nearest, normal_consistency


def ball(radius, resolution=48):
    return isosurface(lambda p: p.norm(dim=1) - radius, Aabb.cube(), resolution)


@pytest.fixture(scope="module")
def small():
    return ball(0.5)


@pytest.fixture(scope="module")
def large():
    return ball(0.6)


def test_concentric_spheres(small, large):
    """Every point of one is 0.1 from the other."""
    assert chamfer(small, large, samples=20_000) == pytest.approx(0.1, abs=1e-3)
    assert f_score(small, large, 0.09, samples=5000) == 0
    assert f_score(small, large, 0.12, samples=5000) == 1
    assert normal_consistency(small, large, samples=5000) > 0.995
    assert chamfer(large, small, samples=5000) == pytest.approx(chamfer(small, large, samples=5000), abs=1e-6)


def test_the_floor_of_sampling(small):
    points = sample_surface(small, 50_000, torch.Generator().manual_seed(3))[0]
    floor = chamfer(small, points, samples=50_000)
    assert floor == pytest.approx(0.5 * (3.14159 / 50_000) ** 0.5, rel=0.1)
    analytic = (
        torch.nn.functional.normalize(torch.randn(50_000, 3, generator=torch.Generator().manual_seed(0)), dim=1) * 0.5
    )
    assert chamfer(small, analytic, samples=50_000) == pytest.approx(floor, rel=0.05)


def test_worked_by_hand():
    a = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    b = torch.tensor([[0.0, 0, 3]])
    forward, backward = distances(a, b)
    torch.testing.assert_close(forward, torch.tensor([3.0, 10**0.5], dtype=torch.float64))
    torch.testing.assert_close(backward, torch.tensor([3.0], dtype=torch.float64))
    assert chamfer(a, b) == pytest.approx(((3 + 10**0.5) / 2 + 3) / 2)
    assert f_score(a, b, 3.05) == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert nearest(b, a)[1].tolist() == [0]


def test_errors():
    with pytest.raises(ValueError, match=r"nearest: points: expected shape \(N, 3\) with N >= 1, got \(0, 3\)"):
        nearest(torch.zeros(0, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"nearest: others: expected shape \(N, 3\) with N >= 1, got \(2, 2\)"):
        chamfer(torch.zeros(1, 3), torch.zeros(2, 2))
