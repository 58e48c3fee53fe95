import math

import pytest
import torch
from polyfield.cuda import occupancy as ops
from polyfield.geometry.occupancy import OccupancyGrid
from polyfield.geometry.types import Rays

STEP = 0.01


def ball(points, radius=0.5, density=50.0):
    return (points.norm(dim=-1) < radius) * density


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cell_centres(resolution, half=1.0):
    axis = ((torch.arange(resolution) + 0.5) / resolution * 2 - 1) * half
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)


def fitted(resolution=32, cascades=1, updates=6, seed=0, **kw):
    grid, g = OccupancyGrid(resolution, cascades), seeded(seed)
    for _ in range(updates):
        grid.update(ball, step=STEP, all_cells=True, generator=g, **kw)
    return grid


def random_rays(n, seed=0):
    g = seeded(seed)
    origins = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1) * 3
    directions = torch.nn.functional.normalize(torch.rand(n, 3, generator=g) * 1.6 - 0.8 - origins, dim=-1)
    return Rays(origins, directions, torch.zeros(n), torch.full((n,), math.inf))


def test_everything_is_occupied_at_first():
    grid = OccupancyGrid(16)
    assert grid.share == 1 and grid.occupied(torch.tensor([[0.9, -0.9, 0.0], [1.1, 0, 0]])).tolist() == [True, False]


def test_a_ball_is_found_up_to_a_cell():
    grid = fitted(updates=12)
    distance, diagonal = cell_centres(32).norm(dim=-1), math.sqrt(3) / 32
    occupied = grid.occupied(cell_centres(32))
    assert occupied[distance < 0.5 - diagonal].all()
    assert not occupied[distance > 0.5 + diagonal].any()


def test_cascades_hold_the_same_ball_at_their_own_resolution():
    grid = fitted(32, cascades=2, updates=12)
    outer = OccupancyGrid(32, 1, half=2.0)
    outer.bits.copy_(grid.bits[1:])
    distance, diagonal = cell_centres(32, 2.0).norm(dim=-1), math.sqrt(3) / 16
    occupied = outer.occupied(cell_centres(32, 2.0))
    assert occupied[distance < 0.5 - diagonal].all() and not occupied[distance > 0.5 + diagonal].any()
    points = torch.tensor([[0.0, 0, 0], [0.7, 0, 0], [1.7, 0, 0], [2.5, 0, 0]])
    assert grid.occupied(points).tolist() == [True, False, False, False]


def test_some_cells_at_a_time_find_it_too_and_follow_it():
    grid, g = OccupancyGrid(32), seeded()
    for _ in range(60):
        grid.update(ball, step=STEP, part=1 / 4, generator=g)
    occupied, distance = grid.occupied(cell_centres(32)), cell_centres(32).norm(dim=-1)
    assert occupied[distance < 0.44].all() and not occupied[distance > 0.56].any()
    for _ in range(300):  # it shrinks: fading from 50 to the threshold of 1 takes 76 visits
        grid.update(lambda p: ball(p, 0.25), step=STEP, part=1 / 4, generator=g)
    occupied = grid.occupied(cell_centres(32))
    assert occupied[distance < 0.19].all() and occupied[distance > 0.31].float().mean() < 0.02


def test_a_thin_field_does_not_vanish():
    grid, g = OccupancyGrid(16), seeded()
    for _ in range(3):
        grid.update(lambda p: torch.full((len(p),), 1e-3), step=STEP, all_cells=True, generator=g)
    assert grid.share == 1
    grid = OccupancyGrid(16)
    grid.update(lambda p: torch.zeros(len(p)), step=STEP, all_cells=True, generator=g)
    assert grid.share == 0


def test_nan_densities_count_as_none():
    grid = OccupancyGrid(16)
    grid.update(lambda p: torch.where(p[:, 0] < 0, 9.0, math.nan), step=STEP, all_cells=True, generator=seeded())
    assert grid.share == 0.5


