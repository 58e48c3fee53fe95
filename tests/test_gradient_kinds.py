"""Gradients of distances by differences: to their order on exact fields, in patches of rays, and in short fits."""

import json
from dataclasses import replace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.batches import PixelBatches
from polyfield.apps.coarse_to_fine import CoarseToFineConfig
from polyfield.apps.errors import UserError
from polyfield.apps.fit import Budget, fit
from polyfield.apps.recipes import shape
from polyfield.apps.run import SceneFacts
from polyfield.datasets.scene import open_scene
from polyfield.fields.gradient_kinds import Gradients, around, central_differences
from polyfield.fields.protocols import FieldOutput
from polyfield.geometry import Aabb, Rays, Samples
from polyfield.renderers.metrics import psnr
from polyfield.renderers.patches import PatchDifferences, middle_rays, spread, with_neighbors

from .test_signed_distance import BOUNDS, SMALL, points, taught
from .test_surface_fit import RECIPES

F64 = torch.float64


def test_central_differences_are_of_second_order():
    p, steps = points().double(), torch.tensor([0.1, 0.2, 0.05], dtype=F64)
    wave = lambda x: (3 * x[:, 0]).sin() * x[:, 1].exp() + x[:, 2] ** 3  # noqa: E731
    x, y, z = p.unbind(-1)
    true = torch.stack([3 * (3 * x).cos() * y.exp(), (3 * x).sin() * y.exp(), 3 * z**2], -1)
    errors = [(central_differences(wave(around(p, s)), s) - true).abs().amax(0) for s in (steps, steps / 2)]
    torch.testing.assert_close(errors[0] / errors[1], torch.full((3,), 4.0, dtype=F64), rtol=0.03, atol=0)


def finite(difference, dtype=F64):
    field = taught(dtype)
    built = replace(SMALL, gradients=Gradients.FINITE).build(BOUNDS).to(dtype)
    built.load_state_dict(field.state_dict() | {"difference": torch.tensor(difference, dtype=dtype)})
    return field, built


def test_a_field_by_differences():
    """Within a cell both kinds agree; values, colours and what is learned are of the same field."""
    exact, built = finite(1e-7)
    p = points().double()
    ours, theirs = built.query(p, gradients=True), exact.query(p, gradients=True)
    torch.testing.assert_close(ours.values, theirs.values)
    torch.testing.assert_close(ours.features, theirs.features)
    off = (ours.gradients - theirs.gradients).norm(dim=-1)
    assert off.median() < 1e-6 and (off < 1e-4).double().mean() > 0.97, "but at kinks"
    parameters = [[f.encoding.table, *f.network.weights] for f in (built, exact)]
    squared = lambda output: (output.gradients.norm(dim=-1) - 1).square()[off < 1e-4].sum()  # noqa: E731
    found = torch.autograd.grad(squared(ours), parameters[0])
    wanted = torch.autograd.grad(squared(theirs), parameters[1])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3 * float(b.abs().max()), rtol=1e-3)


def test_a_wide_difference_is_smooth():
    _, built = finite(0.1)
    p, steps = points().double(), 0.1 * BOUNDS.extent.double()
    values = built.distance(around(p, steps))
    torch.testing.assert_close(built.query(p, gradients=True).gradients, central_differences(values, steps))
    directions = torch.nn.functional.normalize(p, dim=-1)
    assert built.float().query(p.float(), directions.float()).colors.shape == p.shape


