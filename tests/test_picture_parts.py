"""Pictures are drawn in parts that hold no more intervals than they may, and show what they would in one go."""

import pytest
import torch
from polyfield.apps.errors import UserError
from polyfield.apps.recipes import ngp
from polyfield.datasets.demo import render_demo
from polyfield.fields.protocols import FieldOutput
from polyfield.geometry import Aabb, Rays, Samples
from polyfield.geometry.occupancy import OccupancyGrid
from polyfield.renderers.background import FixedBackground
from polyfield.renderers.opacity import density
from polyfield.renderers.picture_parts import most_intervals, parts
from polyfield.renderers.volume import MarchConfig, VolumeRenderer

from .test_radiance_march import field as radiance_field
from .test_volume import camera_of


class Fog:
    """Thin everywhere; remembers how many points it was asked for at a time, with colours and without."""

    def __init__(self):
        self.bounds, self.densities, self.colors = Aabb.cube(1.0), [], []

    def query(self, points, directions=None, *, gradients=False):
        (self.densities if directions is None else self.colors).append(len(points))
        colors = None if directions is None else (points + 1) / 2
        return FieldOutput(torch.full_like(points[:, 0], 0.5), colors=colors)


def renderer(cone_angle=0.0, cascades=1, **changes):
    config = MarchConfig(steps_per_diagonal=128, cone_angle=cone_angle, **changes)
    grid = OccupancyGrid(32, cascades, 1.0)
    return VolumeRenderer(grid, density, FixedBackground((0.0, 0.0, 0.0)), config).eval()


def some_samples(counts):
    offsets = torch.tensor([0, *counts]).cumsum(0).int()
    starts = torch.arange(float(offsets[-1]))
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).int()
    return Samples(starts, starts + 1, owners, offsets)


@pytest.mark.parametrize("counts", [[3, 0, 4, 9, 1, 0, 0, 2, 6, 0], [0, 0], [20], [10, 1], [5, 5, 5]])
def test_parts_are_runs_of_rays_in_order(counts):
    samples, next_ray, starts = some_samples(counts), 0, []
    for some, part in parts(samples, 10):
        assert some.start == next_ray and len(part.ray_offsets) == some.stop - some.start + 1
        assert part.ray_offsets.diff().tolist() == counts[some] and part.ray_offsets[0] == 0
        assert part.ray_indices.tolist() == [i for i, n in enumerate(counts[some]) for _ in range(n)]
        assert len(part) == len(part.t_ends) == sum(counts[some])
        assert len(part) <= 10 or some.stop == some.start + 1
        next_ray, starts = some.stop, starts + part.t_starts.tolist()
    assert next_ray == len(counts) and starts == samples.t_starts.tolist()


@pytest.mark.parametrize("wave", [None, 0])
@pytest.mark.parametrize(("cone_angle", "cascades"), [(0.0, 1), (1 / 64, 3)])
def test_fog_is_asked_for_no_more_intervals_at_a_time_than_allowed(cone_angle, cascades, wave):
    camera, allowed = camera_of(40, 30, 50.0), 1000
    bounded, whole = Fog(), Fog()
    picture = renderer(cone_angle, cascades, wave=wave, chunk_intervals=allowed).render(bounded, camera).pixels
    expected = renderer(cone_angle, cascades, wave=wave).render(whole, camera).pixels
    assert max(whole.colors) > 20 * allowed, "all at once it would be many"
    assert max(bounded.colors) <= allowed and max(bounded.densities) <= allowed
    assert sum(bounded.colors) == sum(whole.colors), "nothing is asked for twice"
    assert len(bounded.colors) < 2 * sum(bounded.colors) / allowed + 40, "parts are as large as they may be"
    torch.testing.assert_close(picture.colors, expected.colors)
    torch.testing.assert_close(picture.depths, expected.depths)


def test_a_march_in_one_go_meets_no_more_than_allowed(monkeypatch):
    fog, camera, allowed, met = radiance_field(scale=0.1), camera_of(80, 60, 50.0), 500, []
    march = type(fog).march

    def watched(self, *arguments, **options):
        found = march(self, *arguments, **options)
        met.append(len(found[0]))
        return found

    monkeypatch.setattr(type(fog), "march", watched)
    bounded = renderer(chunk_intervals=allowed).render(fog, camera).pixels
    assert allowed < max(met) <= 16 * allowed < sum(met)
    pixels = renderer().render(fog, camera).pixels
    torch.testing.assert_close(bounded.colors, pixels.colors, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("cone_angle", "cascades"), [(0.0, 1), (0.0, 2), (1 / 256, 1), (1 / 64, 4), (0.5, 3)])
def test_no_ray_has_more_intervals_than_counted(cone_angle, cascades):
    made = renderer(cone_angle, cascades)
    edge, g = 2.0 ** (cascades - 1), torch.Generator().manual_seed(0)
    inside = (2 * torch.rand(400, 3, generator=g) - 1) * edge
    outside = torch.randn(200, 3, generator=g) * 3 * edge
    origins = torch.cat([torch.full((1, 3), -edge), inside, outside])
    towards = torch.cat([torch.ones(1, 3), torch.randn(400, 3, generator=g), -outside])
    directions = torch.nn.functional.normalize(towards, dim=-1)
    rays = Rays(origins, directions, torch.zeros(601), torch.full((601,), torch.inf))
    counts = made.occupancy.march(rays, step=made.step, cone_angle=cone_angle).ray_offsets.diff()
    most = most_intervals(made.occupancy, made.step, cone_angle)
    assert int(counts.max()) <= most <= int(counts[0]) + 6, "the first goes from corner to corner"


@pytest.mark.parametrize("name", ["chunk", "chunk_intervals"])
def test_parts_of_nothing_are_refused(name):
    option = f"--march.{name.replace('_', '-')}"
    with pytest.raises(UserError, match=f"fit: {option}: expected at least 1, got 0"):
        ngp.Config(march=MarchConfig(**{name: 0})).build(render_demo(2, 16))
