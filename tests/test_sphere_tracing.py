"""The march itself: what rays meet, what they miss, and how they cope with distances that are none."""

import math

import pytest
import torch
from polyfield.cuda.sphere_tracing import sphere_trace
from torch.nn.functional import normalize

from tests.reference import sphere_trace as reference


def rays(count, dtype=torch.float64, seed=0):
    """From a sphere of radius 3, roughly towards the middle."""
    g = torch.Generator().manual_seed(seed)
    origins = 3 * normalize(torch.randn(count, 3, generator=g, dtype=torch.float64), dim=1)
    directions = normalize(0.6 * torch.randn(count, 3, generator=g, dtype=torch.float64) - origins, dim=1)
    near = torch.rand(count, generator=g, dtype=torch.float64)
    return [x.to(dtype) for x in (origins, directions, near, near + 5)]


def ball(points):
    return points.norm(dim=1) - 1


def blobs(points):
    """Two balls joined smoothly, hollowed by waves: up to 1.6 times as steep as a distance, and half as steep."""
    a = (points - points.new_tensor([0.4, 0, 0])).norm(dim=1) - 0.7
    b = (points + points.new_tensor([0.5, 0.2, 0])).norm(dim=1) - 0.5
    return -(torch.exp(-8 * a) + torch.exp(-8 * b)).log() / 8 + 0.04 * (12 * points).sin().prod(1)


def steep(points):
    """Four times the distance."""
    return 4 * ball(points)


