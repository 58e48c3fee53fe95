"""Unsigned distances from photographs: the law that draws them, where fits begin, and what they leave open."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.first_distance import FirstDistance, around_middle
from polyfield.apps.fit import Budget
from polyfield.apps.recipes import ngp, udf
from polyfield.apps.run import open_run
from polyfield.datasets import demo
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.networks import MlpConfig
from polyfield.fields.protocols import FieldOutput
from polyfield.fields.unsigned_distance import UnsignedDistanceConfig
from polyfield.geometry import Rays, Samples
from polyfield.renderers.opacity import Unsigned

from .test_opacity_laws import N, towards_a_plane, weights_of

SMALL = replace(
    udf.Config(),
    field=UnsignedDistanceConfig(
        grid=HashGridConfig(levels=4, features=4, log2_size=14, finest_resolution=64), network=MlpConfig(width=32)
    ),
    occupancy=ngp.OccupancyConfig(resolution=64),
    samples_per_step=4096,
    first=FirstDistance(0.5, 1.0, 120, 48, 12, 50, 120, 4096),
)


def unsigned_plane(cosine, count=N):
    """A ray that meets z = 0 from above and goes on below it."""
    rays, samples, output = towards_a_plane(cosine, count)
    side = output.values.sign()[:, None]
    return rays, samples, FieldOutput(output.values.abs(), gradients=output.gradients * side)


@pytest.mark.parametrize("cosine", [-1.0, -0.6, -0.2])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("count", [N, N + 1, 97])
def test_a_surface_is_opaque_where_it_is(cosine, gradients, count):
    """Whether the middle of the interval that crosses it lies before or behind it."""
    rays, samples, output = unsigned_plane(cosine, count)
    if not gradients:
        output = FieldOutput(output.values)
    weights = weights_of(Unsigned(300.0)(output, rays, samples), samples).detach()
    middle = (samples.t_starts + samples.t_ends) / 2
    step = float(samples.t_ends[0] - samples.t_starts[0])
    assert float(weights.sum()) > 0.999
    assert float(weights[middle > 1 / abs(cosine) + step].sum()) < 1e-3, "nothing behind it is seen"
    assert float(weights @ middle) == pytest.approx(1 / abs(cosine), abs=1 / (300 * abs(cosine)) + step)


def test_what_a_ray_leaves_is_not_seen():
    """A ray that begins on a surface and goes away from it; another that passes it at a distance."""
    rays = Rays(torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]]), torch.zeros(1), torch.ones(1))
    ends = torch.linspace(0.05, 1, 101)
    samples = Samples(ends[:-1], ends[1:], torch.zeros(100, dtype=torch.int32), torch.tensor([0, 100]).int())
    t = (ends[:-1] + ends[1:]) / 2
    law = Unsigned(100.0)
    leaving = FieldOutput(t, gradients=torch.tensor([[0.0, 0, 1]]).expand(100, 3))
    assert float(weights_of(law(leaving, rays, samples), samples).sum()) < 1e-3
    beside = torch.hypot(t - 0.5, torch.tensor(0.1))
    slope = torch.stack([torch.zeros(100), torch.zeros(100), (t - 0.5) / beside], 1)
    passing = weights_of(law(FieldOutput(beside, gradients=slope), rays, samples), samples).sum()
    assert float(passing) < 3e-3, "ten widths off; 1e-5 of each interval keeps quotients finite"


def test_sharpness_is_learned_and_gradients_are_finite():
    rays, samples, output = unsigned_plane(-0.7)
    values = output.values.clone().requires_grad_()
    law = Unsigned(50.0)
    weights = weights_of(law(FieldOutput(values, gradients=output.gradients), rays, samples), samples)
    (weights @ samples.t_ends).backward()
    assert law.sharpness.item() == pytest.approx(50.0, rel=1e-5)
    assert float(law.third.grad.abs()) > 1e-7
    assert torch.isfinite(values.grad).all()
    assert float(values.grad.abs().max()) > 0


def test_densities_for_the_occupancy():
    law, f = Unsigned(100.0), torch.linspace(0, 0.5, 101)
    found = law.densities(f).detach()
    assert torch.isfinite(found).all()
    assert (found.diff() <= 0).all()
    assert float(found[-1]) < 1e-6
    torch.testing.assert_close(law.densities(f, 0.1)[21:], law.densities(f - 0.1)[21:])
    light = -torch.expm1(-100 * f[1:])
    slope = light.log().diff() / f[1:].diff()
    torch.testing.assert_close(found[1:-1][4:], slope[4:], rtol=0.5, atol=1e-3)


@pytest.fixture(scope="module")
def bowl():
    return demo.render_demo(16, 50, name="demo_bowl")


def test_a_fit_begins_at_the_sheet(bowl):
    job = SMALL.build(bowl, 0, budget=Budget(steps=240))
    at = bowl.mesh.vertices[::40]
    on = job.field.distance(at)
    assert float(on.median()) < 0.06
    assert float(job.field.distance(at.new_tensor([[0.0, 0.0, 0.5]]))) > 0.1, "no longer the sphere that it began as"
    assert not job.field.signed


def test_the_middle_of_a_slab():
    z = torch.linspace(-1, 1, 65)[:, None, None].expand(65, 3, 3)
    found = around_middle(z.abs() - 0.125, 0.5)
    assert float((found - z.abs()).abs().max()) < 0.04
    thick = around_middle(z.abs() - 0.5, 0.1)
    torch.testing.assert_close(thick, (z.abs() - 0.4).abs())


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "VIEWS", 6)
    options = ["--steps", "3", "--downscale", "8", "--samples-per-step", "1024", "--first.grid-share", "0"]
    options += ["--sharpness", "30", "--device", "cpu"]
    assert main(["fit", "udf", "demo_bowl", "--run", str(tmp_path / "run"), *options]) == 0
    opened = open_run(tmp_path / "run", "cpu")
    assert opened.asked.data == "demo_bowl"
    assert opened.renderer.opacity.sharpness.item() == pytest.approx(30, rel=0.05)
    assert main(["extract", str(tmp_path / "run"), "--resolution", "16", "--output", str(tmp_path / "mesh.ply")]) == 0
