"""How a function of a hash encoding's features changes with the points: ``hash_slopes``. Kernels: ``hash_gradient.cu``.

The chain rule without the Jacobian: (N, L F, D) numbers of which a distance needs D products are never written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_device, check_dtype, check_shape
from .hash_encoding import HashLayout, _backward_points, _check, _launch, _levels
from .memory import new_empty
from .ops import op


def hash_slopes(
    points: Tensor,
    slopes: Tensor,
    table: Tensor,
    layout: HashLayout,
    *,
    half: Tensor | None = None,
    table_grad: Tensor | None = None,
) -> Tensor:
    """slopes . d hash_encode(points) / d points: how what changes with the features by ``slopes`` changes with points.

    Differentiable in ``slopes`` and ``table``; not in ``points`` (``hash_encode_with_gradient`` is). Zero along an axis
    where the point lies outside [0, 1].

    Args:
        points, table, layout, half, table_grad: as for ``hash_encode``.
        slopes: (N, L * F), of the points' dtype.

    Returns:
        (N, D).
    """
    op = "hash_slopes"
    _check(op, points, table, layout, half, table_grad)
    check_shape(op, "slopes", slopes, (len(points), layout.out_channels))
    check_dtype(op, "slopes", slopes, points.dtype)
    check_device(op, points=points, slopes=slopes)
    if points.requires_grad:
        raise ValueError(f"{op}: points: expected no gradient asked for, got such; use hash_encode_with_gradient")
    return _hash_slopes(points, slopes, table, half, table_grad, layout._numbers)


@op("hash_slopes")
def _hash_slopes(
    points: Tensor, slopes: Tensor, table: Tensor, half: Tensor | None, table_grad: Tensor | None, numbers: list[int]
) -> Tensor:
    return _backward_points(points, table if half is None else half, slopes, None, numbers)


@_hash_slopes.register_fake
def _(points, slopes, table, half, table_grad, numbers):
    return torch.empty_like(points)


@op("hash_along")
def _along(points: Tensor, directions: Tensor, table: Tensor, numbers: list[int]) -> Tensor:
    """Derivatives (N, L F) of features along directions (N, D)."""
    points, directions, table = points.contiguous(), directions.contiguous(), table.contiguous()
    derivatives = _new_derivatives(points, numbers)
    tensors = (points, directions, table, _levels(tuple(numbers), points.device), derivatives)
    _launch("hash_encode_along", table.dtype, numbers, points, *tensors, together=1)
    return derivatives


def _new_derivatives(points: Tensor, numbers: list[int]) -> Tensor:
    return new_empty(points, len(points), (len(numbers) - 2) // 4 * numbers[1])


@_along.register_fake
def _(points, directions, table, numbers):
    return _new_derivatives(points, numbers)


@op("hash_accumulate_along_", mutates=("table_grad",))
def _accumulate_along(
    table_grad: Tensor, points: Tensor, directions: Tensor, grad_derivatives: Tensor, numbers: list[int]
) -> None:
    """Adds to the table's gradient that of the derivatives along directions."""
    points, levels = points.contiguous(), _levels(tuple(numbers), points.device)
    tensors = (points, directions.contiguous(), levels, grad_derivatives.contiguous(), table_grad)
    _launch("hash_encode_backward_along", points.dtype, numbers, points, *tensors, together=1)


@_accumulate_along.register_fake
def _(table_grad, points, directions, grad_derivatives, numbers):
    return None


def _setup_context(ctx, inputs, output):
    points, slopes, table, half, ctx.table_grad, ctx.numbers = inputs
    ctx.entries, ctx.dtype = table.shape[0], table.dtype
    source = (table if half is None else half,) if ctx.needs_input_grad[1] else ()
    ctx.save_for_backward(points, slopes, *source)


def _backward(ctx, grad):
    points, slopes, *source = ctx.saved_tensors
    of_slopes = _along(points, grad, source[0], ctx.numbers) if ctx.needs_input_grad[1] else None
    of_table = None
    if ctx.needs_input_grad[2] and ctx.table_grad is not None:
        _accumulate_along(ctx.table_grad, points, grad, slopes, ctx.numbers)
    elif ctx.needs_input_grad[2]:
        of_table = points.new_zeros(ctx.entries, ctx.numbers[1])
        _accumulate_along(of_table, points, grad, slopes, ctx.numbers)
        of_table = of_table.to(ctx.dtype)
    return None, of_slopes, of_table, None, None, None


_hash_slopes.register_autograd(_backward, setup_context=_setup_context)