@pytest.mark.parametrize("cascades", [1, 3])
def test_unseen_cells_stay_empty(cascades):
    grid, g = OccupancyGrid(32, cascades), seeded()
    asked = []

    def sees(points):  # a cone from a camera at (0, 0, -2) looking along z, from 1 on
        asked.append(len(points))
        depth = points[:, 2] + 2
        return ((points[:, :2].norm(dim=-1) < 0.3 * depth) & (depth > 1)).int()

    grid.mark_unseen(sees)
    assert sum(asked) < 0.8 * grid.densities.numel()
    for _ in range(3):
        grid.update(lambda p: torch.full((len(p),), 50.0), step=STEP, all_cells=True, generator=g)
        grid.update(lambda p: torch.full((len(p),), 50.0), step=STEP, generator=g)
    points = torch.rand(20000, 3, generator=g) * 2 - 1
    seen, got = sees(points).bool(), grid.occupied(points)
    assert got[seen].all()
    margin = 2 * math.sqrt(3) * 2 / 32  # a neighbour's corner
    depth = points[:, 2] + 2
    far_outside = (points[:, :2].norm(dim=-1) > 0.3 * depth + margin * 1.1) | (depth < 1 - margin)
    assert not got[far_outside].any() and 0.1 < grid.share < 0.6
    grid.mark_unseen(lambda p: torch.ones(len(p), dtype=torch.int32))
    grid.update(lambda p: torch.full((len(p),), 50.0), step=STEP, all_cells=True, generator=g)
    assert grid.share == 1  # more cameras were added


def test_two_cameras_may_be_asked_for():
    grid = OccupancyGrid(32)
    grid.mark_unseen(lambda p: (p[:, 0] > -0.5).int() + (p[:, 0] > 0.5).int(), cameras=2)
    assert grid.share == pytest.approx((8 + 1) / 32)


def test_marching_finds_all_intervals_inside():
    grid, rays, step = fitted(updates=10), random_rays(500), 0.02
    samples = grid.march(rays, step=step)
    every = OccupancyGrid(32).march(rays, step=step)
    index = every.ray_indices.long() * 100000 + (every.t_starts / step * 16).round().long()
    chosen = torch.isin(index, samples.ray_indices.long() * 100000 + (samples.t_starts / step * 16).round().long())
    distance = every.positions(rays).norm(dim=-1)
    assert chosen.sum() == len(samples)
    assert chosen[distance < 0.5 - math.sqrt(3) / 16].all() and not chosen[distance > 0.5 + math.sqrt(3) / 16].any()


def test_marching_follows_changes():
    grid, rays = OccupancyGrid(32), random_rays(50)
    before = len(grid.march(rays, step=0.02))
    grid.update(ball, step=STEP, all_cells=True, generator=seeded())
    after = len(grid.march(rays, step=0.02))
    other = OccupancyGrid(32)
    other.march(rays, step=0.02)
    other.load_state_dict(grid.state_dict())
    assert after < before and len(other.march(rays, step=0.02)) == after
    assert (grid.march(rays, step=0.02, max_samples=3).ray_offsets.diff() <= 3).all()


def test_state_dict_round_trip():
    grid, other = fitted(), OccupancyGrid(32)
    grid.mark_unseen(lambda p: (p[:, 0] > 0).int())
    other.load_state_dict(grid.state_dict())
    assert set(grid.state_dict()) == {"densities", "bits"}
    for g in (grid, other):
        g.update(ball, step=STEP, generator=seeded(3))
    assert torch.equal(grid.bits, other.bits) and torch.equal(grid.densities, other.densities)


def test_deterministic_with_a_generator():
    a, b, c = fitted(32), fitted(32), fitted(32, seed=1)
    assert torch.equal(a.densities, b.densities) and torch.equal(a.bits, b.bits) and not torch.equal(a.bits, c.bits)