def lattice_of_rays(patch, counts, spread_by=0.01, seed=0):
    """Patches of rays from one place, with so many samples each, from where they are a unit away."""
    g = torch.Generator().manual_seed(seed)
    directions = []
    for _ in counts:
        right, up = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=F64))[0][:2]
        row, column = torch.meshgrid(torch.arange(patch), torch.arange(patch), indexing="ij")
        away = torch.linalg.cross(right, up, dim=-1)
        directions.append(away + spread_by * (column[..., None] * right + row[..., None] * up))
    directions = torch.nn.functional.normalize(torch.cat([d.reshape(-1, 3) for d in directions]), dim=-1)
    rays = len(directions)
    zero = torch.zeros(rays, dtype=F64)
    middles = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).int()
    t = torch.cat([1 + spread_by * torch.arange(n, dtype=F64) for n in counts])
    offsets = torch.tensor([0, *counts]).cumsum(0).int()
    packed = spread(Samples(t, t + spread_by, middles, offsets), torch.arange(len(t)), patch)
    return Rays(zero[:, None].expand(-1, 3).contiguous(), directions, zero, zero + 9), packed


def places(rays, samples):
    t = (samples.t_starts + samples.t_ends) / 2
    return t[:, None] * samples.directions(rays), samples.directions(rays)


def test_patches_are_packed():
    rays, samples = lattice_of_rays(3, [2, 0, 3])
    assert samples.ray_offsets.tolist()[:10] == list(range(0, 19, 2))
    assert samples.ray_offsets.tolist()[10:19] == [18] * 9
    assert samples.ray_offsets.tolist()[-1] == 18 + 27 and len(rays) == 27
    assert samples.ray_indices.tolist() == torch.arange(27).repeat_interleave(samples.ray_offsets.diff()).tolist()
    t = samples.t_starts[18:].view(9, 3)
    assert (t == t[0]).all()
    assert middle_rays(27, 3, t.device).tolist() == [4, 13, 22]


@pytest.mark.parametrize("patch", [2, 3, 5])
def test_differences_of_a_plane_are_exact(patch):
    rays, samples = lattice_of_rays(patch, [4, 7, 0, 2])
    at, directions = places(rays, samples)
    normal = torch.tensor([0.3, -0.5, 0.8], dtype=F64)
    found = PatchDifferences(samples, at, directions, patch)(at @ normal)
    torch.testing.assert_close(found, normal.expand(len(at), 3))


def test_differences_of_a_curved_field_are_of_their_order():
    """One-sided at borders, so of the first order; in the middle of a patch, of the second."""
    errors, middles = [], []
    for width in (0.02, 0.01):
        rays, samples = lattice_of_rays(3, [3] * 20, width)
        at, directions = places(rays, samples)
        center = torch.tensor([0.2, 0.1, -0.4], dtype=F64)
        away = at - center
        found = PatchDifferences(samples, at, directions, 3)(away.norm(dim=-1))
        off = (found - torch.nn.functional.normalize(away, dim=-1)).norm(dim=-1).view(20, 9, 3)
        errors.append(off.mean())
        middles.append(off[:, 4, 1].mean())
    assert float(errors[0] / errors[1]) == pytest.approx(2, rel=0.2)
    assert float(middles[0] / middles[1]) == pytest.approx(4, rel=0.3)


def test_a_sample_without_neighbors_is_met_head_on():
    rays, samples = lattice_of_rays(3, [1, 3])
    samples = replace(samples, t_starts=samples.t_starts.clone(), t_ends=samples.t_ends.clone())
    last = torch.arange(9 + 2, len(samples), 3)
    samples.t_starts[last] += 0.5
    samples.t_ends[last] += 0.5  # behind a gap
    at, directions = places(rays, samples)
    values = at[:, 0].clone().requires_grad_()
    found = PatchDifferences(samples, at, directions, 3)(values)
    alone = torch.cat([torch.arange(9), last])
    torch.testing.assert_close(found[alone], -directions[alone])
    rest = torch.ones(len(samples), dtype=torch.bool).index_fill(0, alone, False)
    torch.testing.assert_close(found[rest], torch.eye(3, dtype=F64)[:1].expand(int(rest.sum()), 3))
    (gradient,) = torch.autograd.grad(found.square().sum(), values)
    assert gradient.isfinite().all() and not gradient[alone].any()


