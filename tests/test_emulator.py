"""The CUDA emulator itself: it runs what is right, and finds what is wrong."""

import pytest
import torch
from polyfield.cuda.native import Table, launch

from tests.emulation import EmulationError, emulated

HALVES = [(torch.bfloat16, "bf16"), (torch.float16, "f16")]


@pytest.fixture(autouse=True)
def _emulated():
    with emulated(orders=3):
        yield


def numbers(n):
    return torch.arange(n, dtype=torch.float32) + 1


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_blocks_share_memory_between_barriers(blocks):
    x, y = numbers(64 * blocks), torch.full((64 * blocks,), -1.0)
    launch("reverse", None, x, y, blocks)
    assert torch.equal(y.view(-1, 64), x.view(-1, 64).flip(1))


def test_warp_words_mean_what_cuda_says():
    x = torch.rand(3, 32, generator=torch.Generator().manual_seed(0)) + 0.5
    y = torch.empty(3, 6, 32)
    launch("warp_words", None, x, y, 3)
    close = torch.testing.assert_close
    close(y[:, 0], x.sum(1, keepdim=True).expand(3, 32))
    close(y[:, 1], x.cumsum(1))
    close(y[:, 2], x.cumprod(1))
    assert torch.equal(y[:, 3, 3:], x[:, :-3]) and (y[:, 3, :3] == -1).all()
    assert torch.equal(y[:, 4, :-5], x[:, 5:]) and (y[:, 4, -5:] == -2).all()
    votes = ((x > 1) * 2.0 ** torch.arange(32, dtype=torch.float64)).sum(1)
    assert torch.equal(y[:, 5], votes.float()[:, None].expand(3, 32))


def test_lanes_may_exchange_through_memory_if_they_wait():
    x, y = numbers(64), torch.empty(64)
    launch("warp_memory", None, x, y, 2)
    assert torch.equal(y.view(2, 32), x.view(2, 32).flip(1))


def test_atomics_count():
    total = torch.zeros(1, dtype=torch.int32)
    launch("count", None, total, 100)
    assert total.item() == 100


def test_threads_that_have_returned_are_not_waited_for():
    x, y = numbers(32), torch.empty(32)
    launch("barrier_of_those_who_stay", None, x, y, 1)
    assert torch.equal(y, x.flip(0))


@pytest.mark.parametrize("dtype, suffix", HALVES)
def test_matrix_fragments_lie_where_ptx_says(dtype, suffix):
    g = torch.Generator().manual_seed(0)
    a, b, d = (torch.randn(*shape, generator=g) for shape in ((16, 16), (16, 8), (16, 8)))
    wanted = d.double() + a.to(dtype).double() @ b.to(dtype).double()
    launch(f"matrix_product_{suffix}", None, a, b, d, 1)
    torch.testing.assert_close(d.double(), wanted, atol=1e-5, rtol=1e-5)
    for row, k, column in (
        (3, 5, 2),
        (12, 5, 7),
        (3, 14, 0),
        (9, 11, 6),
    ):  # one product at a time
        a, b, d = torch.zeros(16, 16), torch.zeros(16, 8), torch.zeros(16, 8)
        a[row, k], b[k, column] = 3, 5
        launch(f"matrix_product_{suffix}", None, a, b, d, 1)
        assert d[row, column] == 15 and d.count_nonzero() == 1


def test_blocks_are_transposed_as_they_are_loaded():
    x = torch.arange(256, dtype=torch.int16)
    y = torch.empty(128, dtype=torch.int32)
    launch("transposed_blocks", None, x.view(torch.int32), y, 1)
    assert torch.equal(y.view(torch.int16).view(4, 8, 8), x.view(4, 8, 8).mT)


@pytest.mark.parametrize("dtype, suffix", HALVES)
@pytest.mark.parametrize("relu", [False, True])
def test_numbers_are_rounded_as_torch_does(relu, dtype, suffix):
    name = f"packed_pairs{'_relu' if relu else ''}_{suffix}"
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    x[:8] = torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, 3e38, 1e-40, float("inf"), -float("inf")])
    x[8:16] = torch.tensor([65504.0, 65519.99, -65520.0, 7e4, 2.0**-25, 1.1 * 2.0**-25, -1.5 * 2.0**-24, 6.1e-5])
    x[16:200] *= torch.logspace(-9, 6, 184)
    y = torch.empty(500, dtype=torch.int32)
    launch(name, None, x, y, 500)
    wanted = (x.relu() if relu else x).to(dtype)
    assert torch.equal(y.view(dtype), wanted)
    x[8] = float("nan")
    launch(name, None, x, y, 500)
    assert y.view(dtype)[8].isnan()


def test_arguments_of_every_kind_arrive():
    y, c = torch.empty(6, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    launch("arguments", None, -5, Table([3, 0, c]), 2**40, 0.5, 1 / 3, None, y, 1)
    assert y.tolist() == [-5, 3, 2**40, 0.5, 1 / 3, 0] and c.item() == 7


# ---- what is wrong ----


def fails(match, *arguments):
    with pytest.raises(EmulationError, match=match):
        launch(arguments[0], None, *arguments[1:])


def test_a_missing_barrier_is_found():
    # whichever thread comes first, the other one's write is missing or unordered
    found = r"(a race: .* of shared memory|shared memory that nobody has written).* \(samples.cu:\d+"
    fails(found, "reverse_without_barrier", numbers(64), torch.empty(64), 1)
    fails(found, "warp_memory_without_waiting", numbers(32), torch.empty(32), 1)
    blocks = torch.zeros(128, dtype=torch.int32)
    fails(found, "transposed_blocks_without_waiting", blocks, blocks.clone(), 1)


def test_an_access_beyond_a_shared_array_is_found():
    fails("outside all shared arrays", "reverse_beyond_the_tile", numbers(64), torch.empty(64), 1)


def test_a_read_of_what_nobody_wrote_is_found():
    fails("shared memory that nobody has written", "reverse_of_half_a_tile", numbers(64), torch.empty(64), 1)


def test_an_access_beyond_a_tensor_is_found():
    fails(r"a read of 4 bytes outside all tensors", "beyond_the_tensor", numbers(40), torch.empty(40), 40)
    fails(r"a write of 4 bytes outside .* the nearest is argument 0", "write_beyond_the_tensor", torch.empty(40), 40)


def test_a_race_is_found_even_where_no_result_differs():
    fails(r"a race: .* argument 0 \(samples.cu", "count_without_atomics", torch.zeros(1, dtype=torch.int32), 2)
    fails("a race: write by .* block", "blocks_collide", torch.empty(32), 2)


def test_a_result_that_depends_on_the_order_is_found():
    integers = {"dtype": torch.int32}
    fails("depends on the order", "take_a_number", torch.zeros(1, **integers), torch.empty(64, **integers), 64)


def test_threads_that_cannot_meet_are_found():
    fails("has returned", "shuffle_with_the_absent", numbers(32), torch.empty(32), 32)
    fails("different __syncthreads", "two_barriers", torch.empty(64), 1)
    fails("wait for ever|has returned", "half_a_warp_waits", torch.empty(32), 32)


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match=r"reverse: expected 3 arguments \(ppB\)"):
        launch("reverse", None, numbers(64), 0.5, 1)
    with pytest.raises(ValueError, match=r"reverse: argument 0: expected a contiguous tensor, got strides \(2,\)"):
        launch("reverse", None, numbers(128)[::2], numbers(64), 1)
