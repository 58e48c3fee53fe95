"""Marching through a radiance field in one go meets and sees what the ops do that it is made of."""

import pytest
import torch
from polyfield.cuda import radiance_march as module
from polyfield.cuda.radiance_march import radiance_march
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.networks import MlpConfig
from polyfield.fields.radiance_grid import RadianceGridConfig
from polyfield.geometry import Aabb, Rays
from polyfield.geometry.occupancy import OccupancyGrid

LIMITS = dict(min_transmittance=1e-3, min_alpha=1e-3)


def field(features=4, half=True, bfloat16=False, scale=3.0, hidden=1, bounds=1.0):
    """Fog with dense clumps: a table of large random numbers."""
    torch.manual_seed(features)
    grid = HashGridConfig(levels=6, features=features, log2_size=11, finest_resolution=64, half=half)
    config = RadianceGridConfig(grid=grid, density=MlpConfig(width=32, hidden_layers=hidden), bfloat16=bfloat16)
    made = config.build(Aabb.cube(bounds))
    with torch.no_grad():
        made.encoding.table.copy_(torch.randn_like(made.encoding.table) * scale)
        if made.encoding.half_table is not None:
            made.encoding.half_table.copy_(made.encoding.table)
        made.density_network.weights[-1].mul_(2)
    return made


def grid(cascades=1, filled=0.3):
    torch.manual_seed(cascades)
    occupancy = OccupancyGrid(32, cascades, 1.0)
    occupancy.densities.copy_((torch.rand_like(occupancy.densities) < filled).float())
    occupancy.update(lambda p: p.new_zeros(len(p)), step=1.0, threshold=0.3, part=1e-9)
    return occupancy


