"""The pace of a fit by marching: samples per step stay at what is wanted, which grows with the budget that is spent."""

from types import SimpleNamespace

import pytest
from polyfield.apps.errors import UserError
from polyfield.apps.march_pace import MIN_RAYS, MarchPace
from polyfield.apps.recipes import ngp
from polyfield.datasets.demo import render_demo


def paced(met_per_ray, spents, wanted=8192, growth=4.0):
    """Steps with so many samples per ray (at the shortest intervals), each at this share of the budget -> the samples
    of the last one, its rays, and how long its intervals were."""
    batches = SimpleNamespace(rays=MIN_RAYS)
    renderer = SimpleNamespace(background=SimpleNamespace(met=0), coarseness=1.0)
    pace, samples = MarchPace(batches, renderer, wanted, growth), 0
    for spent in spents:
        samples = int(batches.rays * met_per_ray(spent) / renderer.coarseness)
        rays, longer = batches.rays, renderer.coarseness
        step = SimpleNamespace(render=SimpleNamespace(samples=range(samples)))
        pace(SimpleNamespace(step=step, spent=spent))
    return samples, rays, longer


@pytest.mark.parametrize("growth", [1.0, 4.0])
def test_samples_per_step_grow_with_the_budget(growth):
    for end in (0.3, 0.6, 0.999):
        spents = [end * i / 200 for i in range(201)]
        samples, rays, longer = paced(lambda spent: 4, spents, growth=growth)
        assert samples == pytest.approx(8192 * growth**end, rel=0.05) and rays % 64 == 0 and longer == 1


def test_fog_makes_intervals_longer_before_rays_become_few():
    samples, rays, longer = paced(lambda spent: 400, [0.001] * 100, growth=1.0)
    assert rays == MIN_RAYS and longer > 4 and samples < 3 * 8192
    _, _, late = paced(lambda spent: 400, [0.5] * 100, growth=1.0)
    assert late == 1, "pictures are drawn with intervals of their own length"


def test_the_state_goes_on_where_it_was():
    batches = SimpleNamespace(rays=MIN_RAYS)
    renderer = SimpleNamespace(background=SimpleNamespace(met=0), coarseness=1.0)
    pace = MarchPace(batches, renderer, 8192)
    pace.load_state_dict({"rays": 4096, "coarseness": 2.5})
    assert (batches.rays, renderer.coarseness) == (4096, 2.5) and int(pace.state_dict()["rays"]) == 4096


@pytest.mark.parametrize("growth", [0.0, -2.0, 0.5, float("nan")])
def test_a_growth_that_shrinks_is_refused(growth):
    with pytest.raises(UserError, match="fit: --samples-growth: expected at least 1, got"):
        ngp.Config(samples_growth=growth).build(render_demo(2, 16))
