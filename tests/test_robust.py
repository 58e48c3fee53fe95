"""Transient masks: what is an outlier, what its neighbours make of it, and what fits gain where something moved."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.errors import UserError
from polyfield.apps.fit import Budget, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.images import photograph
from polyfield.apps.supervision import robust_masks
from polyfield.datasets.scene import open_scene
from polyfield.geometry import Pixels, Rays
from polyfield.renderers.losses.photometric import Photometric
from polyfield.renderers.metrics import psnr
from polyfield.renderers.protocols import Render, Step
from polyfield.renderers.robust import RobustConfig, RobustMasks, consistent

from .test_fit import SMALL as SMALL_GRID
from .test_poses import ring
from .test_splat_fit import RECIPES

AT_ONCE = RobustConfig(outliers=0.2, begin=0.0, until=0.0)


@pytest.fixture(scope="module")
def scene():
    return open_scene("demo", downscale=4)


def image_step(residuals, masks=None, spent=1.0, colors=None):
    """A step that drew a picture (H, W) with these residuals."""
    target = torch.zeros(*residuals.shape, 3)
    colors = target + residuals[..., None] if colors is None else colors
    camera = ring(1, residuals.shape[0])[0]
    return Step(0, None, camera, Render(Pixels(colors)), Pixels(target, masks=masks), torch.tensor(0), spent)


def ray_step(residuals, points, frames):
    target = torch.zeros(len(residuals), 3)
    nothing = torch.zeros(len(residuals))
    view = Rays(target, target, nothing, nothing, image_points=points)
    render = Render(Pixels(target + residuals[:, None]))
    return Step(0, None, view, render, Pixels(target), frames, 1.0)


def test_regions_are_left_out_and_lines_are_not():
    inliers = torch.ones(40, 40, dtype=torch.bool)
    inliers[5:17, 5:17] = False
    inliers[10, 10] = True  # by chance
    inliers[30, :] = False  # an edge
    inliers[25, 33] = False  # a grain
    kept = consistent(inliers, 8)
    assert not kept[7:15, 7:15].any(), "what is inside, by chance or not"
    assert kept[20:].all() and kept[:, 20:].all(), "edges and grains count"
    assert (~kept).sum() <= 12 * 12
    assert consistent(torch.ones(2, 3, dtype=torch.bool), 8).all(), "a picture smaller than the neighbourhood"


def test_the_threshold_is_a_quantile_of_the_last_steps():
    masks = RobustMasks(AT_ONCE, 1, 4)
    residuals = torch.rand(100, 100, generator=torch.Generator().manual_seed(0))
    masks._observe(residuals)
    for share in (0.2, 0.5, 0.9):
        assert float(masks._quantile(share)) == pytest.approx(share, abs=0.02)
    for _ in range(400):
        masks._observe(0.1 * residuals)
    assert float(masks._quantile(0.5)) == pytest.approx(0.05, abs=0.002), "what is long ago is forgotten"
    before = masks.histogram.clone()
    masks._observe(torch.full((10, 10), -1.0))
    torch.testing.assert_close(masks.histogram, 0.98 * before)


def test_the_share_grows_and_is_bounded():
    config = RobustConfig(outliers=0.2, begin=0.1, until=0.3)
    residuals = torch.rand(32, 32, generator=torch.Generator().manual_seed(0)) * 0.01
    residuals[:16, :8] = 0.9
    for spent, left_out in ((0.0, 0), (0.1, 0), (0.15, 0), (0.3, 1), (1.0, 1)):
        masks = RobustMasks(config, 1, 4)
        found = masks(image_step(residuals, spent=spent)).target.masks
        share = 0.0 if found is None else float((~found).float().mean())
        assert share == pytest.approx(0.125 * left_out, abs=0.03), spent
    alike = RobustMasks(AT_ONCE, 1, 4)(image_step(torch.full((32, 32), 0.01))).target.masks
    assert alike.all(), "where all residuals are alike, none is an outlier"


def test_masked_pixels_stay_masked_and_have_no_say():
    residuals = torch.full((32, 32), 0.01)
    residuals[:, :16] = 0.9
    known = torch.ones(32, 32, dtype=torch.bool)
    known[:, :16] = False
    kept = RobustMasks(AT_ONCE, 1, 4)(image_step(residuals, masks=known)).target.masks
    assert torch.equal(kept, known), "what is known is all alike"


def test_an_outlier_has_no_gradient():
    target = torch.zeros(32, 32, 3)
    target[4:12, 4:16] = 0.8
    colors = torch.zeros(32, 32, 3, requires_grad=True)
    step = image_step(torch.zeros(32, 32), colors=colors)
    step = RobustMasks(AT_ONCE, 1, 4)(replace(step, target=Pixels(target)))
    Photometric()(step).backward()
    assert (colors.grad[5:11, 5:15] == 0).all()


def test_rays_go_by_what_their_photographs_regions_did():
    g = torch.Generator().manual_seed(0)
    masks = RobustMasks(AT_ONCE, 2, 4)
    moved = lambda points, frames: (frames == 1) & (points < 0.5).all(-1)  # noqa: E731  an eighth of all
    for _ in range(60):
        points, frames = torch.rand(512, 2, generator=g), torch.randint(2, (512,), generator=g)
        residuals = 0.02 * torch.rand(512, generator=g)
        grains = torch.rand(512, generator=g) < 0.02
        wrong = moved(points, frames)
        residuals[grains | (wrong & (torch.rand(512, generator=g) < 0.9))] = 0.8
        kept = masks(ray_step(residuals, points, frames)).target.masks
    assert not kept[wrong].any(), "what agrees by chance is left out, too"
    assert kept[~wrong].all(), "and single outliers elsewhere count"
    with pytest.raises(ValueError, match="robust: view: expected rays with image_points and their frames, got none"):
        masks(ray_step(residuals, None, frames))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RobustConfig(outliers=1.0), r"--robust.outliers: expected a share of pixels from 0 to 1, got 1.0"),
        (RobustConfig(outliers=-0.1), r"--robust.outliers: expected a share of pixels from 0 to 1, got -0.1"),
        (RobustConfig(outliers=0.1, neighborhood=2), r"--robust.neighborhood: expected 3 pixels or more, got 2"),
    ],
)
def test_numbers_that_are_none(scene, config, message):
    with pytest.raises(UserError, match=message):
        robust_masks(config, scene, torch.device("cpu"))


def distracted(scene, seed=0):
    """The scene with a framed square somewhere before the middle of every third training photograph."""
    g = torch.Generator().manual_seed(seed)
    names, frames = {f.name for f in scene.train[::3]}, []
    for frame in scene.frames:
        if frame.name not in names:
            frames.append(frame)
        else:
            height, width = frame.colors.shape[:2]
            side = height // 2
            y, x = (size // 8 + int(torch.randint(size // 4, (1,), generator=g)) for size in (height, width))
            colors, alphas = frame.colors.clone(), frame.alphas.clone()
            for inset, color in ((0, (20, 20, 20)), (2, (230, 20, 160))):
                inside = (slice(y + inset, y + side - inset), slice(x + inset, x + side - inset))
                colors[inside] = torch.tensor(color, dtype=torch.uint8)
                alphas[inside] = 255
            frames.append(replace(frame, colors=colors, alphas=alphas))
    return scene.with_frames(tuple(frames))


def held_out(job, scene):
    """Mean PSNR of held-out views, dB."""
    shown = [(job.renderer.render(job.field, f.camera).pixels.colors, photograph(f, job.renderer)) for f in scene.test]
    return sum(float(psnr(*pair)) for pair in shown) / len(shown)


def quick(name):
    """A recipe's small configuration; Gaussians that learn fast enough to take up what moves."""
    if name == "ngp":
        return SMALL_GRID
    config = RECIPES[name]
    return replace(config, rates=replace(config.rates, means=2e-3), max_gaussians=6000, sh_degree=2, degree_every=0.0)


