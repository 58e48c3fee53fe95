"""Noisy points of the two sides of a sheet, drawn together."""

import math

import pytest
import torch
from polyfield.geometry.thinning import thinned


def cap(count, seed=0):
    """Points of a spherical cap of radius 1, open at half its height."""
    random = torch.Generator().manual_seed(seed)
    height = 1 - 0.5 * torch.rand(count, generator=random)
    turn = 2 * math.pi * torch.rand(count, generator=random)
    around = (1 - height**2).sqrt()
    return torch.stack([around * turn.cos(), around * turn.sin(), height], 1)


def test_a_wall_with_two_sides_becomes_the_sheet_between_them():
    points = cap(40_000)
    sides = 1 + 0.02 * torch.where(torch.arange(40_000) % 2 == 0, 1.0, -1.0)
    noise = 0.005 * torch.randn(40_000, generator=torch.Generator().manual_seed(1))
    found, normals = thinned(points * (sides + noise)[:, None], 0.1)
    off = (found.norm(dim=1) - 1).abs()
    assert float(off.quantile(0.95)) < 0.006
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(len(found)))
    assert float((normals * found).sum(1).abs().quantile(0.05)) > 0.98
    height = found[:, 2] / found.norm(dim=1)
    assert float(height.min()) > 0.45 and float(height.min()) < 0.53, "the rim stays where it is"
    gaps = torch.cdist(points[:500], found).amin(1)
    assert float(gaps.max()) < 0.05, "nothing of it is lost"


def test_what_floats_alone_is_dropped():
    far = torch.rand(200, 3, generator=torch.Generator().manual_seed(2)) * 2 + 5
    found, _ = thinned(torch.cat([cap(20_000), far]), 0.1)
    assert len(found) > 500 and float(found.norm(dim=1).max()) < 1.1


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_points_are_no_sheet(count):
    found, normals = thinned(cap(count), 0.1, least=1)
    assert found.shape == normals.shape == (0, 3)
