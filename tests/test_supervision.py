"""Depths and normals as targets: closed forms, what counts, that batches hand them out, and what fits gain."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.batches import PixelBatches
from polyfield.apps.errors import UserError
from polyfield.apps.fit import Budget, fit
from polyfield.apps.image_batches import ImageBatches
from polyfield.apps.recipes import neus, ngp, splat, splat_classic, splat_mip, udf
from polyfield.apps.supervision import check_normals
from polyfield.datasets.scene import open_scene
from polyfield.datasets.undistort import straightened
from polyfield.fields.protocols import FieldOutput
from polyfield.geometry import Aabb, Pixels
from polyfield.renderers.losses.depth import Depth, depth_error
from polyfield.renderers.losses.normal import Normal, normal_error
from polyfield.renderers.protocols import Render, Step
from polyfield.renderers.splat import SplatRenderer

from .test_fit import SMALL as SMALL_GRID
from .test_splat_fit import SMALL as SMALL_SPLAT

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def scene():
    return open_scene("demo", downscale=4)


def without(scene, what, keep=()):
    """The scene, of which only frames with these numbers know their depths or normals."""
    frames = [f if i in keep else replace(f, **{what: None}) for i, f in enumerate(scene.frames)]
    return scene.with_frames(tuple(frames))


def depth_step(depths, target, alphas=None, masks=None):
    pixels = Pixels(depths=depths, alphas=torch.ones_like(depths) if alphas is None else alphas)
    return Step(0, None, None, Render(pixels), Pixels(depths=target, masks=masks))


def test_depth_errors():
    depths, target = torch.tensor([1.0, 2.5, 4.0]), torch.tensor([1.1, 2.0, 2.0])
    torch.testing.assert_close(depth_error(depths, target)[0], torch.tensor([0.1, 0.5, 2.0]))
    wanted = torch.tensor([0.01 / 2, 0.5**2 / 2, 1.5])
    torch.testing.assert_close(depth_error(depths, target, huber=1.0)[0], wanted)
    wanted = torch.tensor([1 - 1 / 1.1, 0.1, 0.25])
    torch.testing.assert_close(depth_error(depths, target, inverse=True)[0], wanted)


def test_pixels_without_depth_or_masked_count_for_nothing():
    depths = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], requires_grad=True)
    target = torch.tensor([1.5, 0.0, NAN, INF, -1.0, 9.0])
    masks = torch.tensor([True, True, True, True, True, False])
    loss = Depth(weight=2.0)(depth_step(depths, target, masks=masks))
    assert float(loss.detach()) == pytest.approx(2 * 0.5), "the mean over the one pixel that counts"
    loss.backward()
    assert depths.grad.tolist() == [-2.0, 0, 0, 0, 0, 0]
    loss = Depth(weight=1.0, inverse=True)(depth_step(depths, target.clamp(max=0)))
    assert loss == 0 and not loss.detach().isnan()


def test_depths_are_missed():
    known = torch.ones(2)
    with pytest.raises(ValueError, match="depth: target: expected depths, got none"):
        Depth(weight=1.0)(depth_step(known, None))
    made = depth_step(known, known)
    with pytest.raises(ValueError, match="depth: render: expected depths, got none"):
        Depth(weight=1.0)(replace(made, render=Render(Pixels(alphas=known))))


class Fog:
    """The same density everywhere, or one that is learned slab by slab along x."""

    bounds = Aabb.cube(1.0)

    def __init__(self, densities):
        self.densities = densities

    def query(self, points, directions=None, *, gradients=False):
        slab = ((points[:, 0] + 1) / 2 * len(self.densities)).long().clamp(0, len(self.densities) - 1)
        colors = None if directions is None else torch.zeros_like(points)
        return FieldOutput(self.densities[slab], colors=colors)


def test_a_marched_depth_moves_densities_along_the_ray_and_asks_for_no_more_of_them():
    """A thin fog's expected depth is the middle of it, however thin it is: no gradient to the density of all of it."""
    from .test_volume import rays_at, renderer

    densities = torch.full((16,), 1.0, requires_grad=True)
    fog = Fog(densities)
    fog.radius = 2.0
    pixels = renderer(fog, min_alpha=0.0, min_transmittance=0.0).render(fog, rays_at(0.0)).pixels
    (gradient,) = torch.autograd.grad(pixels.depths.sum(), densities)
    assert gradient[0] < 0 < gradient[-1], "more at the front is nearer, more at the back is farther"
    thin = Fog(torch.full((16,), 1e-2, requires_grad=True))
    thin.radius = 2.0
    pixels = renderer(thin, min_alpha=0.0, min_transmittance=0.0).render(thin, rays_at(0.0)).pixels
    (gradient,) = torch.autograd.grad(pixels.depths.sum(), thin.densities)
    assert abs(float(gradient.sum())) < 0.02 * float(gradient.abs().sum()), "of more of it everywhere"


