"""Derivatives that distances need, against autograd's double backward: of networks and of the hash encoding."""

import pytest
import torch
from polyfield.cuda.hash_encoding import HashLayout, hash_encode, hash_encode_with_gradient
from polyfield.cuda.hash_slopes import hash_slopes
from polyfield.cuda.mlp import mlp
from polyfield.cuda.mlp_slopes import _layer_by_layer, mlp_with_slopes

from tests.reference import hash_encode as reference
from tests.reference import mlp as reference_mlp


def network(sizes, biased, dtype=torch.float64, samples=300, seed=0):
    g = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    weights = [(random(o, i) / i**0.5).requires_grad_() for i, o in zip(sizes[:-1], sizes[1:], strict=True)]
    biases = [(0.3 * random(o)).requires_grad_() for o in sizes[1:]] if biased else None
    return random(samples, sizes[0]).requires_grad_(), weights, biases


NETS = [
    ((35, 64, 16), True),
    ((32, 64, 16), False),
    ((19, 16, 128, 48, 1), True),
    ((5, 7), True),
    ((3, 32, 32, 32, 32, 2), False),
]


@pytest.mark.parametrize(("sizes", "biased"), NETS)
def test_networks_with_slopes(sizes, biased):
    """Outputs, slopes, and the gradients of a function of both."""
    x, weights, biases = network(sizes, biased)
    outputs, slopes = mlp_with_slopes(x, weights, biases)
    wanted = reference_mlp.mlp(x, weights, biases)
    (wanted_slopes,) = torch.autograd.grad(wanted[:, 0].sum(), x, create_graph=True)
    torch.testing.assert_close(outputs, wanted)
    torch.testing.assert_close(slopes, wanted_slopes)
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(t.shape, generator=g, dtype=torch.float64) for t in (outputs, slopes))
    leaves = [x, *weights, *(biases or ())]
    loss = lambda y, s: (y * a).sum() + (s * b).sum() + s.norm(dim=1).sub(1).square().sum()  # noqa: E731
    ours = torch.autograd.grad(loss(outputs, slopes), leaves)
    theirs = torch.autograd.grad(loss(wanted, wanted_slopes), leaves, allow_unused=True)
    for mine, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, true)
    for mine, composed in zip((outputs, slopes), _layer_by_layer(x, weights, biases or [None] * 5), strict=True):
        torch.testing.assert_close(mine, composed)


@pytest.mark.parametrize("samples", [0, 1, 23, 24, 193, 1000])
def test_any_number_of_samples(samples):
    x, weights, biases = network((35, 64, 16), True, torch.float32, samples)
    outputs, slopes = mlp_with_slopes(x, weights, biases)
    torch.testing.assert_close(outputs, mlp(x, weights, biases))
    slopes.sum().backward()
    assert all(w.grad.isfinite().all() for w in weights) and (x.grad is None or not x.grad.any())
    if samples:
        doubled = [t.detach().double().requires_grad_() for t in (x, *weights, *biases)]
        found = reference_mlp.mlp(doubled[0], doubled[1:3], doubled[3:])
        (true,) = torch.autograd.grad(found[:, 0].sum(), doubled[0], create_graph=True)
        torch.testing.assert_close(slopes.double(), true, rtol=1e-4, atol=1e-5)
        for weight, wanted in zip(weights, torch.autograd.grad(true.sum(), doubled[1:3]), strict=True):
            torch.testing.assert_close(weight.grad.double(), wanted, rtol=1e-3, atol=1e-4)


