"""Bilateral grids: the identity at first, the same for pixels and images, closed forms, and what fits gain."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.batches import PixelBatches
from polyfield.apps.config_io import from_json, to_json
from polyfield.apps.exposures import ExposureKind
from polyfield.apps.fit import Budget, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.recipes import ngp, splat
from polyfield.datasets.scene import open_scene
from polyfield.geometry import Camera, Rays
from polyfield.renderers.bilateral_grid import IDENTITY, BilateralConfig, BilateralGrids
from polyfield.renderers.metrics import psnr
from polyfield.renderers.protocols import Render, Step

from .test_fit import SMALL as SMALL_GRID
from .test_splat_fit import SMALL as SMALL_SPLAT

BILATERAL = ExposureKind.BILATERAL


@pytest.fixture(scope="module")
def scene():
    return open_scene("demo", downscale=4)


def camera(width=6, height=5):
    return Camera.perspective(width, height, 0.8, torch.eye(4))


def rays(image_points):
    n = len(image_points)
    return Rays(torch.zeros(n, 3), torch.zeros(n, 3), torch.zeros(n), torch.ones(n), image_points=image_points)


def image_points(camera):
    return camera.pixel_centers() / torch.tensor([camera.width, camera.height])


def filled(images=3, seed=0, **changes):
    grids = BilateralGrids(images, replace(BilateralConfig(), **changes))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for grid in grids.grids:
            grid.add_(0.3 * torch.randn(grid.shape, generator=g))
    return grids


def test_nothing_changes_at_first():
    grids, colors = BilateralGrids(3), torch.rand(5, 6, 3)
    torch.testing.assert_close(grids(colors, torch.tensor(1), camera()), colors)
    flat = grids(colors.view(-1, 3), torch.arange(30) % 3, rays(torch.rand(30, 2)))
    torch.testing.assert_close(flat, colors.view(-1, 3))


@pytest.mark.parametrize("size", [{}, {"size": 4, "luminances": 1}, {"size": 1, "luminances": 3}])
def test_pixels_are_mapped_as_their_images_are(size):
    grids, view = filled(**size), camera()
    colors = torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2
    whole = [grids(colors, torch.tensor(i), view).view(-1, 3) for i in range(3)]
    assert (whole[0] - whole[1]).abs().max() > 0.1
    numbers = torch.arange(30) % 3
    flat = grids(colors.view(-1, 3), numbers, rays(image_points(view)))
    torch.testing.assert_close(flat, torch.stack(whole)[numbers, torch.arange(30)], atol=1e-5, rtol=1e-5)


def test_maps_are_trilinear_in_place_and_luminance():
    grids = BilateralGrids(2, BilateralConfig(size=3, luminances=2))
    x, y, light = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (3, 3, 2)), indexing="ij")
    with torch.no_grad():
        grids.grids[1][3] = (0.1 + 0.2 * x + 0.3 * y + 0.4 * light).permute(2, 1, 0)  # what red is raised by
    colors, points = torch.rand(9, 3), torch.rand(9, 2)
    wanted = colors.clone()
    gray = colors @ torch.tensor([0.299, 0.587, 0.114])
    wanted[:, 0] += 0.1 + points @ torch.tensor([0.2, 0.3]) + 0.4 * gray
    found = grids(colors, torch.ones(9, dtype=torch.long), rays(points))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_gradients():
    grids = filled(2, size=3, luminances=3).double()
    colors = torch.rand(4, 3, dtype=torch.float64) * 0.9 + 0.05
    numbers, view = torch.tensor([0, 1, 1, 0]), rays(torch.rand(4, 2, dtype=torch.float64))
    names = [f"grids.{i}" for i in range(2)]

    def mapped(colors, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(grids, given, (colors, numbers, view))

    values = [grid.detach().clone().requires_grad_() for grid in grids.grids]
    assert torch.autograd.gradcheck(mapped, (colors.requires_grad_(), *values))


def test_variation():
    grids = BilateralGrids(3, BilateralConfig(smoothness=2.0))
    step = Step(0, None, camera(), Render(None), None, torch.tensor(1))
    assert grids.prior(step) == 0
    with torch.no_grad():
        grids.grids[1] += torch.linspace(0, 1, 8)[:, None, None]
        grids.grids[2] += 100 * torch.rand(12, 8, 16, 16)
    torch.testing.assert_close(grids.prior(step), torch.tensor(2.0 / 49))
    grids.prior(step).backward()
    assert [grid.grad is not None for grid in grids.grids] == [False, True, False]
    of_rays = replace(step, frames=torch.tensor([0, 1]))
    assert grids.prior(of_rays) > 1, "all images are looked at, whatever was drawn"


def test_what_all_images_have_in_common_is_taken_out():
    grids = filled(4)
    apart = (grids.grids[0] - grids.grids[1]).detach().clone()
    grids.center()
    mean = torch.stack(list(grids.grids)).mean((0, 3, 4))
    torch.testing.assert_close(mean, torch.tensor(IDENTITY)[:, None].expand(12, 8), atol=1e-6, rtol=0)
    torch.testing.assert_close(grids.grids[0] - grids.grids[1], apart)


def test_rays_without_their_place_in_the_image():
    view = replace(rays(torch.rand(2, 2)), image_points=None)
    with pytest.raises(ValueError, match="BilateralGrids: view: expected rays with image_points, got none"):
        BilateralGrids(1)(torch.rand(2, 3), torch.zeros(2, dtype=torch.long), view)


def test_batches_say_where_in_its_image_a_pixel_is(scene):
    frames = (scene.train[0], replace(scene.train[1], camera=scene.train[1].camera.cropped(0, 0, 50, 50)))
    drawn, _, numbers = PixelBatches(frames, near=0.1, rays=64, needed={"image_points"}).draw()
    for number, frame in enumerate(frames):
        own = numbers == number
        directions = frame.camera.rays(drawn.image_points[own] * 50).directions
        torch.testing.assert_close(drawn.directions[own], directions.float())


def toned(scene, strength=0.8):
    """The scene whose training photographs are each brightened and darkened, smoothly over the image."""
    g = torch.Generator().manual_seed(4)
    frames, slopes = [], torch.zeros(3, 3)
    for number, frame in enumerate(scene.train[::5]):
        slopes = -slopes if number % 2 else strength * torch.randn(3, 3, generator=g)  # none on average
        x, y = image_points(frame.camera).unbind(-1)
        gains = (torch.stack([torch.ones_like(x) / 2, x - 0.5, y - 0.5], -1) @ slopes).exp()
        colors = (frame.colors.view(-1, 3) * gains).clamp(0, 255).round().byte().view_as(frame.colors)
        frames.append(replace(frame, colors=colors))
    return scene.with_frames((*frames, *scene.test))


DARK_GRID = replace(SMALL_GRID, background=ngp.Background.BLACK)
QUICK_SPLAT = replace(SMALL_SPLAT, rates=replace(SMALL_SPLAT.rates, colors=3e-2))


@pytest.mark.parametrize(("config", "gain"), [(DARK_GRID, 0.7), (QUICK_SPLAT, 0.3)], ids=["ngp", "splat"])
def test_photographs_of_changing_tone(scene, config, gain):
    """Held-out views, in decibels, of a fit to 12 photographs that were brightened and darkened."""
    flat = tuple(replace(f, colors=(f.over((0.0,) * 3) * 255).byte(), alphas=None) for f in scene.frames)
    photographs = toned(scene.with_frames(flat))
    budget, found = Budget(steps=200), []
    for kind in (ExposureKind.NONE, BILATERAL):
        made = replace(config, exposure=kind, bilateral=BilateralConfig(learning_rate=1e-2))
        job = made.build(photographs, budget=budget)
        fit(job, budget, made.after_step())
        shown = [job.renderer.render(job.field, f.camera).pixels.colors for f in scene.test[:4]]
        wanted = [f.over(torch.zeros(3)) for f in scene.test[:4]]
        found.append(sum(psnr(a, b) for a, b in zip(shown, wanted, strict=True)) / 4)
    assert found[1] > found[0] + gain, found


def test_fits_with_grids_resume_to_the_bit(scene, tmp_path):
    config = replace(SMALL_SPLAT, exposure=BILATERAL)
    budget = Budget(steps=40)
    straight, first = (config.build(scene, 1, budget=budget) for _ in range(2))
    fit(straight, budget, config.after_step())
    fit(first, budget, config.after_step(), stop=lambda: first.step >= 23)
    Checkpoints(tmp_path, 1.0).save(first)
    second = config.build(scene, 2)
    second.restore(*Checkpoints(tmp_path, 1.0).load())
    fit(second, budget, config.after_step())
    for a, b in zip(straight.exposure.grids, second.exposure.grids, strict=True):
        assert torch.equal(a, b)


def test_runs_of_before_said_true_or_false():
    for recipe in (ngp, splat):
        said = to_json(recipe.Config())
        assert said["exposure"] == "none"
        for value, kind in ((True, ExposureKind.GAIN), (False, ExposureKind.NONE), ("bilateral", BILATERAL)):
            assert from_json(recipe.Config, {**said, "exposure": value}).exposure is kind
