import math

import pytest
import torch
from polyfield.cuda.sh_basis import sh_basis
from polyfield.geometry.gaussian_differences import largest_differences
from polyfield.geometry.gaussian_transforms import sh_rotation, transform, with_degree
from polyfield.geometry.transforms import matrix_to_quaternion, quaternion_to_matrix, similarity, transform_points

from tests.splat_samples import sample

FLIP = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))


def turn(seed=0):
    quats = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return quaternion_to_matrix(quats)


def covariances(gaussians):
    half = quaternion_to_matrix(gaussians.quats) * gaussians.scales[:, None]
    return half @ half.mT


@pytest.mark.parametrize("degree", range(5))
def test_scene_and_colours_move_together(degree):
    """Means and covariances as points do; the colour from a direction turned along is what it was."""
    gaussians = sample(200, degree)._map(lambda t: t.double())
    rotation, shift = turn(), torch.tensor([1.0, -2, 3], dtype=torch.float64)
    moved = transform(gaussians, similarity(2.5, rotation, shift))
    torch.testing.assert_close(moved.means, 2.5 * gaussians.means @ rotation.T + shift)
    torch.testing.assert_close(covariances(moved), 2.5**2 * rotation @ covariances(gaussians) @ rotation.T)
    directions = torch.nn.functional.normalize(torch.randn(200, 3, dtype=torch.float64), dim=1)
    before = (sh_basis(directions, degree)[:, :, None] * gaussians.sh).sum(1)
    after = (sh_basis(directions @ rotation.T, degree)[:, :, None] * moved.sh).sum(1)
    torch.testing.assert_close(after, before)


def test_bands_do_not_mix_and_lengths_stay():
    matrix = sh_rotation(turn(1), 4)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(25, dtype=torch.float64))
    for low, high in [(0, 1), (1, 4), (4, 9), (9, 16), (16, 25)]:
        assert float(matrix[low:high, :low].abs().sum() + matrix[low:high, high:].abs().sum()) < 1e-10


def test_half_turns_are_exact():
    gaussians = sample(100, 4)
    there = transform(gaussians, FLIP)
    assert torch.equal(there.means, gaussians.means * torch.tensor([1.0, -1, -1]))
    assert torch.equal(there.sh.abs(), gaussians.sh.abs()) and not torch.equal(there.sh, gaussians.sh)
    back = transform(there, FLIP)
    assert torch.equal(back.means, gaussians.means) and torch.equal(back.sh, gaussians.sh)
    assert torch.equal(back.quats, -gaussians.quats)  # the same rotations
    assert transform(gaussians, torch.eye(4)) is gaussians


@pytest.mark.parametrize("diagonal", [[1, 1, -1], [1, 2, 1], [float("nan")] * 3])
def test_mirrors_and_skews_are_refused(diagonal):
    expected = r"transform: a_to_b: expected a rotation, shift and positive scale, got .*; Gaussians cannot be mirrored"
    with pytest.raises(ValueError, match=expected):
        transform(sample(3), torch.diag(torch.tensor([*diagonal, 1.0])))


def test_with_degree():
    gaussians = sample(10, 2)
    assert torch.equal(with_degree(gaussians, 1).sh, gaussians.sh[:, :4])
    more = with_degree(gaussians, 4).sh
    assert torch.equal(more[:, :9], gaussians.sh) and not more[:, 9:].any()
    with pytest.raises(ValueError, match="with_degree: degree: expected 0 to 4, got 5"):
        with_degree(gaussians, 5)


def test_differences():
    a = sample(10, 1)._map(lambda t: t.double())
    assert set(vars(largest_differences(a, a)).values()) == {0.0}
    angle = 0.3
    spin = torch.tensor([math.cos(angle / 2), 0, 0, math.sin(angle / 2)], dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = quaternion_to_matrix(spin)
    found = largest_differences(a, transform(a, matrix))
    assert found.angles == pytest.approx(angle) and found.log_scales == 0 and found.sh > 0.1
    moved = transform_points(matrix, a.means)
    assert found.means == pytest.approx(float((moved - a.means).abs().max()))
    assert matrix_to_quaternion(matrix[:3, :3]).tolist() == pytest.approx(spin.tolist())
    with pytest.raises(ValueError, match=r"largest_differences: b: expected as many Gaussians as a \(10\), .* got 9"):
        largest_differences(a, a[:9])