def test_samples_keep_their_neighbors():
    index = torch.tensor([0, 0, 0, 0, 1, 1, 1]).int()
    samples = Samples(torch.zeros(7), torch.ones(7), index, torch.tensor([0, 4, 7]).int())
    find = lambda *kept: with_neighbors(torch.tensor(kept).int(), samples).tolist()  # noqa: E731
    assert find() == []
    assert find(1) == [0, 1, 2] and find(0) == [0, 1]
    assert find(3) == [2, 3], "not those of the next ray"
    assert find(4) == [4, 5] and find(6) == [5, 6] and find(2, 5) == [1, 2, 3, 4, 5, 6]
    none = Samples(torch.zeros(0), torch.zeros(0), index[:0], torch.zeros(3).int())
    assert with_neighbors(torch.zeros(0).int(), none).tolist() == []


@pytest.fixture(scope="module")
def scene():
    return open_scene("demo", downscale=4)


def test_batches_of_patches(scene):
    batches = PixelBatches(scene.train, near=0.1, rays=1000, patch=3, needed={"image_points", "depths"})
    rays, target, frames = batches.draw()
    assert len(rays) == 999 and target.colors.shape == (999, 3)
    size = scene.train[0].camera.width
    pixels = (rays.image_points.view(111, 3, 3, 2) * size).floor().long()
    assert (pixels >= 0).all() and (pixels < size).all()
    assert (pixels[:, :, 1:, 0] - pixels[:, :, :-1, 0] == 1).all() and (
        pixels[:, :, 1:, 1] == pixels[:, :, :-1, 1]
    ).all()
    assert (pixels[:, 1:, :, 1] - pixels[:, :-1, :, 1] == 1).all()
    numbers = frames.view(111, 9)
    assert (numbers == numbers[:, :1]).all() and len(numbers[:, 0].unique()) > 20
    x, y = pixels.view(-1, 2).unbind(-1)
    shown = torch.stack([scene.train[f].colors[b, a] for f, a, b in zip(frames, x, y, strict=True)])
    torch.testing.assert_close(target.colors, shown.float() / 255)
    with pytest.raises(ValueError, match="fit: photographs: expected 99 pixels a side at least, got 50"):
        PixelBatches(scene.train, near=0.1, patch=99)


class Ball:
    """An exact sphere of which gradients are asked for by a callable."""

    bounds, signed = Aabb.cube(), True
    asked = None

    def query(self, at, directions=None, *, gradients=False):
        values = at.norm(dim=-1) - 0.5
        slopes = gradients(values) if callable(gradients) else at / at.norm(dim=-1, keepdim=True)
        self.asked = (at, slopes) if callable(gradients) else self.asked
        return FieldOutput(values, slopes, None if directions is None else torch.full_like(at, 0.5))


def directional(name="neus", **changes):
    config = RECIPES[name]
    return replace(config, field=replace(config.field, gradients=Gradients.DIRECTIONAL), **changes)


def test_a_renderer_in_patches(scene):
    """Its gradients are nearly a sphere's, and what it says of the rays is nearly what marching each says."""
    config = directional(first=replace(RECIPES["neus"].first, grid_share=0.0))
    job = config.build(scene, 0, budget=Budget(steps=10))
    assert job.renderer.patch == job.batches.patch == 3
    renderer, ball = job.renderer, Ball()
    renderer.opacity.annealing.fill_(1.0)
    renderer.train()
    rays, _, _ = job.batches.draw()
    found = renderer.render(ball, rays)
    at, slopes = ball.asked
    cosines = (torch.nn.functional.normalize(slopes, dim=-1) * torch.nn.functional.normalize(at, dim=-1)).sum(-1)
    assert cosines.median() > 0.99
    marched = found.marched.positions(rays)
    torch.testing.assert_close(marched.norm(dim=-1) - 0.5, found.marched_values, atol=1e-5, rtol=0)
    assert int(found.marched.ray_offsets[-1]) == len(found.marched)
    renderer.eval()
    asked = ball.asked
    each = renderer.render(ball, rays)
    assert ball.asked is asked, "pictures are not drawn in patches"
    off = (each.pixels.alphas - found.pixels.alphas).abs()
    assert off.median() < 1e-3 and off.mean() < 0.05
    hit = (each.pixels.alphas > 0.99) & (found.pixels.alphas > 0.99)
    assert hit.any() and (each.pixels.depths - found.pixels.depths)[hit].abs().median() < 0.01


