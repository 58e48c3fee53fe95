"""Asking for large pages changes no number, and memory is used again only when nobody holds it."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from polyfield.cuda import memory
from polyfield.cuda.memory import new_empty, prefer_large_pages

PAGE = 2 << 20


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("count", [0, 100, PAGE, 3 * PAGE + 5])
def test_numbers_stay_as_they_are(count, now):
    tensor = torch.randn(count)
    twin = tensor.clone()
    assert prefer_large_pages(tensor, now=now) is tensor and torch.equal(tensor, twin)


def test_new_tensors_are_where_and_what_was_asked_for():
    like = torch.zeros(2, dtype=torch.float64)
    for shape in ((3, 4), (PAGE, 2)):
        got = new_empty(like, *shape, dtype=torch.float32)
        assert got.shape == shape and got.dtype == torch.float32 and got.device == like.device
        got.fill_(1)
        assert ctypes.c_float.from_address(got.data_ptr() + 4 * (got.numel() - 1)).value == 1


@pytest.fixture
def blocks(monkeypatch):
    """A store that is empty at first."""
    monkeypatch.setattr(memory, "_left", memory._Blocks())
    return memory._left


def test_memory_is_used_again_once_its_tensor_and_all_views_are_gone(blocks):
    like = torch.zeros(1)
    first = new_empty(like, PAGE)
    view, address = first[5:].view(-1), first.data_ptr()
    del first
    second = new_empty(like, PAGE)
    assert second.data_ptr() != address
    view.fill_(7)
    second.fill_(3)
    assert bool((view == 7).all())
    del view
    assert new_empty(like, PAGE - 100, dtype=torch.int32).data_ptr() == address


def test_what_autograd_keeps_is_not_used_again(blocks):
    x = new_empty(torch.zeros(1), PAGE).fill_(2).requires_grad_()
    address, y = x.data_ptr(), x * x
    kept = y.grad_fn
    del x, y
    assert new_empty(torch.zeros(1), PAGE).data_ptr() != address
    assert bool((kept._saved_self == 2).all())


def test_sizes_that_do_not_fit_and_what_lies_idle(blocks):
    like = torch.zeros(1, dtype=torch.uint8)
    large = new_empty(like, 40 * PAGE)
    address = large.data_ptr()
    del large
    small = new_empty(like, 20 * PAGE)  # half of it: the rest would be wasted
    assert small.data_ptr() != address
    assert len(blocks._blocks) == 1
    for _ in range(blocks.IDLE + 1):
        assert new_empty(like, PAGE).numel() == PAGE
    assert all(block.nbytes < 4 * PAGE for _, block in blocks._blocks)


def test_what_waits_is_bounded(blocks, monkeypatch):
    monkeypatch.setattr(memory._Blocks, "MOST", 10 * PAGE)
    tensors = [new_empty(torch.zeros(1, dtype=torch.uint8), 3 * PAGE) for _ in range(5)]
    tensors.clear()
    assert 6 * PAGE <= sum(block.nbytes for _, block in blocks._blocks) <= 10 * PAGE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_any_type_of_numbers(dtype):
    got = new_empty(torch.nn.Parameter(torch.zeros(1)), 3, PAGE, dtype=dtype)
    assert got.dtype == dtype and got.shape == (3, PAGE) and got.is_contiguous() and not got._is_view()
    assert got.fill_(1).sum(dtype=torch.float64) == 3 * PAGE


def test_threads_that_take_and_leave_at_once(blocks):
    """Each sees its own numbers only."""

    def work(number: int) -> bool:
        same = True
        for i in range(50):
            one = new_empty(torch.zeros(1), PAGE + 1000 * (i % 7)).fill_(number)
            same &= bool((one == number).all())
        return same

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))