def test_how_many_cells_are_visited():
    grid, counts = OccupancyGrid(64), []

    def density(points):
        counts.append(len(points))
        return ball(points)

    grid.update(density, step=STEP, all_cells=True, generator=seeded())
    assert sum(counts) == 64**3
    counts.clear()
    grid.update(density, step=STEP, generator=seeded())
    assert sum(counts) == 64**3 // 16


def test_ops_match_torch():
    g = seeded(7)
    densities = torch.rand(2, 16**3, generator=g) - 0.2
    bits = ops.pack_densities(densities, 0.5, 16)
    assert torch.equal(bits, ops.pack_bits(densities >= 0.5, 16))
    cells = ops.occupied_cells(bits, 16)
    assert torch.equal(cells.sort().values.long(), (densities >= 0.5).view(-1).nonzero()[:, 0])
    assert ops.mean_density(densities) == pytest.approx(float(densities[densities >= 0].mean()), rel=1e-6)
    assert ops.mean_density(-torch.ones(3)) == 0
    points = ops.cell_points(cells, torch.full((len(cells), 3), 0.5), 16, 2.0)
    centres = torch.cat([cell_centres(16, 2.0), cell_centres(16, 4.0)])
    torch.testing.assert_close(points, centres[cells.long()])
    raised, values = densities.clone(), torch.rand(len(cells), generator=g)
    ops.raise_densities(raised, cells, values, 0.5)
    want = densities.view(-1).clone()
    want[cells.long()] = torch.maximum(want[cells.long()] * 0.5, values)
    assert torch.equal(raised.view(-1), want)


def test_opcheck():
    bits, cells = ops.pack_bits(torch.ones(1, 16**3, dtype=torch.bool), 16), torch.arange(5, dtype=torch.int32)
    namespace = torch.ops.polyfield
    torch.library.opcheck(namespace.pack_bits.default, (torch.ones(1, 16**3, dtype=torch.bool), 16))
    torch.library.opcheck(namespace.pack_densities.default, (torch.rand(1, 16**3), 0.5, 16))
    torch.library.opcheck(namespace.brick_states.default, (bits, 16))
    torch.library.opcheck(namespace.cell_points.default, (cells, torch.rand(5, 3), 16, 1.0))
    torch.library.opcheck(namespace.raise_densities.default, (torch.rand(1, 16**3), cells, torch.rand(5), 0.9))
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(namespace.occupied_cells.default, (bits, 16), test_utils=utils)


def test_errors():
    with pytest.raises(ValueError, match="resolution: expected a multiple of 4 up to 1024 with 1 cascades, got 30"):
        OccupancyGrid(30)
    with pytest.raises(ValueError, match="resolution: expected a multiple of 16 up to 1024 with 2 cascades, got 20"):
        OccupancyGrid(20, 2)
    with pytest.raises(ValueError, match="cascades: expected 1 to 16"):
        OccupancyGrid(16, 0)
    with pytest.raises(ValueError, match="half: expected a positive number, got 0"):
        OccupancyGrid(16, 1, 0)
    grid = OccupancyGrid(16)
    with pytest.raises(ValueError, match=r"threshold: expected an opacity between 0 and 1, got 1\.5"):
        grid.update(ball, step=STEP, threshold=1.5)
    with pytest.raises(ValueError, match="step: expected a positive length, got 0"):
        grid.update(ball, step=0)
    with pytest.raises(ValueError, match=r"density: expected \(4096,\) values, got 1"):
        grid.update(lambda p: p.sum(), step=STEP, all_cells=True)
    with pytest.raises(ValueError, match="pack_bits: resolution: expected a multiple of 4, got 6"):
        ops.pack_bits(torch.zeros(1, 216, dtype=torch.bool), 6)
    with pytest.raises(TypeError, match="pack_densities: densities: expected float32, got float64"):
        ops.pack_densities(torch.zeros(1, 64, dtype=torch.float64), 0.5, 4)
    with pytest.raises(ValueError, match=r"raise_densities: values: expected shape \(2\)"):
        ops.raise_densities(torch.zeros(9), torch.zeros(2, dtype=torch.int32), torch.zeros(3), 0.9)
