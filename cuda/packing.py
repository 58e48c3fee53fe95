"""Packed samples of rays, one pack after another: ``append_packed``. Kernels: ``kernels/append_packed.cu``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_device, check_dtype, check_shape
from .native import launch, on_gpu
from .ops import op


def append_packed(
    first: Sequence[Tensor], first_offsets: Tensor, second: Sequence[Tensor], second_offsets: Tensor, rays: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Behind each ray's samples, those that a second pack has of it.

    Args:
        first: any number of (S1,) float32, packed by the R rays of ``first_offsets`` (R + 1,) int32.
        second: as many (S2,) float32, packed by the A rays of ``second_offsets`` (A + 1,) int32.
        rays: (A,) integers: which of the R rays these are; none twice.

    Returns:
        as many tensors (S1 + S2,), ray_indices (S1 + S2,) int32 and ray_offsets (R + 1,) int32. No gradients.
    """
    op = "append_packed"
    if len(first) != len(second):
        raise ValueError(f"{op}: second: expected {len(first)} tensors as in first, got {len(second)}")
    for name, pack in (("first", first), ("second", second)):
        for i, tensor in enumerate(pack):
            check_shape(op, f"{name}[{i}]", tensor, (len(pack[0]),))
            check_dtype(op, f"{name}[{i}]", tensor, torch.float32)
    for name, offsets in (("first_offsets", first_offsets), ("second_offsets", second_offsets)):
        check_shape(op, name, offsets, (None,))
        check_dtype(op, name, offsets, torch.int32)
    check_shape(op, "rays", rays, (len(second_offsets) - 1,))
    packs = {f"{name}[{i}]": t for name, pack in (("first", first), ("second", second)) for i, t in enumerate(pack)}
    check_device(op, first_offsets=first_offsets, second_offsets=second_offsets, rays=rays, **packs)
    tensors, ray_indices, ray_offsets = _append_packed(list(first), first_offsets, list(second), second_offsets, rays)
    return tensors, ray_indices, ray_offsets


@op("append_packed")
def _append_packed(
    first: list[Tensor], first_offsets: Tensor, second: list[Tensor], second_offsets: Tensor, rays: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    count = len(first_offsets) - 1
    first_offsets, second_offsets = first_offsets.contiguous(), second_offsets.contiguous()
    rows = first_offsets.new_full((count,), -1)
    rows[rays] = torch.arange(len(rays), dtype=rows.dtype, device=rows.device)
    offsets = first_offsets.new_zeros(count + 1)
    launch("append_counts", None, first_offsets, second_offsets, rows, offsets[1:], count)
    offsets[1:].cumsum_(0)
    # The same; but the second would wait for a GPU.
    total = len(first[0]) + len(second[0]) if first and on_gpu(offsets) else int(offsets[-1])
    tensors = []
    for a, b in zip(first, second, strict=True):
        tensors.append(a.new_empty(total))
        pair = (a.contiguous(), first_offsets, b.contiguous(), second_offsets)
        launch("append_packed", None, *pair, rows, offsets, tensors[-1], count)
    ray_indices = offsets.new_empty(total)
    launch("packed_indices", None, offsets, ray_indices, count)
    return tensors, ray_indices, offsets


@_append_packed.register_fake
def _(first, first_offsets, second, second_offsets, rays):
    total = torch.library.get_ctx().new_dynamic_size()
    new = first_offsets.new_empty
    return [a.new_empty(total) for a in first], new(total), torch.empty_like(first_offsets)
