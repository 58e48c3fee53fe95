"""Importance resampling: where intervals are cut, what stays as it was, and how much nearer depths are to the truth."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.fit import Budget, fit
from polyfield.apps.recipes import neus, volsdf
from polyfield.apps.run import open_run
from polyfield.datasets.scene import open_scene
from polyfield.fields.gradient_kinds import Gradients
from polyfield.fields.protocols import FieldOutput
from polyfield.geometry import Aabb, Rays, Samples
from polyfield.geometry.occupancy import OccupancyGrid
from polyfield.renderers.background import FixedBackground
from polyfield.renderers.opacity import Neus, Unsigned, Volsdf
from polyfield.renderers.resampling import Resampling, cut_by_weights, spread_weights
from polyfield.renderers.volume import MarchConfig, VolumeRenderer

from tests.fake_gpu import DEVICE, Far, fake_gpu
from tests.reference import resampling as reference

from .test_surface_fit import RECIPES

COUNTS = (5, 0, 1, 7, 4, 3)  # intervals of the rays; the third last meets nothing


def packed(dtype=torch.float32):
    """Intervals with gaps between some of them, and weights, a few of them zero."""
    random = torch.Generator().manual_seed(4)
    edges = torch.rand(2 * sum(COUNTS), generator=random).cumsum(0).view(-1, 2)
    edges[3:5, 1] = edges[4:6, 0]  # no gap
    weights = torch.rand(len(edges), generator=random) / 4
    weights[[0, 8, 12]] = 0.0
    weights[13:17] = 1e-4
    counts = torch.tensor(COUNTS)
    offsets = torch.cat([torch.zeros(1), counts.cumsum(0)]).int()
    owners = torch.arange(len(counts)).repeat_interleave(counts).int()
    return Samples(edges[:, 0].contiguous(), edges[:, 1].contiguous(), owners, offsets), weights.to(dtype)


def by_ray(samples, *more):
    for low, high in zip(samples.ray_offsets[:-1], samples.ray_offsets[1:], strict=True):
        part = slice(int(low), int(high))
        edges = list(zip(samples.t_starts[part].tolist(), samples.t_ends[part].tolist(), strict=True))
        yield (edges, *(x[part].double().numpy() for x in more))


def test_weights_are_spread_within_rays():
    samples, weights = packed(torch.float64)
    found = spread_weights(weights, samples)
    wanted = [reference.spread(w) for _, w in by_ray(samples, weights) if len(w)]
    np.testing.assert_allclose(found.numpy(), np.concatenate(wanted), atol=1e-12)
    assert spread_weights(weights[:0], samples).shape == (0,)


@pytest.mark.parametrize("count", [1, 4, 33])
@pytest.mark.parametrize("seed", [None, 3])
def test_intervals_are_cut_where_the_weights_say(count, seed):
    samples, weights = packed()
    random = None if seed is None else torch.Generator().manual_seed(seed)
    finer, parents, pieces = cut_by_weights(samples, weights, count, random)
    hit = [len(w) > 0 and w.sum() >= 1e-2 for _, w in by_ray(samples, weights)]
    assert hit == [True, False, True, True, False, True]
    shares = np.full((sum(hit), count), 0.5)
    if seed is not None:
        random = torch.Generator().manual_seed(seed)
        shares = torch.rand(sum(hit), count, generator=random, dtype=torch.float64).numpy()
    shares, row, wanted = (np.arange(count) + shares) / count, 0, []
    for (edges, w), met in zip(by_ray(samples, weights), hit, strict=True):
        wanted.append(reference.cut(edges, reference.places(edges, w, shares[row]) if met else []))
        row += met
    assert finer.ray_offsets.dtype == finer.ray_indices.dtype == torch.int32
    assert finer.ray_offsets.tolist() == np.cumsum([0, *map(len, wanted)]).tolist()
    for (edges,), ray in zip(by_ray(finer), wanted, strict=True):
        np.testing.assert_allclose(np.array(edges).reshape(-1, 2), np.array(ray).reshape(-1, 2), atol=2e-6)
    assert torch.equal(finer.ray_indices, samples.ray_indices[parents])
    assert (finer.t_starts >= samples.t_starts[parents]).all() and (finer.t_ends <= samples.t_ends[parents]).all()
    assert torch.equal(pieces, (torch.bincount(parents)[parents] > 1).nonzero()[:, 0])
    length = torch.zeros(len(samples)).index_add_(0, parents, finer.t_ends - finer.t_starts)
    torch.testing.assert_close(length, samples.t_ends - samples.t_starts, atol=1e-5, rtol=0)


def test_nothing_to_cut():
    """No rays, rays without intervals, and weights of nothing."""
    for rays in (0, 3):
        none = Samples(torch.zeros(0), torch.zeros(0), torch.zeros(0).int(), torch.zeros(rays + 1).int())
        finer, parents, pieces = cut_by_weights(none, torch.zeros(0), 4)
        assert len(finer) == len(parents) == len(pieces) == 0 and len(finer.ray_offsets) == rays + 1
    samples, weights = packed()
    finer, parents, pieces = cut_by_weights(samples, 0 * weights, 4)
    assert torch.equal(finer.t_starts, samples.t_starts) and torch.equal(finer.ray_offsets, samples.ray_offsets)
    assert torch.equal(parents, torch.arange(len(samples))) and len(pieces) == 0


def test_many_rays_lose_no_precision():
    """Sums over 2^17 rays: each is cut as if it were alone."""
    rays = 1 << 17
    starts = torch.arange(4.0).repeat(rays)
    owners = torch.arange(rays).repeat_interleave(4).int()
    samples = Samples(starts, starts + 1, owners, torch.arange(0, 4 * rays + 1, 4).int())
    finer, _, _ = cut_by_weights(samples, torch.tensor([0.0, 0.1, 0.3, 0.0]).repeat(rays), 4)
    wanted = torch.tensor([0.0, 1.0, 1.5, 2.0 + 1 / 6, 2.5, 2.0 + 5 / 6, 2.0, 3.0]).sort().values
    torch.testing.assert_close(finer.t_starts.view(rays, 8), wanted.expand(rays, 8), atol=1e-6, rtol=0)


def test_refusals():
    samples, weights = packed()
    with pytest.raises(ValueError, match=r"^Resampling: count: expected at least 1, got 0; leave resampling out"):
        Resampling(0)
    with pytest.raises(ValueError, match=r"^cut_by_weights: weights: expected"):
        cut_by_weights(samples, weights[1:], 2)


class Sphere:
    """A distance, known everywhere; ``asked`` counts points."""

    def __init__(self, signed=True):
        self.bounds, self.signed, self.asked = Aabb.cube(), signed, 0

    def query(self, points, directions=None, *, gradients=False):
        self.asked += len(points)
        values = points.norm(dim=-1) - 0.5
        slopes = points / points.norm(dim=-1, keepdim=True)
        if not self.signed:
            values, slopes = values.abs(), slopes * values.sign()[:, None]
        return FieldOutput(values, slopes if gradients else None, None if directions is None else (points + 1) / 2)


def renderer_of(law, steps, resampling=None):
    black = FixedBackground((0.0, 0.0, 0.0))
    made = VolumeRenderer(OccupancyGrid(16), law, black, MarchConfig(steps_per_diagonal=steps))
    made.resampling = resampling
    if hasattr(law, "annealing"):
        law.annealing.fill_(1.0)
    return made.eval()


def rays_beside(offsets):
    n = len(offsets)
    origins = torch.stack([torch.full((n,), -2.0), offsets, torch.zeros(n)], 1)
    return Rays(origins, torch.tensor([[1.0, 0.0, 0.0]]).repeat(n, 1), torch.zeros(n), torch.full((n,), math.inf))


@pytest.mark.parametrize(
    ("law", "signed"), [(lambda: Neus(3000.0), True), (lambda: Volsdf(3e-4), True), (lambda: Unsigned(3000.0), False)]
)
def test_depths_are_nearer_to_the_truth(law, signed):
    """A surface far thinner than intervals are long: finer ones see where it is, for a fifth of the field's samples."""
    offsets = torch.linspace(0, 0.4, 200)
    truth = 2 - (0.25 - offsets.square()).sqrt()
    errors, asked = {}, {}
    for name, steps, resampling in (("coarse", 128, None), ("finer", 128, Resampling(16)), ("all", 2048, None)):
        sphere = Sphere(signed)
        with torch.no_grad():
            pixels = renderer_of(law(), steps, resampling).render(sphere, rays_beside(offsets)).pixels
        assert pixels.alphas.min() > 0.98
        errors[name], asked[name] = float((pixels.depths - truth).abs().mean()), sphere.asked
    assert errors["finer"] < 0.25 * errors["coarse"]
    assert asked["finer"] < 0.2 * asked["all"]