def test_what_batches_hand_out(scene):
    some = without(scene, "depths", keep=(1, 2))
    frames = some.train
    batches = PixelBatches(frames, near=0.1, rays=4096, needed={"depths", "normals"})
    rays, target, number = batches.draw()
    assert target.depths.dtype == target.normals.dtype == torch.float32
    known = target.depths > 0
    assert known.any() and (number[known] <= 1).all(), "of the two training views that have depths"
    at = rays.at(target.depths)[known]
    surface = scene.mesh.vertices[torch.cdist(at[:50], scene.mesh.vertices).argmin(1)]
    assert (at[:50] - surface).norm(dim=-1).median() < 0.03, "depths are along the rays, in scene units"
    facing = (target.normals * rays.directions).sum(-1)[target.normals.norm(dim=-1) > 0.5]
    assert (facing < 0.1).all()
    assert batches.memory_bytes == PixelBatches(frames, near=0.1).memory_bytes + batches.count * 10
    plain = PixelBatches(frames, near=0.1, rays=4096).draw()
    assert plain[1].depths is None and torch.equal(plain[0].origins, rays.origins)

    images = ImageBatches(frames, needed={"depths"})
    for _ in range(len(frames)):
        _, target, number = images.draw()
        assert target.depths.shape == (50, 50) and target.normals is None
        assert bool((target.depths > 0).any()) == (int(number) <= 1)


def test_depths_shrink_and_straighten_with_their_photographs(scene):
    whole = open_scene("demo", downscale=2).test[0]
    small = scene.test[0]
    inside = (small.depths > 0)[10:40, 10:40]
    difference = (whole.depths[::2, ::2] - small.depths)[10:40, 10:40][inside].abs()
    assert difference.median() < 0.02
    frame = straightened(scene.with_frames((small,))).frames[0]
    assert frame.depths is small.depths


@pytest.mark.parametrize("recipe", [ngp, splat, splat_classic, splat_mip])
def test_a_scene_without_depths_is_an_error(scene, recipe):
    config = recipe.Config(depth=Depth(weight=0.1))
    message = r"fit: --depth.weight: expected depths in a training view at least, demo has none; .* depth_file_path"
    with pytest.raises(UserError, match=message):
        config.build(without(scene, "depths"))


@torch.no_grad()
def depth_errors(job, scene, views=3):
    """Median of the depth's error on held-out views where something is."""
    found = []
    for frame in scene.test[:views]:
        depths = job.renderer.render(job.field, frame.camera).pixels.depths
        found.append((depths - frame.depths)[frame.depths > 0].abs())
    return float(torch.cat(found).median())


def normal_step(normals, target, masks=None):
    pixels = Pixels(alphas=torch.ones_like(normals[..., 0]))
    return Step(0, None, None, Render(pixels, mean_normals=normals), Pixels(normals=target, masks=masks))


def test_normal_errors():
    z, x = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    normals = torch.stack([z, z, z, z / 2, z, z]).requires_grad_()
    target = torch.stack([z, x, -z, z, 0 * z, z * NAN])
    error, known = normal_error(normals, target)
    assert error.tolist() == [0, 1, 2, 0.5, 0, 0] and known.tolist() == [True] * 4 + [False] * 2
    masks = torch.tensor([True, True, False, True, True, True])
    loss = Normal(weight=2.0)(normal_step(normals, target, masks))
    assert float(loss.detach()) == pytest.approx(2 * 1.5 / 3)
    loss.backward()
    assert normals.grad.isfinite().all() and (normals.grad[[2, 4, 5]] == 0).all()
    with pytest.raises(ValueError, match="normal: target: expected normals, got none"):
        Normal(weight=1.0)(normal_step(normals, None))
    with pytest.raises(ValueError, match="normal: render: expected normals, got none"):
        Normal(weight=1.0)(replace(normal_step(normals, target), render=Render(Pixels())))


@pytest.mark.parametrize("recipe", [splat, splat_classic, splat_mip])
def test_a_scene_without_normals_is_an_error(scene, recipe):
    message = r"fit: --normal.weight: expected normals in a training view at least, demo has none; .* normal_file_path"
    with pytest.raises(UserError, match=message):
        recipe.Config(normal=Normal(weight=0.1)).build(without(scene, "normals"))


