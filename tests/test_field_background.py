"""A field behind the scene: where it begins, that it fills every ray, and when surface fits take it."""

import json
from dataclasses import replace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.api import fit_scene
from polyfield.apps.fit import Budget, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.recipes import neus, ngp, splat
from polyfield.apps.run import SceneFacts, open_run
from polyfield.datasets.demo import render_demo
from polyfield.datasets.scene import open_scene
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.radiance_grid import RadianceGridConfig
from polyfield.geometry import Rays
from polyfield.geometry.contraction import contracted
from polyfield.renderers.background import FixedBackground
from polyfield.renderers.field_background import FieldBackground, FieldBackgroundConfig
from polyfield.renderers.opacity import density

from .test_surface_fit import RECIPES

SMALL = FieldBackgroundConfig(
    samples=16,
    field=RadianceGridConfig(grid=HashGridConfig(levels=4, features=4, log2_size=12, finest_resolution=64)),
)


def rays(origins, directions):
    directions = torch.nn.functional.normalize(torch.tensor(directions), dim=1)
    count = len(directions)
    return Rays(torch.tensor(origins), directions, torch.zeros(count), torch.full((count,), torch.inf))


def test_all_of_space_is_drawn_into_a_cube():
    points = torch.tensor([[0.3, -1.0, 0.2], [2.0, 0.0, 1.0], [0.0, -1e30, 1e29]])
    wanted = torch.tensor([[0.3, -1.0, 0.2], [1.5, 0.0, 0.75], [0.0, -2.0, 0.2]])
    torch.testing.assert_close(contracted(points), wanted)
    near = torch.nn.functional.normalize(torch.randn(100, 3), dim=1)
    near = near / near.abs().amax(1, keepdim=True)
    torch.testing.assert_close(contracted(near * 1.001), contracted(near), atol=2e-3, rtol=0)


