import pytest
import torch
from polyfield.cuda.compositing import composite, prune, prune_packed
from polyfield.geometry.types import Samples

from tests.reference import composite as reference

COUNTS = [0, 1, 3, 0, 16, 17, 33, 8, 0, 100, 15, 2, 0]


def packed(counts, dtype=torch.float64, seed=0, channels=(3, 1, 5), low=0.0, high=0.6):
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    n = int(offsets[-1])
    alphas = torch.rand(n, generator=g, dtype=torch.float64) * (high - low) + low
    values = [torch.randn(n, c, generator=g, dtype=torch.float64) for c in channels]
    return alphas.to(dtype), [v.to(dtype) for v in values], offsets


def test_by_hand():
    alphas = torch.tensor([0.5, 0.5, 1.0, 0.7])
    offsets = torch.tensor([0, 0, 4, 4], dtype=torch.int32)
    weights, opacities, (out,) = composite(alphas, [torch.tensor([[1.0], [2.0], [4.0], [100.0]])], offsets)
    assert weights.tolist() == [0.5, 0.25, 0.25, 0.0]
    assert opacities.tolist() == [0, 1, 0] and out.tolist() == [[0], [2], [0]]


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.float32, 3e-6)])
@pytest.mark.parametrize("min_transmittance", [0.0, 0.03])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (3, 1), (2, 7, 32, 1, 3, 3)])
def test_matches_the_reference(channels, min_transmittance, dtype, atol):
    alphas, values, offsets = packed([*COUNTS, 1000], channels=channels, high=0.2)
    ours_in = [x.to(dtype, copy=True).requires_grad_() for x in (alphas, *values)]
    theirs_in = [x.clone().requires_grad_() for x in (alphas, *values)]
    ours = composite(ours_in[0], ours_in[1:], offsets, min_transmittance=min_transmittance)
    theirs = reference.composite(theirs_in[0], theirs_in[1:], offsets, min_transmittance)
    flat = lambda x: [x[0], x[1], *x[2]]  # noqa: E731
    g = torch.Generator().manual_seed(5)
    grads = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in flat(theirs)]
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        torch.testing.assert_close(a.double(), b, atol=atol * 5, rtol=0)
    torch.autograd.backward(flat(ours), [x.to(dtype) for x in grads])
    torch.autograd.backward(flat(theirs), grads)
    for a, b in zip(ours_in, theirs_in, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, atol=atol * 20, rtol=0)


@pytest.mark.parametrize("min_transmittance", [0.0, 0.05])
def test_gradcheck(min_transmittance):
    alphas, values, offsets = packed([0, 1, 17, 5, 0], high=0.4)
    inputs = [x.requires_grad_() for x in (alphas, *values)]

    def flat(a, *v):
        w, o, out = composite(a, v, offsets, min_transmittance=min_transmittance)
        return (w, o, *out)

    assert torch.autograd.gradcheck(flat, inputs)


def test_the_op_and_the_way_around_the_dispatcher_agree():
    alphas, values, offsets = packed(COUNTS, torch.float32)
    a, b = ([x.clone().requires_grad_() for x in (alphas, *values)] for _ in range(2))
    ours = composite(a[0], a[1:], offsets, min_transmittance=0.1)
    theirs = torch.ops.polyfield.composite(b[0], b[1:], offsets, 0.1)
    for out in (ours, theirs):
        (out[0].square().sum() + out[1].sum() + out[2][0].square().sum() + out[2][2].sum()).backward()
    assert torch.equal(ours[0], theirs[0]) and all(torch.equal(x, y) for x, y in zip(ours[2], theirs[2], strict=True))
    assert all(torch.equal(x.grad, y.grad) for x, y in zip([a[0], a[1], a[3]], [b[0], b[1], b[3]], strict=True))
    assert a[2].grad is None


def test_compiles_as_one_graph():
    alphas, values, offsets = packed(COUNTS, torch.float32)
    compiled = torch.compile(lambda a: composite(a, values, offsets)[2][0] * 2, backend="eager", fullgraph=True)
    assert torch.equal(compiled(alphas), composite(alphas, values, offsets)[2][0] * 2)


def test_gradcheck_at_opaque_and_transparent_samples():
    alphas, values, offsets = packed([20, 18], channels=(3,))
    alphas[[3, 7, 25]] = 1.0
    alphas[[0, 1, 2, 37]] = 0.0
    inputs = [alphas.requires_grad_(), values[0].requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, v: composite(a, [v], offsets)[2][0], inputs)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (3,), (0, 3)])
def test_gradients_of_some_outputs_only(used):
    alphas, values, offsets = packed(COUNTS, channels=(3, 1))
    pick = lambda x: [[x[0], x[1], *x[2]][i].square().sum() for i in used]  # noqa: E731
    ours = [x.clone().requires_grad_() for x in (alphas, *values)]
    theirs = [x.clone().requires_grad_() for x in (alphas, *values)]
    sum(pick(composite(ours[0], ours[1:], offsets))).backward()
    sum(pick(reference.composite(theirs[0], theirs[1:], offsets))).backward()
    for a, b in zip(ours, theirs, strict=True):
        want = torch.zeros_like(a) if b.grad is None else b.grad
        got = torch.zeros_like(a) if a.grad is None else a.grad
        torch.testing.assert_close(got, want)


def test_values_without_gradient_cost_none():
    alphas, values, offsets = packed(COUNTS, channels=(3, 1))
    alphas.requires_grad_()
    composite(alphas, values, offsets)[2][0].sum().backward()
    assert alphas.grad is not None and values[0].grad is None