def test_normals_along_other_axes_are_named(scene):
    """Facing the camera is what all normals that are seen have in common."""
    check_normals(scene)
    turned = torch.diag(torch.tensor([1.0, -1, -1]))

    def by(turn):
        frames = []
        for f in scene.frames:
            axes = f.camera.camera_to_world[:3, :3]
            frames.append(replace(f, normals=(f.normals.float() @ (axes @ turn @ axes.T).T).half()))
        return scene.with_frames(tuple(frames))

    message = r"fit: --normal.weight: expected normals that face the cameras, \d+ % of demo's do"
    with pytest.raises(UserError, match=message + ", .* face away: opengl and opencv .*; state the maps' normal_axes"):
        neus.Config(normal=Normal(weight=0.1)).build(by(turned))
    with pytest.raises(UserError, match=message + ", .* face away"):
        check_normals(by(-torch.eye(3)))
    with pytest.raises(UserError, match=message + "; state"):
        check_normals(by(torch.eye(3)[[2, 0, 1]]))


@pytest.mark.parametrize("recipe", [neus, udf])
def test_a_marched_distance_has_mean_normals(scene, recipe):
    """They are compared while fitting, and learned."""
    config = recipe.Config(normal=Normal(weight=1.0))
    config = replace(
        config,
        field=replace(config.field, radius=0.5),
        samples_per_step=2048,
        first=replace(config.first, grid_share=0.0),
    )
    job = config.build(scene, budget=Budget(steps=2))
    reports = []
    fit(job, Budget(steps=2), [*config.after_step(), reports.append])
    step = reports[0].step
    means, alphas = step.render.mean_normals, step.render.pixels.alphas
    assert means.shape == (len(step.view), 3) and (means.norm(dim=-1) < 1.01).all()
    hit = alphas > 0.9
    assert ((means * step.view.directions).sum(-1)[hit] < 0).float().mean() > 0.8, "towards the camera"
    assert reports[0].terms["normal"] > 0


def test_normals_of_a_hash_grid_are_not_supervised(scene):
    with pytest.raises(UserError, match=r"fit: --normal.weight: expected 0, .*; use one of the recipes splat,"):
        ngp.Config(normal=Normal(weight=0.1)).build(scene)


@torch.no_grad()
def normal_errors(job, scene, views=3):
    """Median angle between rendered and true normals on held-out views, degrees."""
    found = []
    for frame in scene.test[:views]:
        normals = job.renderer.render(job.field, frame.camera, normals=True).pixels.normals
        cosine = (normals * frame.normals.float()).sum(-1)[frame.depths > 0]
        found.append(cosine.clamp(-1, 1).acos().rad2deg())
    return float(torch.cat(found).median())


QUICK_SPLAT = replace(SMALL_SPLAT, rates=replace(SMALL_SPLAT.rates, means=2e-3, quats=1e-2))


@pytest.mark.parametrize(("config", "weight", "share"), [(SMALL_GRID, 0.1, 0.5), (QUICK_SPLAT, 2.0, 0.8)])
def test_depths_of_a_short_fit(scene, config, weight, share):
    budget, errors = Budget(steps=120), []
    for depth in (Depth(), Depth(weight=weight)):
        made = replace(config, depth=depth)
        job = made.build(scene, budget=budget)
        fit(job, budget, made.after_step())
        errors.append(depth_errors(job, scene))
    assert errors[1] < share * errors[0], errors


def test_normals_of_a_short_fit(scene):
    budget, errors = Budget(steps=120), []
    for normal in (Normal(), Normal(weight=0.5)):
        made = replace(QUICK_SPLAT, normal=normal)
        job = made.build(scene, budget=budget)
        fit(job, budget, made.after_step())
        errors.append(normal_errors(job, scene))
    assert errors[1] < 0.85 * errors[0], errors


def test_splats_have_depths_with_gradients_on_request(scene):
    job = SMALL_SPLAT.build(scene, budget=Budget(steps=1))
    assert isinstance(job.renderer, SplatRenderer)
    job.renderer.train()
    camera = scene.train[0].camera
    assert job.renderer.render(job.field, camera).pixels.depths is None
    job.renderer.render(job.field, camera, depths=True).pixels.depths.sum().backward()
    assert job.field.means.grad.abs().max() > 0 and job.field.logit_opacities.grad.abs().max() > 0


def test_what_is_missing_costs_no_run(tmp_path, capsys):
    """A loss without its targets is found out before the run folder, or the one that it would replace, is touched."""
    folder = tmp_path / "run"
    small = ["--downscale", "8", "--steps", "1", "--preview-every", "0"]
    assert main(["fit", "ngp", "demo", "--run", str(folder), *small]) == 0
    before = (folder / "scene.safetensors").read_bytes()
    wrong = ["--normal.weight", "0.1", "--overwrite"]
    assert main(["fit", "ngp", "demo", "--run", str(folder), *small, *wrong]) == 2
    assert "fit: --normal.weight" in capsys.readouterr().err
    assert (folder / "scene.safetensors").read_bytes() == before
    assert main(["fit", "ngp", "demo", "--run", str(tmp_path / "new"), *small, *wrong[:2]]) == 2
    assert not (tmp_path / "new").exists()