def test_rays_begin_where_they_leave_the_cube():
    """One from inside, one through it, and one that misses it and begins at the camera."""
    background = FieldBackground(SMALL)
    some = rays([[0.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [-3.0, 2.0, 0.0]], [[1.0, 0.0, 0.0]] * 3)
    samples = background._intervals(some, fitting=False)
    firsts = samples.t_starts[samples.ray_offsets[:-1].long()]
    torch.testing.assert_close(firsts, torch.tensor([1.0, 4.0, 0.0]))
    assert (samples.t_ends > samples.t_starts).all()
    points, lengths = background._places(some, samples)
    assert (points.abs() <= 2).all() and (points[:16].abs().amax(1) >= 1).all()
    assert lengths.isinf().sum() == 3, "each ray ends in one interval that nothing passes"
    jittered = background._intervals(some, fitting=True)
    assert not torch.equal(jittered.t_ends, samples.t_ends)
    assert (jittered.t_ends[:-1] == jittered.t_starts[1:])[torch.arange(47) % 16 != 15].all(), "no gaps"


def test_nothing_jumps_at_the_outline_of_the_cube():
    """Rays just above and just below an edge, the near one and the far one."""
    eyes = [[-3.0, 0.3, 0.2]] * 4
    towards = [[2.0, 0.7 - 1e-4, 0.0], [2.0, 0.7 + 1e-4, 0.0], [2.0, 0.0, -1.2 + 1e-4], [2.0, 0.0, -1.2 - 1e-4]]
    samples = FieldBackground(SMALL)._intervals(rays(eyes, towards), fitting=False)
    begin = samples.t_starts[samples.ray_offsets[:-1].long()]
    torch.testing.assert_close(begin[0], begin[1], atol=2e-3, rtol=0)
    torch.testing.assert_close(begin[2], begin[3], atol=2e-3, rtol=0)
    assert (begin > 1.9).all()


def test_every_ray_has_all_of_its_colour_and_a_gradient():
    torch.manual_seed(0)
    background = FieldBackground(SMALL)
    directions = torch.randn(64, 3).tolist()
    some = rays([[0.1, 0.2, 0.0]] * 64, directions)
    with torch.no_grad():
        background.field.density_network.weights[-1][0] = -20.0  # transparent but for the last interval
        clear = background(some, False)
    assert (clear > 0.2).all(), "colours begin grey, and are not darkened"
    background(some, True).sum().backward()
    assert all(p.grad is not None for p in background.field.parameters())
    assert background.met >= 64


def test_rays_without_light_are_left_out():
    background = FieldBackground(SMALL)
    some = rays([[0.0, 0.0, 0.0]] * 3, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    with torch.no_grad():
        whole = background(some, False)
        part = background(some, False, torch.tensor([1.0, 0.0, 0.5]))
        none = background(some, False, torch.zeros(3))
    torch.testing.assert_close(part[[0, 2]], whole[[0, 2]])
    assert (part[1] == 0).all() and (none == 0).all() and background.met == 0


def test_it_needs_samples():
    with pytest.raises(ValueError, match="FieldBackground: samples: expected at least 2, got 1"):
        replace(SMALL, samples=1).build()


def test_it_learns_what_lies_around():
    """Directions as colours: a sky."""
    torch.manual_seed(0)
    background = FieldBackground(SMALL)
    optimizer = torch.optim.Adam(background.parameters(), lr=1e-2)
    for _ in range(150):
        directions = torch.randn(512, 3)
        some = rays(torch.zeros(512, 3).tolist(), directions.tolist())
        loss = (background(some, True) - (some.directions / 2 + 0.5)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        background.field.encoding.refresh()
    assert loss < 2e-3


def test_when_it_is_taken():
    config = neus.Config(outside=SMALL)
    facts = SceneFacts(2, 0.1, False, tuple(map(tuple, torch.eye(4).tolist())), "x", masked=False)
    field, renderer = config.build_model(facts)
    assert isinstance(renderer.background, FieldBackground)
    assert renderer.occupancy.cascades == 1 and float(field.bounds.high.max()) == 1, "the scene ends at the cube"
    for other in (replace(facts, has_alpha=True), replace(facts, masked=True), replace(facts, cascades=1)):
        assert not isinstance(config.build_model(other)[1].background, FieldBackground)
    black = replace(config, background=ngp.Background.BLACK).build_model(facts)[1]
    assert isinstance(black.background, FixedBackground) and black.occupancy.cascades == 2
    assert not isinstance(ngp.Config().build_model(facts)[1].background, FieldBackground), "its density goes on outside"
    assert ngp.Config(background=ngp.Background.FIELD, outside=SMALL).build_model(facts)[1].opacity is density


@pytest.mark.parametrize("recipe", [ngp, neus, splat])
def test_what_photographs_were_cut_out_of_is_shown_behind_the_scene(recipe):
    scene = replace(render_demo(2, 16), background=torch.tensor([0.25, 0.5, 0.25]))
    _, renderer = recipe.Config().build_model(SceneFacts.of(scene))
    assert renderer.backdrop.tolist() == [0.25, 0.5, 0.25]
    _, renderer = recipe.Config().build_model(SceneFacts.of(replace(scene, background=None)))
    assert renderer.backdrop.tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def config():
    return replace(RECIPES["neus"], background=ngp.Background.FIELD, outside=SMALL)


def test_a_run_opens_as_it_was(config, tmp_path):
    run = fit_scene("demo", config, run=tmp_path / "run", steps=20, downscale=8, preview_every=0.0)
    camera = run.scene().test[0].camera
    again = open_run(tmp_path / "run")
    assert isinstance(again.renderer.background, FieldBackground)
    first, second = (r.renderer.render(r.field, camera).pixels.colors for r in (run, again))
    torch.testing.assert_close(first, second)


def test_resuming_is_as_if_nothing_had_happened(config, tmp_path):
    scene = open_scene("demo", downscale=8)
    first_grid = replace(config.first, grid_share=0.0)
    config, budget = replace(config, first=first_grid), Budget(steps=12)
    straight = config.build(scene, 1, budget=budget)
    before = straight.renderer.background.field.encoding.table.detach().clone()
    fit(straight, budget, config.after_step())
    assert not torch.equal(before, straight.renderer.background.field.encoding.table), "it learns with the rest"
    first = config.build(scene, 1, budget=budget)
    fit(first, budget, config.after_step(), stop=lambda: first.step >= 5)
    Checkpoints(tmp_path, 1.0).save(first)
    second = config.build(scene, 2)
    second.restore(*Checkpoints(tmp_path, 1.0).load())
    fit(second, budget, config.after_step())
    for name, wanted in straight.tensors().items():
        assert torch.equal(wanted, second.tensors()[name]), name


@pytest.mark.data
@pytest.mark.slow
def test_held_out_views_of_a_room_gain_by_it(data_root, tmp_path):
    """A fox on a wall, photographed from within a room."""
    config = replace(RECIPES["neus"], samples_per_step=4096, outside=replace(SMALL, samples=24))
    psnr = {}
    for kind in (ngp.Background.AUTO, ngp.Background.BLACK):
        run = tmp_path / kind.value
        options = dict(run=run, steps=250, downscale=8, preview_every=0.0)
        fitted = fit_scene(str(data_root / "fox"), replace(config, background=kind), **options)
        assert isinstance(fitted.renderer.background, FieldBackground) == (kind is ngp.Background.AUTO)
        assert main(["evaluate", str(run)]) == 0
        psnr[kind] = json.loads((run / "metrics.json").read_text())["psnr"]
    assert psnr[ngp.Background.AUTO] > psnr[ngp.Background.BLACK] + 0.5, psnr
