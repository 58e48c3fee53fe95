import pytest
import torch
from polyfield.geometry import Aabb, Mesh
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.mesh_ops import sample_surface
from polyfield.geometry.metrics import chamfer, compare, distances, f_score, nearest, normal_consistency

FEW = 5000


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


def square(height=0.0, size=1.0):
    """A flat square of two triangles at z = ``height``, its lower corner at the origin."""
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]) * size
    return Mesh(corners + torch.tensor([0.0, 0.0, height]), torch.tensor([[0, 1, 2], [0, 2, 3]]))


def test_a_mesh_beside_the_true_one(small, large):
    scores = compare(small, large, thresholds=(0.12 / 2.078, 0.09 / 2.078), samples=5000)
    diagonal = 1.2 * 3**0.5
    assert scores.diagonal == pytest.approx(diagonal, rel=2e-3)
    assert scores.to_truth == pytest.approx(0.1 / diagonal, rel=0.03)
    assert scores.from_truth == pytest.approx(0.1 / diagonal, rel=0.03)
    assert list(scores.f_scores.values()) == [1, 0]
    assert scores.normal_consistency > 0.995
    assert compare(small, large, samples=5000) == compare(small, large, samples=5000), "the seed is fixed"
    # The same numbers as those of the functions that measure one thing each.
    assert scores.chamfer * scores.diagonal == pytest.approx(chamfer(small, large, samples=5000))
    assert scores.normal_consistency == normal_consistency(small, large, samples=5000)


def test_directions_of_the_distance_are_told_apart():
    """Half of the truth is missing: what is there is right, but what is missing is far away."""
    whole = square()
    half = Mesh(whole.vertices * torch.tensor([0.5, 1.0, 1.0]), whole.faces)
    scores = compare(half, whole, thresholds=(0.01,), samples=50_000)
    diagonal = 2**0.5
    assert scores.diagonal == pytest.approx(diagonal)
    assert scores.to_truth < 1e-9
    assert scores.from_truth == pytest.approx(0.125 / diagonal, rel=0.02), "0 on one half, 0.25 on average on the other"
    recall = 0.5 + 0.01 * diagonal
    assert scores.f_scores[0.01] == pytest.approx(2 * recall / (1 + recall), rel=0.02)
    assert scores.normal_consistency == pytest.approx(1)
    mirrored = compare(whole, half, thresholds=(0.01,), samples=50_000)
    assert mirrored.to_truth * mirrored.diagonal == pytest.approx(scores.from_truth * diagonal)


def test_shifted_planes_and_turned_normals():
    scores = compare(square(0.05), square(), thresholds=(0.03, 0.04), samples=FEW)
    assert scores.to_truth == pytest.approx(0.05 / 2**0.5, rel=0.02)
    assert list(scores.f_scores.values()) == [0, 1]
    flipped = square()
    assert compare(
        Mesh(flipped.vertices, flipped.faces.flip(1)), square(), samples=FEW
    ).normal_consistency == pytest.approx(1)
    turn = torch.tensor([[1.0, 0, 0], [0, 0.5, -(0.75**0.5)], [0, 0.75**0.5, 0.5]])
    turned = Mesh(flipped.vertices @ turn.T, flipped.faces)
    assert compare(turned, square(), samples=FEW).normal_consistency == pytest.approx(0.5, abs=1e-4), "60 degrees"
    unused = Mesh(torch.cat([square().vertices, torch.full((1, 3), 1e6)]), square().faces)
    assert compare(square(), unused, samples=FEW).diagonal == pytest.approx(2**0.5), (
        "vertices that nothing uses do not count"
    )


def test_only_point_sets_have_a_floor_of_sampling(small):
    assert chamfer(small, small, samples=1000) < 1e-7
    points = sample_surface(small, 50_000, torch.Generator().manual_seed(3))[0]
    forward, backward = distances(small, points, samples=50_000)
    assert float(forward.mean()) == pytest.approx(0.5 * (3.14159 / 50_000) ** 0.5, rel=0.1)
    assert float(backward.mean()) < 1e-6
    random = torch.randn(50_000, 3, generator=torch.Generator().manual_seed(0))
    sphere = torch.nn.functional.normalize(random, dim=1) / 2
    assert float(distances(small, sphere, samples=50_000)[1].mean()) < 1e-3, "as near as the mesh is to a sphere"


def test_triangles_without_an_area_do_not_count():
    whole, corner = square(), torch.tensor([[0, 0, 1], [2, 2, 2]])
    assert compare(Mesh(whole.vertices, torch.cat([whole.faces, corner])), whole, samples=FEW).chamfer < 1e-9


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
    with pytest.raises(ValueError, match="sample_surface: mesh: expected triangles with an area"):
        compare(square(size=0.0), square())
