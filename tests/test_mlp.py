import itertools

import pytest
import torch
from polyfield.cuda import mlp as module
from polyfield.cuda.mlp import mlp

from tests.reference import mlp as reference

NETS = [
    (32, 64, 16),
    (32, 64, 64, 3),
    (5, 3),
    (1, 16, 1),
    (7, 16, 32, 48, 128, 5),
    (256, 80, 96, 112, 128, 128),
    (33, 112, 17),
]


def case(dims, n, dtype=torch.float64, bias=True, requires_grad=True):
    """inputs, weights, biases or None, gradient of the output; float32 ones are exact in float32."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape, scale=1.0):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).float().to(dtype)

    inputs = draw(n, dims[0]).requires_grad_(requires_grad)
    sizes = list(itertools.pairwise(dims))
    weights = [draw(o, i, scale=i**-0.5).requires_grad_(requires_grad) for i, o in sizes]
    biases = [draw(o).requires_grad_(requires_grad) for _, o in sizes] if bias else None
    return inputs, weights, biases, draw(n, dims[-1])


def results(op, inputs, weights, biases, grad, **options):
    """Output and all gradients."""
    outputs = op(inputs, weights, biases, **options)
    leaves = [inputs, *weights, *(biases or [])]
    return [outputs.detach(), *torch.autograd.grad(outputs, leaves, grad.to(outputs.dtype))]


def as_double(inputs, weights, biases, grad):
    def double(t):
        return t.detach().double().requires_grad_()

    return double(inputs), [double(w) for w in weights], biases and [double(b) for b in biases], grad.double()


def assert_near(got, expected, tolerance):
    """Relative to the size of each tensor: its entries are sums of many terms of both signs."""
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.isfinite().all()
        scale = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b.double(), atol=tolerance * max(1.0, scale), rtol=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", NETS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 5, 6, 7, 1000])
def test_matches_torch(n, dims, bias):
    exact = case(dims, n, bias=bias)
    expected = results(reference.mlp, *exact)
    assert_near(results(mlp, *exact), expected, 1e-10)
    assert_near(results(mlp, *case(dims, n, torch.float32, bias)), expected, 1e-5)


@pytest.mark.parametrize("width", range(16, 129, 16))
def test_all_hidden_widths(width):
    dims = (20, width, 144 - width, 4)
    assert_near(results(mlp, *case(dims, 203, torch.float32)), results(reference.mlp, *case(dims, 203)), 1e-5)
    case32 = case(dims, 203, torch.float32)
    assert_near(results(mlp, *case32, bfloat16=True), results(reference.mlp, *case32, bfloat16=True), 0.01)


@pytest.mark.parametrize("c_out", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n", [1, 3, 4, 8, 13, 500])
def test_few_outputs(n, c_out):
    dims = (9, 48, c_out)
    assert_near(results(mlp, *case(dims, n, torch.float32)), results(reference.mlp, *case(dims, n)), 1e-5)
    case32 = case(dims, n, torch.float32)
    assert_near(results(mlp, *case32, bfloat16=True), results(reference.mlp, *case32, bfloat16=True), 0.01)


@pytest.mark.parametrize("c_in", [1, 2, 3, 15, 16, 17, 31, 48, 255])
def test_odd_inputs_and_outputs(c_in):
    dims = (c_in, 32, min(c_in, 128))
    assert_near(results(mlp, *case(dims, 99, torch.float32)), results(reference.mlp, *case(dims, 99)), 1e-5)
    case32 = case(dims, 99, torch.float32)
    assert_near(results(mlp, *case32, bfloat16=True), results(reference.mlp, *case32, bfloat16=True), 0.01)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", NETS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 5, 6, 7, 1000])
def test_bfloat16_matches_its_roundings(n, dims, bias):
    # Sums in another order may round to the other neighbour at the next layer: a bfloat16 ulp (2^-8) here and there,
    # so the norm is held much tighter than single entries.
    case32 = case(dims, n, torch.float32, bias)
    got, expected = (results(op, *case32, bfloat16=True) for op in (mlp, reference.mlp))
    assert_near(got, expected, 0.01)
    for a, b in zip(got, expected, strict=True):
        assert float((a - b).norm()) <= 3e-3 * float(b.norm())


@pytest.mark.parametrize("dims", [(32, 64, 16), (32, 64, 64, 3)], ids=str)
def test_bfloat16_is_near_float32(dims):
    case32 = case(dims, 2000, torch.float32)
    got, expected = results(mlp, *case32, bfloat16=True), results(mlp, *case32)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]
    assert 5e-4 < errors[0] < 0.01
    assert all(
        5e-4 < e < 0.1 for e in errors[1:]
    )  # where rounding moves a sample across a ReLU, its whole gradient changes


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", [(3, 2), (5, 16, 3), (3, 16, 32, 16, 48, 2)], ids=str)
def test_gradcheck(dims, bias):
    inputs, weights, biases, _ = case(dims, 7, bias=bias)

    def run(inputs, *parameters):
        return mlp(inputs, parameters[: len(weights)], parameters[len(weights) :] or None)

    assert torch.autograd.gradcheck(run, (inputs, *weights, *(biases or ())), fast_mode=len(dims) > 3)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
def test_only_the_gradients_that_are_needed(needed, bfloat16):
    inputs, weights, biases, grad = case((32, 64, 48, 3), 300, torch.float32)
    all_grads = results(mlp, inputs, weights, biases, grad, bfloat16=bfloat16)[1:]
    groups = [[inputs], weights, biases]
    for group, need in zip(groups, needed, strict=True):
        for tensor in group:
            tensor.requires_grad_(need)
    mlp(inputs, weights, biases, bfloat16=bfloat16).backward(grad)
    for tensor, expected in zip([inputs, *weights, *biases], all_grads, strict=True):
        if tensor.requires_grad:
            assert torch.equal(tensor.grad, expected)
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("bfloat16", [False, True])
def test_recomputed_hidden_layers_give_the_same_gradients(monkeypatch, bfloat16):
    monkeypatch.setattr(module, "SAVED_INPUTS", 0)
    arguments = case((19, 64, 32, 112, 5), 1501, torch.float32)
    assert module._first_saved(module._saved(*arguments[:2], None, True), *arguments[:2]) == 1, "all of them"
    saved = results(mlp, *arguments, bfloat16=bfloat16)
    for budget in (0, 400_000, 700_000):  # none of them, or only the deepest
        monkeypatch.setattr(module, "SAVED_BYTES", budget)
        for a, b in zip(results(mlp, *arguments, bfloat16=bfloat16), saved, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_deterministic_for_any_number_of_threads(bfloat16):
    arguments = case((32, 64, 64, 3), 20_011, torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            runs.append(results(mlp, *arguments, bfloat16=bfloat16))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
    if not bfloat16:
        assert_near(runs[0], results(reference.mlp, *as_double(*arguments)), 1e-5)


def test_layers_with_few_inputs_are_computed_again():
    inputs, weights, *_ = case((32, 64, 64, 3), 10, torch.float32)
    assert module._first_saved(module._saved(inputs, weights, None, True), inputs, weights) == 2
    assert not module._saved(inputs, weights, None, False).numel()


def test_no_grad_saves_nothing():
    inputs, weights, biases, _ = case((32, 64, 16), 10, torch.float32, requires_grad=False)
    plain = mlp(inputs, weights, biases)
    assert not plain.requires_grad
    weights[0].requires_grad_()
    assert torch.equal(mlp(inputs, weights, biases).detach(), plain)


def test_strided_arguments():
    inputs, weights, _, grad = case((6, 32, 4), 50, torch.float32, bias=False)
    expected = results(mlp, inputs, weights, None, grad)
    strided = inputs.detach().T.contiguous().T.requires_grad_()
    got = results(
        mlp, strided, [w.detach().T.contiguous().T.requires_grad_() for w in weights], None, grad[:1].expand_as(grad)
    )
    assert torch.equal(got[0], expected[0])
    assert_near(got, results(reference.mlp, inputs, weights, None, grad[:1].expand_as(grad)), 1e-5)


def test_large_values_and_nan_stay_where_they_are():
    inputs, weights, _, _ = case((32, 64, 16), 100, torch.float32, bias=False, requires_grad=False)
    inputs[7] = 1e30
    inputs[50, 3] = float("nan")
    for bfloat16 in (False, True):
        outputs = mlp(inputs, weights, bfloat16=bfloat16)
        assert outputs[50].isnan().all()
        assert outputs[torch.arange(100) != 50].isfinite().all()


@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_opcheck(half):
    inputs, weights, biases, _ = case((5, 16, 3), 4, torch.float32)
    empty = [None] * 3
    for b in (biases, [None, None]):
        torch.library.opcheck(torch.ops.polyfield.mlp.default, (inputs, *weights, *empty, *b, *empty, half, True))


def test_errors():
    inputs, weights, biases, _ = case((8, 32, 16, 3), 4, torch.float32)

    def check(error, message, *arguments, **options):
        with pytest.raises(error, match=message):
            mlp(*arguments, **options)

    check(ValueError, r"mlp: inputs: expected shape \(\*, \*\), got \(8,\)", inputs[0], weights)
    check(ValueError, r"mlp: weights\[0\]: expected shape \(\*, 7\), got \(32, 8\)", inputs[:, :7], weights)
    check(
        ValueError,
        r"mlp: weights\[2\]: expected shape \(\*, 16\), got \(3, 8\)",
        inputs,
        [*weights[:2], weights[2][:, :8]],
    )
    check(
        ValueError, r"mlp: number of weights: expected a number from 1 to 5, got 6", inputs, [torch.zeros(16, 16)] * 6
    )
    check(ValueError, r"mlp: number of weights: expected a number from 1 to 5, got 0", inputs, [])
    check(
        ValueError,
        r"mlp: weights\[0\]: expected a hidden width of 16, 32, ..., 128, got 24; pad",
        inputs,
        [weights[0][:24], torch.zeros(3, 24)],
    )
    check(
        ValueError,
        r"mlp: weights\[0\]: expected a hidden width of .*, got 144",
        inputs,
        [torch.zeros(144, 8), torch.zeros(3, 144)],
    )
    check(ValueError, r"mlp: C_out: expected a number from 1 to 128, got 129", inputs, [torch.zeros(129, 8)])
    check(
        ValueError, r"mlp: C_in: expected a number from 1 to 256, got 257", torch.zeros(2, 257), [torch.zeros(3, 257)]
    )
    check(ValueError, r"mlp: biases: expected 3 of them, one per weight, got 2", inputs, weights, biases[:2])
    check(
        ValueError,
        r"mlp: biases\[1\]: expected shape \(16\), got \(32,\)",
        inputs,
        weights,
        [biases[0], biases[0], biases[2]],
    )
    check(TypeError, r"mlp: inputs: expected float32 or float64, got float16", inputs.half(), weights)
    for half in ("bfloat16", "float16"):
        check(TypeError, r"mlp: inputs: expected float32, got float64", inputs.double(), weights, **{half: True})
    check(
        ValueError,
        r"mlp: float16: expected False beside bfloat16=True, got True; choose one",
        inputs,
        weights,
        bfloat16=True,
        float16=True,
    )
    check(
        TypeError,
        r"mlp: weights\[1\]: expected float32, got float64",
        inputs,
        [weights[0], weights[1].double(), weights[2]],
    )
    check(TypeError, r"mlp: biases\[0\]: expected float32, got float64", inputs, weights, [b.double() for b in biases])


def test_float16_is_refused_on_the_cpu():
    inputs, weights, _, _ = case((8, 16, 3), 4, torch.float32)
    with pytest.raises(ValueError, match=r"^mlp: float16: expected a GPU .*, got the CPU.*; pass bfloat16"):
        mlp(inputs, weights, float16=True)
