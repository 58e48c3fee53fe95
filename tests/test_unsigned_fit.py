"""Unsigned distances from photographs: the law that draws them, where fits begin, and what they leave open."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.coarse_to_fine import CoarseToFineConfig
from polyfield.apps.first_sheet import FirstSheet
from polyfield.apps.fit import Budget, fit
from polyfield.apps.known_distances import KnownDistances
from polyfield.apps.recipes import ngp, udf
from polyfield.apps.run import open_run
from polyfield.apps.shape_batches import SamplesConfig
from polyfield.datasets import demo
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.gradient_kinds import Gradients
from polyfield.fields.networks import MlpConfig
from polyfield.fields.protocols import FieldOutput
from polyfield.fields.unsigned_distance import UnsignedDistanceConfig
from polyfield.geometry import Points, Rays, Samples
from polyfield.geometry.occupancy import OccupancyGrid
from polyfield.renderers.background import FixedBackground
from polyfield.renderers.opacity import Unsigned
from polyfield.renderers.protocols import Step
from polyfield.renderers.volume import MarchConfig, VolumeRenderer

from .test_opacity_laws import N, towards_a_plane, weights_of
from .test_surface_fit import RECIPES

SMALL = replace(
    udf.Config(),
    field=UnsignedDistanceConfig(
        grid=HashGridConfig(levels=4, features=4, log2_size=14, finest_resolution=64), network=MlpConfig(width=32)
    ),
    occupancy=ngp.OccupancyConfig(resolution=64),
    samples_per_step=4096,
    first=FirstSheet(points=30_000, radius=0.1, samples=SamplesConfig(batch=4096, first=1 << 15, most=1 << 15)),
)


def unsigned_plane(cosine, count=N):
    """A ray that meets z = 0 from above and goes on below it."""
    rays, samples, output = towards_a_plane(cosine, count)
    side = output.values.sign()[:, None]
    return rays, samples, FieldOutput(output.values.abs(), gradients=output.gradients * side)


@pytest.mark.parametrize("cosine", [-1.0, -0.6, -0.2])
@pytest.mark.parametrize("count", [N, N + 1, 97])
def test_a_surface_is_opaque_where_it_is(cosine, count):
    """Whether the middle of the interval that crosses it lies before or behind it."""
    rays, samples, output = unsigned_plane(cosine, count)
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
    assert float(weights_of(law(FieldOutput(t), rays, samples), samples).detach().sum()) < 1e-3
    beside = torch.hypot(t - 0.5, torch.tensor(0.1))
    passing = weights_of(law(FieldOutput(beside), rays, samples), samples).sum()
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


def test_a_sharp_sheet_has_no_holes():
    """Where intervals lie evenly about the sheet the two that are seen show no slope: those beside them do."""

    across = torch.nn.functional.normalize(torch.tensor([0.1, 0.0, 1.0]), dim=0)

    def sheet(points, directions=None, *, gradients=False):
        return FieldOutput((points @ across).abs(), None, torch.ones_like(points))

    field, black = SimpleNamespace(query=sheet, signed=False), FixedBackground((0.0, 0.0, 0.0))
    renderer = VolumeRenderer(OccupancyGrid(16), Unsigned(3000.0), black, MarchConfig(steps_per_diagonal=256)).eval()
    n = 400
    origins = torch.stack([torch.linspace(-0.9, 0.9, n), torch.zeros(n), torch.full((n,), 2.0)], 1)
    rays = Rays(origins, torch.tensor([[0.0, 0.0, -1.0]]).repeat(n, 1), torch.zeros(n), torch.full((n,), torch.inf))
    with torch.no_grad():
        render = renderer.render(field, rays)
    assert float(render.pixels.alphas.min()) > 0.99
    assert len(render.samples) < 6 * n


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
    above = at.new_tensor([[0.0, 0.0, 0.9]])
    assert 0.2 < float(job.field.distance(above)) < 0.85, "from what is below, and no longer from the middle"
    assert not job.field.signed
    assert 0 < job.elapsed < 120
    rows = job.parts["known"].state_dict()["rows"]
    assert rows.shape == (1 << 15, 4) and float((job.field.distance(rows[:, :3]) - rows[:, 3]).abs().mean()) < 0.05


@pytest.mark.parametrize("name", ["udf", "neus"])
def test_all_of_a_fit_begins_at_what_was_taught(bowl, monkeypatch, name):
    """Taught with the finest differences; mean and coarse differences come after that; resuming teaches no more."""
    config = SMALL if name == "udf" else RECIPES[name]
    field = replace(config.field, gradients=Gradients.FINITE)
    config = replace(config, field=field, average_every=1, coarse_to_fine=CoarseToFineConfig(levels=2))
    finest, seen = 1 / field.grid.finest_resolution, []

    def teach(first, model, scene, seed, budget, robust):
        seen.append(float(model.difference))
        with torch.no_grad():
            model.network.weights[-1].fill_(0.01)
        return Points(torch.rand(99, 3), torch.rand(99)) if name == "udf" else None

    monkeypatch.setattr(type(config.first), "teach", teach)
    job = config.build(bowl, 0, budget=Budget(steps=100))
    assert seen == [pytest.approx(finest)] and float(job.field.difference) > 1.9 * finest and job.elapsed > 0
    for key, parameter in job.field.named_parameters():
        assert torch.equal(job.average.means[key], parameter), key
    assert float(job.field.network.weights[-1].detach().min()) == pytest.approx(0.01)
    again = config.build(bowl, 1)
    again.restore(job.tensors(), {"step": 0, **job.metadata()})
    assert len(seen) == 1
    if name == "udf":
        rows = job.parts["known"].rows
        assert len(rows) == 99 and torch.equal(again.parts["known"].rows, rows)


def test_what_is_known_counts_while_colors_are_learned():
    """Weighted; at places that the step's number chooses; nothing before there are any; a checkpoint keeps them."""
    known = KnownDistances(2.0, torch.device("cpu"), points=64)
    field = SimpleNamespace(distance=lambda p: p.norm(dim=1), bounds=None, signed=False)
    step = Step(3, field, None, None, None)
    assert float(known(step)) == 0.0
    places = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    known.learn(Points(places, places.norm(dim=1) - 0.25))
    assert float(known(step)) == pytest.approx(0.5, abs=1e-5)
    known.learn(Points(places, places[:, 0]))
    again = KnownDistances(2.0, torch.device("cpu"), points=64)
    again.load_state_dict(known.state_dict())
    assert float(again(step)) == float(known(step)) != float(known(replace(step, index=4)))


def test_photographs_that_show_nothing_leave_no_sheet(bowl):
    """A fit goes on from the point that the field begins as."""
    empty = bowl.with_frames(tuple(replace(f, alphas=torch.zeros_like(f.alphas)) for f in bowl.frames))
    job = SMALL.build(empty, 0, budget=Budget(steps=90))
    assert len(job.parts["known"].state_dict()["rows"]) == 0
    fit(job, Budget(steps=2), SMALL.after_step())
    assert job.step == 2


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "VIEWS", 6)
    options = ["--steps", "3", "--downscale", "8", "--samples-per-step", "1024", "--first.grid-share", "0"]
    options += ["--sharpness", "30", "--device", "cpu"]
    assert main(["fit", "udf", "demo_bowl", "--run", str(tmp_path / "run"), *options]) == 0
    opened = open_run(tmp_path / "run", "cpu")
    assert opened.asked.data == "demo_bowl"
    assert opened.renderer.opacity.sharpness.item() == pytest.approx(30, rel=0.05)
    assert main(["extract", str(tmp_path / "run"), "--resolution", "16", "--output", str(tmp_path / "mesh.ply")]) == 0