def first_crossing(function, o, d, near, far, pieces=20_000):
    """By brute force."""
    t = near[:, None] + (far - near)[:, None] * torch.linspace(0, 1, pieces, dtype=o.dtype)
    inside = torch.stack([function(o + x[:, None] * d) <= 0 for x in t.unbind(1)], 1)
    first = inside.int().argmax(1)
    return torch.where(inside.any(1), t.gather(1, first[:, None])[:, 0], math.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relaxation", [1.0, 1.2, 1.9])
@pytest.mark.parametrize("function", [ball, blobs, steep])
def test_matches_the_reference(function, relaxation, dtype):
    o, d, near, far = rays(70, dtype)
    opened = torch.full_like(near, math.inf)
    options = dict(tolerance=1e-4, relaxation=relaxation, max_steps=100)
    found = sphere_trace(function, o, d, near, far, openness=opened, **options)
    wanted, free = reference.sphere_trace(function, o.double(), d.double(), near.double(), far.double(), **options)
    assert torch.equal(found.cpu().isfinite(), wanted.isfinite())
    tight = dict(atol=1e-12, rtol=0) if dtype == torch.float64 else dict(atol=3e-4, rtol=0)
    torch.testing.assert_close(found.cpu().double(), wanted, **tight)
    torch.testing.assert_close(opened.cpu().double(), free, **tight)


def test_a_ball_by_hand():
    o = torch.tensor([[-3.0, 0, 0], [-3, 0.6, 0], [-3, 2, 0], [-3, 0, 0], [-3, 0, 0], [0, 0, 0.5]])
    d = torch.tensor([1.0, 0, 0]).repeat(6, 1)
    near = torch.tensor([0.0, 0, 0, 2.5, 0, 0])
    far = torch.tensor([9.0, 9, 9, 9, 1.5, 9])
    found = sphere_trace(ball, o, d, near, far, tolerance=1e-6)
    wanted = torch.tensor([2, 2.2, math.inf, 2.5, math.inf, 0])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert found[3] == 2.5 and found[5] == 0, "a ray that begins inside meets the surface there"


SIGN = [ball, blobs, steep, lambda p: ball(p) / 5, lambda p: ball(p).sign() / 4]


@pytest.mark.parametrize("function", SIGN)
def test_the_first_crossing_is_found(function):
    """Too steep, too flat, not smooth, or a mere inside test: where there is a sign, the crossing is met."""
    o, d, near, far = rays(200)
    found = sphere_trace(function, o, d, near, far, tolerance=1e-6, steepness=4.0 if function is steep else 1.0)
    wanted = first_crossing(function, o, d, near, far)
    agree = ((found - wanted).abs() < 1e-3) | (found == wanted)
    least = 0.9 if function is SIGN[-1] else 0.98  # steps of a quarter pass what is thinner
    assert agree.float().mean() > least


def test_over_relaxation_asks_less_along_a_surface():
    """Down to a floor, from one unit above it, at slopes from one tenth to one half."""
    slopes = torch.linspace(0.1, 0.5, 50)
    d = normalize(torch.stack([torch.ones(50), 0 * slopes, -slopes], 1), dim=1)
    o, near = torch.tensor([0.0, 0, 1]).repeat(50, 1), torch.zeros(50)

    def asked(relaxation):
        calls = []
        options = dict(relaxation=relaxation, tolerance=1e-5)
        found = sphere_trace(lambda p: calls.append(len(p)) or p[:, 2], o, d, near, near + 20, **options)
        torch.testing.assert_close(found, -1 / d[:, 2], atol=1e-3, rtol=0)
        return sum(calls)

    assert asked(1.5) < 0.8 * asked(1.0)


def test_thin_walls_are_not_passed():
    """A shell of a hundredth: over-relaxed steps that jump over it are taken back."""
    o, d, near, far = rays(400)
    found = sphere_trace(lambda p: ball(p).abs() - 0.005, o, d, near, far, relaxation=1.8, tolerance=1e-7)
    wanted = sphere_trace(lambda p: p.norm(dim=1) - 1.005, o, d, near, far, relaxation=1.0, tolerance=1e-7)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_openness_is_the_free_cone():
    """Beside a ball: the tangent to it, by hand."""
    o, d = torch.tensor([[0.0, 2, 0]]).double(), torch.tensor([[1.0, 0, 0]]).double()
    opened = torch.full((1,), math.inf).double()
    near = torch.zeros(1).double()
    function = lambda p: (p - torch.tensor([2.0, 0, 0]).double()).norm(dim=1) - 1  # noqa: E731
    sphere_trace(function, o, d, near, near + 10, relaxation=1.0, openness=opened)
    t = torch.linspace(0.01, 10, 100_000).double()
    exact = float((((t - 2) ** 2 + 4).sqrt() - 1).div(t).min())
    assert exact <= float(opened) < 1.1 * exact


def test_extremes():
    o, d, near, far = rays(40, torch.float32)
    options = dict(max_steps=50)
    assert sphere_trace(lambda p: p[:, 0] * math.nan, o, d, near, far, **options).isinf().all()
    assert sphere_trace(lambda p: torch.full_like(p[:, 0], math.inf), o, d, near, far, **options).isinf().all()
    assert torch.equal(sphere_trace(lambda p: torch.full_like(p[:, 0], -math.inf), o, d, near, far, **options), near)
    assert torch.equal(sphere_trace(lambda p: 0 * p[:, 0], o, d, near, far, **options), near)
    assert sphere_trace(lambda p: 0 * p[:, 0] + 1e-3, o, d, near, far, **options).isinf().all(), "steps run out"
    assert sphere_trace(ball, o, d, near, near, **options).isinf().all(), "empty rays"
    assert sphere_trace(ball, o[:0], d[:0], near[:0], far[:0]).shape == (0,)
    assert sphere_trace(ball, o[:1], d[:1], near[:1], far[:1] * math.inf).shape == (1,)


def test_opcheck():
    from polyfield.cuda import sphere_tracing as ops

    o, d, near, far = rays(9, torch.float32)
    index = torch.arange(9, dtype=torch.int32)
    state = torch.zeros(ops.ROWS, 9)
    state[ops.LOW_F], state[ops.STEEP] = -1, 1
    depths, opened, points = torch.full((9,), math.inf), torch.full((9,), math.inf), o.clone()
    args = (ball(o), index, o, d, near, far, 1e-4, 1.2, state, points, depths, opened)
    torch.library.opcheck(torch.ops.polyfield.sphere_trace_step.default, args)
    state[ops.PHASE, ::2] = ops.HIT
    places = (state[ops.PHASE] < ops.HIT).cumsum(0, dtype=torch.int32)
    torch.library.opcheck(torch.ops.polyfield.sphere_trace_keep.default, (places, index, state, points, 4))
    kept, rows, at = ops.sphere_trace_keep(index, state, points)
    assert kept.tolist() == [1, 3, 5, 7] and torch.equal(rows, state[:, 1::2]) and torch.equal(at, points[1::2])


def test_errors():
    o, d, near, far = rays(3, torch.float32)
    with pytest.raises(ValueError, match=r"sphere_trace: near: expected shape \(3\), got \(2,\)"):
        sphere_trace(ball, o, d, near[:2], far)
    with pytest.raises(TypeError, match="sphere_trace: far: expected float32, got float64"):
        sphere_trace(ball, o, d, near, far.double())
    with pytest.raises(ValueError, match="sphere_trace: tolerance: expected a positive length, got 0"):
        sphere_trace(ball, o, d, near, far, tolerance=0)
    with pytest.raises(ValueError, match=r"sphere_trace: relaxation: expected a number from 1 to 2, got 0\.5"):
        sphere_trace(ball, o, d, near, far, relaxation=0.5)
    with pytest.raises(ValueError, match=r"sphere_trace: function: values: expected shape \(3\), got \(3, 1\)"):
        sphere_trace(lambda p: p[:, :1], o, d, near, far)