def test_extreme_inputs():
    for counts in ([], [0], [0, 0, 0], [5000], [1] * 300):
        alphas, values, offsets = packed(counts, torch.float32)
        weights, opacities, outputs = composite(alphas, values, offsets)
        assert weights.shape == alphas.shape and opacities.shape == (len(counts),)
        assert torch.isfinite(weights).all() and (opacities <= 1 + 1e-5).all()
        assert all(o.shape == (len(counts), v.shape[1]) for o, v in zip(outputs, values, strict=True))
    # opaque and transparent rays, and values that overflow float32 behind an opaque sample's gradient
    for alpha in (0.0, 1.0, 1e-38, 1 - 6e-8):
        alphas, values, offsets = packed([40, 3], torch.float32, channels=(3,))
        alphas = torch.full_like(alphas, alpha).requires_grad_()
        values[0].requires_grad_()
        weights, opacities, outputs = composite(alphas, values, offsets)
        (weights.sum() + opacities.sum() + outputs[0].sum()).backward()
        assert torch.isfinite(alphas.grad).all() and torch.isfinite(values[0].grad).all()


def test_neighbouring_rays_do_not_leak():
    alphas, values, offsets = packed([5, 7, 16], torch.float32, channels=(3, 1, 2))
    for v in values:
        v[5:12] = float("nan")
    _, opacities, outputs = composite(alphas, values, offsets)
    assert torch.isfinite(opacities).all()
    assert all(torch.isfinite(o).all(-1).tolist() == [True, False, True] for o in outputs)


def test_same_for_any_thread_count():
    alphas, values, offsets = packed(COUNTS * 40, torch.float32)
    first = composite(alphas, values, offsets)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        again = composite(alphas, values, offsets)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first[0], again[0]) and torch.equal(first[2][0], again[2][0])


@pytest.mark.parametrize("min_transmittance, min_alpha", [(0.0, 0.0), (0.05, 0.0), (1e-4, 0.1), (0.5, 0.9), (0.0, 2.0)])
def test_prune_matches_the_reference(min_transmittance, min_alpha):
    alphas, _, offsets = packed([*COUNTS, 300], torch.float32)
    alphas[7] = 1.0
    n = len(alphas)
    rays = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff()).int()
    samples = Samples(torch.arange(n) * 1.0, torch.arange(n) * 1.0 + 0.5, rays, offsets)
    kept, new = reference.prune(alphas, offsets, min_transmittance, min_alpha)
    got = prune(alphas, samples, min_transmittance=min_transmittance, min_alpha=min_alpha)
    assert isinstance(got, Samples) and torch.equal(got.ray_offsets, new)
    kept_long = kept.long()
    assert torch.equal(got.t_starts, samples.t_starts[kept_long]) and torch.equal(got.t_ends, samples.t_ends[kept_long])
    assert torch.equal(got.ray_indices, rays[kept_long])
    packed_again = prune_packed(
        alphas, samples.t_starts, samples.t_ends, offsets, min_transmittance=min_transmittance, min_alpha=min_alpha
    )
    assert torch.equal(packed_again[0], kept)


def test_prune_nothing_and_no_rays():
    empty, none = torch.zeros(0), torch.zeros(0, dtype=torch.int32)
    got = prune(empty, Samples(empty, empty, none, torch.zeros(1, dtype=torch.int32)))
    assert len(got) == 0 and got.ray_offsets.tolist() == [0]
    got = prune(empty, Samples(empty, empty, none, torch.zeros(6, dtype=torch.int32)))
    assert len(got) == 0 and got.ray_offsets.tolist() == [0] * 6


def test_opcheck():
    alphas, values, offsets = packed([3, 0, 20], torch.float32)
    inputs = [x.requires_grad_() for x in (alphas, *values)]
    torch.library.opcheck(torch.ops.polyfield.composite.default, (inputs[0], inputs[1:], offsets, 0.01))
    t = torch.arange(23.0)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (alphas.detach(), t, t + 1, offsets, 1e-4, 0.1)
    torch.library.opcheck(torch.ops.polyfield.prune.default, arguments, test_utils=utils)


def test_errors():
    alphas, values, offsets = packed([3, 4], torch.float32)
    with pytest.raises(ValueError, match=r"composite: alphas: expected shape \(\*\), got \(7, 1\)"):
        composite(alphas[:, None], values, offsets)
    with pytest.raises(ValueError, match=r"composite: values\[1\]: expected shape \(7, \*\), got \(6, 1\)"):
        composite(alphas, [values[0], values[1][:6]], offsets)
    with pytest.raises(TypeError, match=r"composite: values\[0\]: expected float32, got float64"):
        composite(alphas, [values[0].double()], offsets)
    with pytest.raises(TypeError, match="composite: ray_offsets: expected int32, got int64"):
        composite(alphas, values, offsets.long())
    with pytest.raises(ValueError, match="ray_offsets: expected to end at the number of samples, 7, got 3"):
        composite(alphas, values, offsets[:2])
    with pytest.raises(ValueError, match=r"len\(ray_offsets\): expected a number from 1"):
        composite(alphas, values, offsets[:0])
    with pytest.raises(ValueError, match=r"len\(values\): expected a number from 0 to 8, got 9"):
        composite(alphas, values * 3, offsets)
    with pytest.raises(ValueError, match="min_transmittance: expected a number from 0 to 1, got 2"):
        composite(alphas, values, offsets, min_transmittance=2)
    with pytest.raises(TypeError, match="prune: alphas: expected float32, got float64"):
        prune_packed(alphas.double(), alphas, alphas, offsets)
    with pytest.raises(ValueError, match=r"prune: t_ends: expected shape \(7\)"):
        prune_packed(alphas, alphas, alphas[:3], offsets)
    with pytest.raises(ValueError, match="prune: ray_offsets: expected to end at"):
        prune_packed(alphas, alphas, alphas, offsets[:2])