def test_places_are_random_while_fitting_alone():
    torch.manual_seed(0)
    rays, sphere = rays_beside(torch.linspace(0, 0.4, 20)), Sphere()
    made = renderer_of(Neus(100.0), 256, Resampling(8))
    first, second = (made.render(sphere, rays).samples.t_starts for _ in range(2))
    assert torch.equal(first, second)
    made.train()
    counted = made.render(sphere, rays)
    assert not torch.equal(counted.samples.t_starts, made.render(sphere, rays).samples.t_starts)
    with torch.no_grad():
        values = sphere.query(counted.marched.positions(rays)).values
    torch.testing.assert_close(counted.marched_values, values, msg="those of the intervals that are left")


def test_on_another_device():
    """The same intervals; the CPU waits for a GPU twice."""
    samples, weights = packed()
    wanted = cut_by_weights(samples, weights, 5)
    with fake_gpu() as waits:
        far, weights = samples.to(DEVICE), weights.to(DEVICE)
        waits.clear()
        found = cut_by_weights(far, weights, 5, torch.Generator(DEVICE).manual_seed(0))
        assert len(waits) == 2, waits
        found = cut_by_weights(far, weights, 5)
        assert all(isinstance(t, Far) for t in (found[0].t_starts, found[1], found[2]))
        assert torch.equal(found[0].t_starts.near, wanted[0].t_starts) and torch.equal(found[2].near, wanted[2])