@pytest.mark.parametrize(
    ("name", "steps", "gain"), [("ngp", 150, 1.0), ("splat", 500, 0.2), ("splat_classic", 500, 0.12)]
)
def test_what_moves_is_left_out_of_a_fit(scene, name, steps, gain):
    """Absolute differences, which Gaussians are fitted by, resist outliers themselves: they have less to gain."""
    config, moving, budget, found = quick(name), distracted(scene), Budget(steps=steps), []
    for outliers in (0.0, 0.1):
        made = replace(config, robust=RobustConfig(outliers=outliers))
        job = made.build(moving, budget=budget)
        fit(job, budget, made.after_step())
        found.append(held_out(job, scene))
    assert found[1] > found[0] + gain, found


@pytest.mark.parametrize("name", ["ngp", "splat"])
def test_a_fit_resumes(scene, name, tmp_path):
    config = replace(quick(name), robust=RobustConfig(outliers=0.2, begin=0.0, until=0.5))
    budget = Budget(steps=12)
    straight = config.build(scene, 1, budget=budget)
    fit(straight, budget, config.after_step())
    second, first = config.build(scene, 2, budget=budget), config.build(scene, 1, budget=budget)
    fit(first, budget, config.after_step(), stop=lambda: first.step >= 7)
    Checkpoints(tmp_path, 1.0).save(first)
    second.restore(*Checkpoints(tmp_path, 1.0).load())
    fit(second, budget, config.after_step())
    assert torch.equal(second.robust.histogram, straight.robust.histogram)
    assert torch.equal(second.robust.shares, straight.robust.shares)
    for a, b in zip(straight.field.parameters(), second.field.parameters(), strict=True):
        assert torch.equal(a, b)
