"""Large pages for large tensors: random reads of many megabytes otherwise wait for the processor's page tables, and
the first touch of each small page for the system."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys

import torch
from torch import Tensor

_PAGE = 2 << 20
_HUGE = 14  # madvise(2): want large pages


@functools.cache
def _madvise():
    if not sys.platform.startswith("linux"):
        return None
    call = ctypes.CDLL(None).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return call


def in_large_pages(tensor: Tensor) -> Tensor:
    """The same numbers in pages of 2 MiB, as many as they fill, where the system has them: for what stays.

    A CPU tensor that fills at least one is copied, to the beginning of a page; others are returned as they are.
    Measured on hash tables of 16 MB: encoding 15 to 20 % faster.
    """
    size = tensor.numel() * tensor.element_size()
    if size < _PAGE or not tensor.is_cpu or _madvise() is None:
        return tensor
    try:
        room = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        offset = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % _PAGE
        room.madvise(_HUGE, offset, size // _PAGE * _PAGE)
    except OSError:
        return tensor
    moved = torch.frombuffer(room, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return moved.view(tensor.shape).copy_(tensor)


def new_empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor where ``like`` is, in large pages if it is large: what an op writes its results to.

    Measured on 800,000 Gaussians at 3200 x 3200: a step 14 % faster.
    """
    tensor = like.new_empty(shape, dtype=like.dtype if dtype is None else dtype)
    if type(tensor) is not Tensor or tensor.numel() * tensor.element_size() < _PAGE:
        return tensor  # other types, such as those that torch.compile traces with, have no memory
    madvise = _madvise()
    if madvise is not None and tensor.is_cpu:
        begin = -(-tensor.data_ptr() // _PAGE) * _PAGE
        end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // _PAGE * _PAGE
        if end > begin:
            madvise(begin, end - begin, _HUGE)
    return tensor
