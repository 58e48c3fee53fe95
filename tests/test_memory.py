"""Asking for large pages changes no number."""

import ctypes

import pytest
import torch
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
