"""Tensors in large pages: the same numbers, alone in memory, whole."""

import copy
import ctypes
import mmap
import sys

import pytest
import torch
from polyfield.cuda import memory
from polyfield.cuda.memory import in_large_pages, new_empty

PAGE = 2 << 20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="large pages are asked for on Linux")


@linux
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_numbers_from_the_beginning_of_a_page(dtype):
    given = torch.randn(700_001, 3).to(dtype)
    got = in_large_pages(given)
    assert torch.equal(got, given) and got.shape == given.shape and got.dtype == dtype
    assert got.data_ptr() % PAGE == 0 and got.data_ptr() != given.data_ptr()
    assert got.untyped_storage().nbytes() == given.numel() * given.element_size(), "what is saved is the tensor alone"
    given.zero_()
    assert got.abs().sum() > 0, "a place of its own"


@linux
def test_is_written_to_and_outlives_what_it_was_made_of():
    tables = [in_large_pages(torch.full((600_000,), float(i))) for i in range(4)]
    parameter = torch.nn.Parameter(tables[1])
    (parameter.sum() * 2).backward()
    assert bool((parameter.grad == 2).all())
    tables[0].add_(1)
    twin = copy.deepcopy(tables[0])
    del tables[0]
    assert bool((twin == 1).all()) and bool((tables[1] == 2).all())


@linux
def test_keeps_its_pages_large_where_the_system_says_so():
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        if "[never]" in file.read():
            pytest.skip("this system has no large pages")
    table = in_large_pages(torch.zeros(3 * PAGE // 4 + 5))
    flags, inside = "", False
    with open("/proc/self/smaps") as file:
        for line in file:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(x, 16) for x in first.split("-"))
                inside = low <= table.data_ptr() < high
            elif inside and first == "VmFlags:":
                flags = line
    assert "hg" in flags.split(), "the kernel was asked for large pages"


def test_small_tensors_and_refusals_leave_things_as_they_are(monkeypatch):
    small = torch.zeros(100)
    assert in_large_pages(small) is small
    large = torch.zeros(PAGE)

    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert in_large_pages(large) is large
    monkeypatch.undo()
    monkeypatch.setattr(memory, "_madvise", lambda: None)
    assert in_large_pages(large) is large


def test_new_tensors_are_where_and_what_was_asked_for():
    like = torch.zeros(2, dtype=torch.float64)
    for shape in ((3, 4), (PAGE, 2)):
        got = new_empty(like, *shape, dtype=torch.float32)
        assert got.shape == shape and got.dtype == torch.float32 and got.device == like.device
        got.fill_(1)
        assert ctypes.c_float.from_address(got.data_ptr() + 4 * (got.numel() - 1)).value == 1
