# ruff: noqa: F401 (tests, imported to be run)
"""The fused perceptron on tensor cores: against its reference, in the emulator or with ``--device cuda`` on a GPU.

Sizes cover empty work, partial tiles, several blocks that each take several tiles, and all widths.
"""

import pytest
import torch
from polyfield.cuda import mlp_tensor
from polyfield.cuda.mlp import mlp

from tests.emulation import on_gpu
from tests.reference import mlp as reference
from tests.test_mlp import assert_near, case, results
from tests.test_mlp import test_errors as test_errors_of_mlp
from tests.test_mlp import test_large_values_and_nan_stay_where_they_are as test_extremes
from tests.test_mlp import test_only_the_gradients_that_are_needed as test_wanted_gradients
from tests.test_mlp import test_opcheck as test_opcheck_of_mlp


@pytest.fixture(autouse=True)
def _on_gpu(device):
    with on_gpu(device):
        yield


NETS = [  # sizes, samples, biases
    ((32, 64, 16), 0, True),
    ((32, 64, 16), 1, True),
    ((32, 64, 16), 1000, False),
    ((32, 64, 64, 3), 130, True),
    ((32, 64, 64, 64, 64, 16), 40, False),
    ((5, 3), 129, True),
    ((1, 16, 1), 7, False),
    ((31, 32, 48, 17), 33, True),
    ((7, 16, 32, 48, 128, 5), 40, True),
    ((33, 112, 17), 50, False),
    ((256, 80, 96, 112, 128, 128), 17, True),
]


def check(arguments, half="bfloat16"):
    finer = 8 if half == "float16" else 1
    got, expected = (results(op, *arguments, **{half: True}) for op in (mlp, reference.mlp))
    assert_near(got, expected, 0.01 / finer)
    for a, b in zip(got, expected, strict=True):  # sums in another order may round to the other neighbour
        assert float((a - b).norm()) <= 3e-3 / finer * float(b.norm())


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("dims, n, bias", NETS, ids=str)
def test_products_match_their_roundings(dims, n, bias, half):
    check(case(dims, n, torch.float32, bias), half)


def test_float16_is_eight_times_finer():
    arguments = case((32, 64, 16), 130, torch.float32)
    exact = results(reference.mlp, *arguments)
    coarse, fine = (results(mlp, *arguments, **{half: True})[0] for half in ("bfloat16", "float16"))
    ratio = float((coarse - exact[0]).norm() / (fine - exact[0]).norm())
    assert 6 < ratio < 11


def test_the_range_of_float16():
    inputs, weights, biases, grad = case((32, 64, 16), 40, torch.float32)
    expected = results(mlp, inputs, weights, biases, grad, float16=True)
    with torch.no_grad():
        inputs[20, 3] = 65530  # rounds to infinity; to 65536 in bfloat16
    outputs, of_inputs = results(mlp, inputs, weights, biases, grad, float16=True)[:2]
    others = torch.arange(40) != 20
    assert not outputs[20].isfinite().any()
    assert torch.equal(outputs[others], expected[0][others])
    assert torch.equal(of_inputs[others], expected[1][others])
    assert all(t.isfinite().all() for t in results(mlp, inputs, weights, biases, grad, bfloat16=True))


def test_small_gradients_vanish_in_float16_unless_scaled():
    inputs, weights, biases, _ = case((32, 64, 16), 40, torch.float32)
    small = torch.full((40, 16), 2e-8)
    assert not any(t.any() for t in results(mlp, inputs, weights, biases, small, float16=True)[1:])
    scaled = results(mlp, inputs, weights, biases, small * 2**20, float16=True)[1:]
    exact = results(reference.mlp, inputs, weights, biases, small)[1:]
    for a, b in zip(scaled, exact, strict=True):
        assert float((a / 2**20 - b).norm()) <= 2e-2 * float(b.norm())


def test_opcheck_in_float16():
    inputs, weights, biases, _ = case((5, 16, 3), 4, torch.float32)
    arguments = (inputs, *weights, *[None] * 3, *biases, *[None] * 3, torch.float16, True)
    torch.library.opcheck(torch.ops.polyfield.mlp.default, arguments)


@pytest.mark.parametrize("width", range(16, 129, 16))
def test_all_widths(width):
    check(case((12, width, 144 - width, 4), 35, torch.float32))


def test_a_network_in_several_segments_is_the_same(monkeypatch):
    arguments = case((20, 64, 32, 7), 150, torch.float32)
    assert mlp_tensor.segments((20, 64, 32, 7)) == [(0, 3)]
    together = results(mlp, *arguments, bfloat16=True)
    monkeypatch.setattr(mlp_tensor, "REGISTERS", 8)
    assert mlp_tensor.segments((20, 64, 32, 7)) == [(0, 1), (1, 2), (2, 3)]
    for a, b in zip(together, results(mlp, *arguments, bfloat16=True), strict=True):
        assert torch.equal(a, b)


def test_segments_are_as_long_as_registers_last():
    assert mlp_tensor.segments((32, 64, 64, 64, 64, 16)) == [(0, 5)]
    assert mlp_tensor.segments((256, *[128] * 5)) == [(i, i + 1) for i in range(5)]
    assert mlp_tensor.segments((32, 128, 16, 64, 3)) == [(0, 4)]
    for sizes in ((7, 3), (32, 128, 128, 16), (256, 80, 96, 112, 128, 128)):
        parts = mlp_tensor.segments(sizes)
        assert [b for b, _ in parts] == [0, *(e for _, e in parts[:-1])] and parts[-1][1] == len(sizes) - 1
        assert all(mlp_tensor.registers(sizes[b : e + 1]) <= 168 or e == b + 1 for b, e in parts)


def test_inputs_at_odd_addresses():
    inputs, weights, _, grad = case((8, 16, 4), 20, torch.float32, bias=False)
    expected = results(mlp, inputs, weights, None, grad, bfloat16=True)
    odd = torch.cat([torch.zeros(1), inputs.detach().flatten()])[1:].view(20, 8).requires_grad_()
    for a, b in zip(expected, results(mlp, odd, weights, None, grad, bfloat16=True), strict=True):
        assert torch.equal(a, b)


def test_products_are_exact_without_bfloat16():
    arguments = case((32, 64, 3), 50)
    assert_near(results(mlp, *arguments), results(reference.mlp, *arguments), 1e-12)