def rays(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    origins = torch.randn(count, 3, generator=g) * 1.5
    towards = (torch.rand(count, 3, generator=g) - 0.5) * 1.5
    directions = torch.nn.functional.normalize(towards - origins, dim=-1)
    return Rays(origins, directions, torch.zeros(count), torch.full((count,), torch.inf))


def whole(made, occupancy, view, monkeypatch, **options):
    """The same by parts: every interval is met."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "on_gpu", lambda tensor: True)
        return made.march(occupancy, view, **options)


def assert_the_same(got, expected, limit):
    """Seen intervals are equal; those met are the first of all, and reach to where light ends."""
    met, sigmas, seen, _ = got
    every, all_sigmas, all_seen, _ = expected
    assert len(seen) > 0 and len(met) >= len(seen)
    for name in ("ray_offsets", "ray_indices"):
        assert torch.equal(getattr(seen, name), getattr(all_seen, name))
    torch.testing.assert_close(seen.t_starts, all_seen.t_starts)
    torch.testing.assert_close(seen.t_ends, all_seen.t_ends)
    for r in range(len(met.ray_offsets) - 1):
        begin, end = met.ray_offsets[r : r + 2].tolist()
        first, last = every.ray_offsets[r : r + 2].tolist()
        assert end - begin <= last - first and bool((met.ray_indices[begin:end] == r).all())
        count = end - begin
        torch.testing.assert_close(met.t_starts[begin:end], every.t_starts[first : first + count])
        torch.testing.assert_close(sigmas[begin:end], all_sigmas[first : first + count], rtol=1e-3, atol=1e-4)
        if count < last - first:
            light = (-(met.t_ends - met.t_starts)[begin:end] * sigmas[begin:end]).sum().exp()
            assert light < limit, "it stopped although there was light"


@pytest.mark.parametrize("count", [1, 15, 65, 700])
@pytest.mark.parametrize(("cascades", "cone_angle"), [(1, 0.0), (1, 1 / 64), (3, 1 / 64)])
def test_meets_and_sees_what_its_parts_do(count, cascades, cone_angle, monkeypatch):
    made, occupancy = field(bounds=2.0 ** (cascades - 1)), grid(cascades)
    jitter = torch.rand(count, generator=torch.Generator().manual_seed(count))
    options = dict(step=0.02, cone_angle=cone_angle, jitter=jitter, **LIMITS)
    view = rays(count)
    got = made.march(occupancy, view, **options)
    assert_the_same(got, whole(made, occupancy, view, monkeypatch, **options), LIMITS["min_transmittance"])


@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize(("half", "bfloat16"), [(False, False), (True, False), (True, True)])
def test_every_kind_of_table_and_product(features, half, bfloat16, monkeypatch):
    if bfloat16 and not module._names(torch.zeros(1), True)[0].endswith("bf16"):
        pytest.skip("no bfloat16 products on this processor")
    made, occupancy, view = field(features, half, bfloat16), grid(), rays(200)
    options = dict(step=0.02, cone_angle=0.0, jitter=None, **LIMITS)
    got = made.march(occupancy, view, **options)
    assert_the_same(got, whole(made, occupancy, view, monkeypatch, **options), LIMITS["min_transmittance"])


@pytest.mark.parametrize("hidden", [0, 3])
def test_depths_of_the_network(hidden, monkeypatch):
    made, occupancy, view = field(hidden=hidden), grid(), rays(100)
    options = dict(step=0.02, cone_angle=0.0, jitter=None, **LIMITS)
    got = made.march(occupancy, view, **options)
    assert_the_same(got, whole(made, occupancy, view, monkeypatch, **options), LIMITS["min_transmittance"])


@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_was_found_need_not_be_found_again(features, bfloat16):
    made, occupancy, view = field(features, bfloat16=bfloat16), grid(), rays(700)
    options = dict(step=0.02, cone_angle=0.0, jitter=None, **LIMITS)
    seen, found = made.march(occupancy, view, **options, keep=True)[2:]
    again = made.march(occupancy, view, **options)
    assert again.found is None and torch.equal(seen.t_starts, again.seen.t_starts)
    points, directions = seen.positions(view), seen.directions(view)

    def answers(**known):
        made.zero_grad()
        output = made.query(points, directions, **known)
        (output.values.log1p().sum() + output.colors.square().sum()).backward()
        return [output.values, output.colors, *(p.grad.clone() for p in made.parameters())]

    for a, b in zip(answers(found=found), answers(), strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm()
    with torch.no_grad():
        colors = made.query(points, directions, found=found).colors
    torch.testing.assert_close(colors, made.query(points, directions, found=found).colors)
    outward = made.query(points, directions, gradients=True, found=found)
    assert torch.equal(outward.values, made.query(points, directions, gradients=True).values), "of use to colours alone"


def test_threads_do_not_matter():
    made, occupancy, view = field(), grid(), rays(1000)
    options = dict(step=0.01, cone_angle=0.0, jitter=None, **LIMITS)
    threads = torch.get_num_threads()
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        results.append(made.march(occupancy, view, **options))
    torch.set_num_threads(threads)
    for met, sigmas, seen, _ in results[1:]:
        assert torch.equal(sigmas, results[0][1])
        assert torch.equal(met.t_starts, results[0][0].t_starts) and torch.equal(seen.t_ends, results[0][2].t_ends)


def test_a_solid_wall_ends_rays_and_empty_space_has_nothing():
    made, view = field(scale=0.0), rays(300)
    with torch.no_grad():  # one density everywhere: e^15
        made.encoding.table.fill_(1.0)
        made.encoding.half_table.fill_(1.0)
        for weight in made.density_network.weights:
            weight.fill_(1.0)
    options = dict(step=0.02, cone_angle=0.0, jitter=None, **LIMITS)
    met, sigmas, seen, _ = made.march(grid(filled=1.0), view, **options)
    assert sigmas.min() > 3e6 and int(seen.ray_offsets.diff().max()) == 1, "the first interval takes all light"
    assert int(met.ray_offsets.diff().max()) <= 64
    empty = made.march(grid(filled=0.0), view, **options)
    assert len(empty[0]) == len(empty[1]) == len(empty[2]) == 0 and not empty[2].ray_offsets.any()
    assert len(made.march(grid(), rays(0), **options)[0]) == 0


def test_extreme_rays_and_fields():
    made, occupancy = field(), grid(filled=1.0)
    view = rays(6)
    view.origins[0], view.origins[1, 0] = torch.nan, torch.inf
    view.directions[2] = torch.tensor([0.0, 0.0, 1.0])
    view.near[3], view.far[4] = torch.inf, -1.0
    met = made.march(occupancy, view, step=0.02, cone_angle=0.0, jitter=None, **LIMITS).met
    counts = met.ray_offsets.diff()
    assert counts[:2].tolist() == [0, 0] and counts[3:5].tolist() == [0, 0] and int(counts[5]) > 0
    with torch.no_grad():
        made.encoding.table.fill_(torch.nan)
        made.encoding.half_table.fill_(torch.nan)
    seen = made.march(occupancy, rays(50), step=0.02, cone_angle=0.0, jitter=None, **LIMITS).seen
    assert len(seen) == 0 or bool(seen.t_starts.isfinite().all())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(states=torch.zeros(3, dtype=torch.uint8)), "radiance_march: states: expected shape"),
        (dict(low=torch.zeros(2)), "radiance_march: low: expected shape"),
        (dict(min_alpha=2.0), "radiance_march: min_alpha: expected"),
        (dict(min_transmittance=-1.0), "radiance_march: min_transmittance: expected"),
        (dict(step=0.0), "march_grid: step: expected"),
        (dict(table=torch.zeros(3, 4)), "radiance_march: table: expected"),
    ],
)
def test_bad_arguments(changed, message):
    made, occupancy, view = field(), grid(), rays(5)
    given = dict(
        origins=view.origins,
        directions=view.directions,
        near=view.near,
        far=view.far,
        bits=occupancy.bits,
        states=occupancy.states,
        low=made.bounds_low,
        high=made.bounds_high,
        table=made.encoding.table,
        layout=made.encoding.layout,
        density_weights=list(made.density_network.weights),
        resolution=32,
        half_extent=1.0,
        step=0.02,
    )
    with pytest.raises(ValueError, match=message):
        radiance_march(**(given | changed))


def test_opcheck():
    made, occupancy, view = field(half=False), grid(), rays(20)
    box = torch.stack([torch.full((3,), 0.5), torch.full((3,), 0.5)])
    arguments = (view.origins, view.directions, view.near, view.far, None, occupancy.bits, occupancy.states, box)
    network = (made.encoding.table.detach(), None, [w.detach() for w in made.density_network.weights])
    for keep in (False, True):
        numbers = (32, 1.0, 0.02, 0.0, 1e-3, 1e-3, False, keep)
        torch.library.opcheck(
            torch.ops.polyfield.radiance_march.default, (*arguments, *network, made.encoding.layout._numbers, *numbers)
        )