def by_finite_differences():
    config = RECIPES["neus"]
    return replace(
        config,
        field=replace(config.field, gradients=Gradients.FINITE),
        coarse_to_fine=CoarseToFineConfig(levels=2, until=0.5),
    )


@pytest.mark.parametrize("config", [directional(), by_finite_differences()], ids=["directional", "finite"])
def test_short_fits(config, scene):
    """Photographs and normals are learned; of differences, the step shrinks to the finest cells."""
    budget = Budget(steps=200)
    job = config.build(scene, 0, budget=budget)
    if hasattr(job.field, "difference"):
        assert float(job.field.difference) == pytest.approx(1 / job.field.encoding.resolutions[1])
    fit(job, budget, config.after_step())
    if hasattr(job.field, "difference"):
        assert float(job.field.difference) == pytest.approx(1 / job.field.encoding.resolutions[-1])
        assert job.parts["coarse_to_fine"].levels == len(job.field.encoding.resolutions)
    frame = scene.test[0]
    pixels = job.renderer.render(job.field, frame.camera, normals=True).pixels
    assert psnr(pixels.colors, frame.over(job.renderer.backdrop)) > 18
    seen = (pixels.alphas > 0.9) & (frame.alphas > 230)
    assert (pixels.normals * frame.normals).sum(-1)[seen].median() > 0.75


def test_differences_go_on_where_a_fit_stopped(scene):
    config = replace(by_finite_differences(), first=replace(RECIPES["neus"].first, grid_share=0.0))
    budget = Budget(steps=8)
    job = config.build(scene, 0, budget=budget)
    fit(job, budget, config.after_step(), stop=lambda: job.step >= 3)
    kept = {k: v.clone() for k, v in job.tensors().items()}
    again = config.build(scene, 1)
    again.restore(kept, job.metadata() | {"step": 3})
    assert torch.equal(again.field.difference, job.field.difference)
    assert again.parts["coarse_to_fine"].levels == job.parts["coarse_to_fine"].levels


def test_shapes_by_differences():
    facts = SceneFacts(1, 0.0, False, (), "shape")
    for field in shape.Kind:
        config = replace(shape.Config(), field=field)
        wrong = dict(
            distances=replace(config.distances, gradients=Gradients.DIRECTIONAL),
            unsigned=replace(config.unsigned, gradients=Gradients.DIRECTIONAL),
        )
        option = "--distances.gradients" if config.signed else "--unsigned.gradients"
        with pytest.raises(UserError, match=f"fit: {option}: expected analytic or finite, got directional"):
            replace(config, **wrong).build_model(facts)
        right = {k: replace(v, gradients=Gradients.FINITE) for k, v in wrong.items()}
        model, _ = replace(config, **right).build_model(facts)
        with torch.no_grad():
            found = model.query(torch.tensor([[0.6, 0.2, 0.1]]), gradients=True).gradients
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(1), atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", ["directional", "finite"])
def test_from_the_command_line(tmp_path, kind):
    options = ["--steps", "3", "--downscale", "8", "--samples-per-step", "1024", "--first.grid-share", "0"]
    run = tmp_path / "run"
    assert main(["fit", "neus", "demo", "--run", str(run), *options, "--field.gradients", kind]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "metrics.json").read_text())["psnr"] > 0