def test_two_runs_of_networks_agree_to_the_bit():
    x, weights, biases = network((35, 64, 64, 16), True, torch.float32, 5000)
    runs = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        outputs, slopes = mlp_with_slopes(x, weights, biases)
        runs.append([slopes, *torch.autograd.grad(outputs.square().sum() + slopes.square().sum(), weights)])
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def grid(dtype, features=2, dimensions=3, samples=200, seed=0):
    layout = HashLayout.build(4, features, 9, 4, 60, dimensions)
    g = torch.Generator().manual_seed(seed)
    table = (torch.rand(layout.entries, features, generator=g, dtype=torch.float64) - 0.5).to(dtype)
    spread = torch.rand(samples, dimensions, generator=g, dtype=torch.float64) * 1.2 - 0.1  # some outside
    ray = torch.linspace(0, 0.2, samples, dtype=torch.float64)[:, None] + torch.tensor([0.31, 0.42, 0.53])[:dimensions]
    points = torch.cat([spread, ray]).to(dtype)
    slopes = torch.randn(len(points), layout.out_channels, generator=g, dtype=torch.float64).to(dtype)
    return layout, table.requires_grad_(), points, slopes.requires_grad_()


@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_slopes_of_the_encoding(features, dimensions):
    layout, table, points, slopes = grid(torch.float64, features, dimensions)
    found = hash_slopes(points, slopes, table, layout)
    at = points.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((reference.hash_encode(at, table, layout) * slopes).sum(), at, create_graph=True)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * upstream).sum(), [slopes, table]) for x in (found, wanted))
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


def test_the_same_as_by_the_jacobian():
    layout, table, points, slopes = grid(torch.float32, 4)
    _, jacobian = hash_encode_with_gradient(points, table, layout)
    found, wanted = hash_slopes(points, slopes, table, layout), torch.einsum("nc,ncd->nd", slopes, jacobian)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    ours, theirs = (torch.autograd.grad(x.square().sum(), [slopes, table], retain_graph=True) for x in (found, wanted))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-2)


def test_gradients_into_a_buffer_and_from_a_half_table():
    layout, table, points, slopes = grid(torch.float32)
    half = table.detach().bfloat16()
    buffer = torch.zeros_like(table)
    found = hash_slopes(points, slopes, table, layout, half=half, table_grad=buffer)
    features = hash_encode(points, table, layout, half=half, table_grad=buffer)
    (found.sum() + features.sum()).backward()
    assert table.grad is None and buffer.any()
    widened = half.float().requires_grad_()
    same = hash_slopes(points, slopes, widened, layout)
    torch.testing.assert_close(found, same)
    (same.sum() + hash_encode(points, widened, layout).sum()).backward()
    torch.testing.assert_close(buffer, widened.grad, rtol=1e-5, atol=1e-4)


def test_empty_nan_and_outside():
    layout, table, points, slopes = grid(torch.float32)
    assert hash_slopes(points[:0], slopes[:0], table, layout).shape == (0, 3)
    points = torch.tensor([[2.0, -1.0, 0.5], [float("nan"), 0.5, 0.5]])
    found = hash_slopes(points, slopes[:2], table, layout)
    assert found[0, :2].tolist() == [0, 0] and float(found[0, 2].detach()) != 0
    assert float(found[1, 0].detach()) == 0
    hash_slopes(points[:1], slopes[:1], table, layout).sum().backward()
    assert table.grad.isfinite().all() and table.grad.any()


def test_operators_are_what_torch_expects():
    layout, table, points, slopes = grid(torch.float64)
    ops = torch.ops.polyfield
    torch.library.opcheck(ops.hash_slopes.default, (points, slopes, table, None, None, layout._numbers))
    x, weights, biases = network((5, 16, 3), True, samples=30)
    torch.library.opcheck(ops.mlp_slopes.default, (x, weights, biases))


def test_errors():
    layout, table, points, slopes = grid(torch.float32)
    with pytest.raises(ValueError, match=r"hash_slopes: slopes: expected shape \(400, 8\), got \(400, 7\)"):
        hash_slopes(points, slopes[:, :7], table, layout)
    with pytest.raises(TypeError, match="hash_slopes: slopes: expected float32, got float64"):
        hash_slopes(points, slopes.double(), table, layout)
    with pytest.raises(ValueError, match="hash_slopes: points: expected no gradient asked for, got such; use hash_enc"):
        hash_slopes(points.requires_grad_(), slopes, table, layout)