@pytest.fixture(scope="module")
def scene():
    return open_scene("demo", downscale=8)


@pytest.mark.parametrize("gradients", [Gradients.ANALYTIC, Gradients.DIRECTIONAL])
@pytest.mark.parametrize("name", ["neus", "volsdf"])
def test_a_fit_resumes_to_the_bit(scene, name, gradients):
    config = RECIPES[name]
    field = replace(config.field, gradients=gradients)
    config = replace(config, field=field, resample=8, first=replace(config.first, grid_share=0.0))
    budget = Budget(steps=6)
    straight = config.build(scene, 1, budget=budget)
    fit(straight, budget, config.after_step())
    first = config.build(scene, 1, budget=budget)
    fit(first, budget, config.after_step(), stop=lambda: first.step >= 3)
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second = config.build(scene, 2)
    second.restore(tensors, {"step": first.step, **first.metadata()})
    fit(second, budget, config.after_step())
    wanted, found = straight.tensors(), second.tensors()
    for key in wanted:
        assert torch.equal(wanted[key], found[key]), key
    plain = replace(config, resample=0).build(scene, 1, budget=budget)
    fit(plain, budget, config.after_step())
    assert not torch.equal(plain.field.encoding.table, straight.field.encoding.table)


def test_from_the_command_line(tmp_path, capsys):
    options = ["--steps", "3", "--downscale", "8", "--samples-per-step", "1024", "--first.grid-share", "0"]
    options += ["--device", "cpu", "--run", str(tmp_path / "run")]
    assert main(["fit", "volsdf", "demo", *options, "--resample", "-1"]) == 2
    assert "fit: --resample: expected at least 0, got -1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["fit", "volsdf", "demo", *options, "--resample", "4"]) == 0
    assert open_run(tmp_path / "run", "cpu").renderer.resampling.count == 4
    assert neus.Config().resample == volsdf.Config().resample == 0
