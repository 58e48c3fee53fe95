"""Multiresolution hash encoding: ``hash_encode(points, table, layout)``. Kernel: ``kernels/hash_encode.cu``.

``HashLayout`` says where each level's entries lie in the one table that holds them all. A float32 master table may be
read through a half copy (``half``), and its gradient may go straight into a buffer of the caller's (``table_grad``).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import FLOATS, check_contiguous, check_device, check_dtype, check_range, check_shape
from .memory import new_empty
from .native import launch
from .ops import op

HALVES = (torch.bfloat16, torch.float16)
FEATURES = (1, 2, 4, 8)
_ALIGNMENT = 16  # levels start on a cache line, also in half tables of two features


@dataclass(frozen=True)
class HashLayout:
    """The levels of a hash encoding and where their entries lie in the table. Made by ``HashLayout.build``.

    A level with resolution n has n cells and n + 1 vertices along each axis. It is dense (one entry per vertex, x
    fastest) where they fit 2^log2_size entries, else hashed: vertices share 2^log2_size entries.
    """

    dimensions: int  # 2 or 3
    features: int  # numbers per entry
    resolutions: tuple[int, ...]  # cells along an axis, per level
    offsets: tuple[int, ...]  # first entry, per level
    sizes: tuple[int, ...]  # entries, per level
    hashed: tuple[bool, ...]

    @staticmethod
    def build(
        levels: int = 16,
        features: int = 2,
        log2_size: int = 19,
        base_resolution: int = 16,
        finest_resolution: int = 2048,
        dimensions: int = 3,
    ) -> HashLayout:
        """Resolutions in geometric progression: N_l = floor(N_min b^l), b = exp(log(N_max / N_min) / (L - 1)).

        Args:
            levels: 1 to 32.
            features: 1, 2, 4 or 8 per level.
            log2_size: at most 2^log2_size entries per level, 4 to 26.
            base_resolution: cells along an axis at the coarsest level, 1 to 2^20.
            finest_resolution: the same at the finest level; at least base_resolution, at most 2^20.
            dimensions: 2 or 3.

        Source: Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022, equations 2 to 4.
        """
        op = "HashLayout.build"
        check_range(op, "levels", levels, 1, 32)
        check_range(op, "log2_size", log2_size, 4, 26)
        check_range(op, "base_resolution", base_resolution, 1, 1 << 20)
        check_range(op, "finest_resolution", finest_resolution, base_resolution, 1 << 20)
        check_range(op, "dimensions", dimensions, 2, 3)
        if features not in FEATURES:
            raise ValueError(f"{op}: features: expected 1, 2, 4 or 8, got {features}")
        growth = math.exp(math.log(finest_resolution / base_resolution) / max(levels - 1, 1))
        # The tolerance keeps rounding from making the finest level one cell too coarse.
        resolutions = tuple(int(base_resolution * growth**level + 1e-6) for level in range(levels))
        vertices = [(resolution + 1) ** dimensions for resolution in resolutions]
        hashed = tuple(count > 1 << log2_size for count in vertices)
        sizes = tuple(
            1 << log2_size if spread else -(-count // _ALIGNMENT) * _ALIGNMENT
            for count, spread in zip(vertices, hashed, strict=True)
        )
        offsets = tuple(sum(sizes[:level]) for level in range(levels))
        return HashLayout(dimensions, features, resolutions, offsets, sizes, hashed)

    @property
    def levels(self) -> int:
        """L."""
        return len(self.resolutions)

    @property
    def entries(self) -> int:
        """Rows of the table."""
        return sum(self.sizes)

    @property
    def out_channels(self) -> int:
        """L * F."""
        return self.levels * self.features

    @functools.cached_property
    def _numbers(self) -> tuple[int, ...]:
        """What the ops take: dimensions, features, then (resolution, offset, size, hashed) of each level."""
        rows = zip(self.resolutions, self.offsets, self.sizes, map(int, self.hashed), strict=True)
        return (self.dimensions, self.features, *(number for row in rows for number in row))


def hash_encode(
    points: Tensor,
    table: Tensor,
    layout: HashLayout,
    *,
    half: Tensor | None = None,
    table_grad: Tensor | None = None,
) -> Tensor:
    """Features of points, interpolated linearly at every level and put side by side (level-major channels).

    Differentiable in ``points`` (zero along an axis where the point lies outside [0, 1]) and ``table``. A NaN
    coordinate gives NaN features and a zero gradient along its own axis; the other axes' and the entries of its cells
    receive NaN, so look at the loss before a step.

    Args:
        points: (N, D) in [0, 1]^D; clamped to it outside. float64 for a float64 table, else float32.
        table: (layout.entries, F) float32, float64, bfloat16 or float16.
        half: (layout.entries, F) bfloat16 or float16 copy of a float32 ``table``: read instead of it, while the
            gradient belongs to ``table``. Keeping the copy up to date is the caller's job (``sparse_adam_`` does it).
        table_grad: (layout.entries, F) float32 (float64 for a float64 table) buffer. If given, the backward ADDS the
            table's gradient into it in place, and autograd returns none for ``table``: nothing of the table's size is
            allocated, cleared or added in a step. Usually ``table_grad=table.grad``, allocated once. The bits are those
            that ordinary autograd gives. Not for ``torch.compile`` or ``create_graph``.

    Returns:
        (N, L * F), float64 for a float64 table, else float32.

    Source: Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022.
    """
    _check("hash_encode", points, table, layout, half, table_grad)
    return _hash_encode(points, table, half, table_grad, layout._numbers)


def hash_encode_with_gradient(
    points: Tensor,
    table: Tensor,
    layout: HashLayout,
    *,
    half: Tensor | None = None,
    table_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``hash_encode`` together with its spatial derivative, from the same reads of the table.

    Both outputs are differentiable in ``table`` and ``points``, so that a loss on the derivative (an Eikonal term)
    needs no double backward. The derivative is that of the interpolant: it jumps at cell borders, where it is
    the one of the cell above; the second derivatives that reach ``points`` are those inside the cell.

    Args: as for ``hash_encode``.

    Returns:
        features (N, L * F) and jacobian (N, L * F, D), d features / d points.
    """
    _check("hash_encode_with_gradient", points, table, layout, half, table_grad)
    return _hash_encode_with_gradient(points, table, half, table_grad, layout._numbers)


def _check(op: str, points: Tensor, table: Tensor, layout: HashLayout, half: Tensor | None, table_grad: Tensor | None):
    check_shape(op, "points", points, (None, layout.dimensions))
    check_shape(op, "table", table, (layout.entries, layout.features))
    check_dtype(op, "table", table, *FLOATS, *HALVES)
    check_dtype(op, "points", points, _compute_dtype(table))
    check_device(op, points=points, table=table, half=half, table_grad=table_grad)
    if half is not None:
        check_shape(op, "half", half, (layout.entries, layout.features))
        check_dtype(op, "half", half, *HALVES)
        check_dtype(op, "table", table, torch.float32)
    if table_grad is not None:
        check_shape(op, "table_grad", table_grad, (layout.entries, layout.features))
        check_dtype(op, "table_grad", table_grad, _compute_dtype(table))
        check_contiguous(op, "table_grad", table_grad)


def _compute_dtype(table: Tensor) -> torch.dtype:
    return torch.float64 if table.dtype == torch.float64 else torch.float32


@functools.lru_cache(maxsize=64)
def _levels(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers[2:], dtype=torch.int64, device=device)


_BLOCK = 256  # threads, which on a GPU all look at the same levels


def _launch(
    name: str, dtype: torch.dtype, numbers: list[int], points: Tensor, *tensors: Tensor | None, together: int = 0
) -> None:
    """Every kernel ends with the same numbers: threads, N, D, L, F. A thread takes a point at ``together`` levels, and
    whole blocks the same ones; 0 = a point at all levels."""
    (dimensions, width), levels, samples = numbers[:2], (len(numbers) - 2) // 4, len(points)
    threads = -(-levels // together) * -(-samples // _BLOCK) * _BLOCK if together else samples
    constants = (("PF_DIMENSIONS", dimensions), ("PF_FEATURES", width))
    launch(name, dtype, *tensors, threads, samples, dimensions, levels, width, constants=constants)


# ---- features -------------------------------------------------------------------------------------------------------


@op("hash_encode")
def _hash_encode(
    points: Tensor, table: Tensor, half: Tensor | None, table_grad: Tensor | None, numbers: list[int]
) -> Tensor:
    points, source = points.contiguous(), (table if half is None else half).contiguous()
    features = _new_features(points, numbers)
    tensors, sector = (points, source, _levels(tuple(numbers), points.device), features), max(8 // numbers[1], 1)
    _launch("hash_encode", source.dtype, numbers, points, *tensors, together=sector)
    return features


def _new_features(points: Tensor, numbers: list[int]) -> Tensor:
    return new_empty(points, points.shape[0], (len(numbers) - 2) // 4 * numbers[1])


@_hash_encode.register_fake
def _(points, table, half, table_grad, numbers):
    return _new_features(points, numbers)


def _setup_context(ctx, inputs, output):
    points, table, half, ctx.table_grad, ctx.numbers = inputs
    ctx.half = half is not None
    ctx.entries, ctx.dtype = table.shape[0], table.dtype
    # Only the gradient to the points reads the table again: an optimizer may otherwise step before the backward.
    ctx.save_for_backward(points, *((table if half is None else half,) if ctx.needs_input_grad[0] else ()))
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_features):
    return _gradients(ctx, grad_features, None)


_hash_encode.register_autograd(_backward, setup_context=_setup_context)


# ---- features and their spatial derivative --------------------------------------------------------------------------


@op("hash_encode_with_gradient")
def _hash_encode_with_gradient(
    points: Tensor, table: Tensor, half: Tensor | None, table_grad: Tensor | None, numbers: list[int]
) -> tuple[Tensor, Tensor]:
    points, source = points.contiguous(), (table if half is None else half).contiguous()
    features = _new_features(points, numbers)
    jacobian = features.new_empty(*features.shape, numbers[0])
    levels = _levels(tuple(numbers), points.device)
    tensors = (points, source, levels, features, jacobian)
    _launch("hash_encode_with_gradient", source.dtype, numbers, points, *tensors, together=1)
    return features, jacobian


@_hash_encode_with_gradient.register_fake
def _(points, table, half, table_grad, numbers):
    features = _new_features(points, numbers)
    return features, features.new_empty(*features.shape, numbers[0])


def _backward_with_gradient(ctx, grad_features, grad_jacobian):
    return _gradients(ctx, grad_features, grad_jacobian)


_hash_encode_with_gradient.register_autograd(_backward_with_gradient, setup_context=_setup_context)


# ---- backward -------------------------------------------------------------------------------------------------------


def _gradients(ctx, grad_features: Tensor | None, grad_jacobian: Tensor | None):
    points, *source = ctx.saved_tensors
    grad_points = grad_table = None
    if grad_features is None and grad_jacobian is not None:
        grad_features = grad_jacobian.new_zeros(grad_jacobian.shape[:2])
    if grad_features is not None:
        if ctx.needs_input_grad[0]:
            grad_points = _backward_points(points, source[0], grad_features, grad_jacobian, ctx.numbers)
        if ctx.needs_input_grad[1] and ctx.table_grad is not None:
            _accumulate(ctx.table_grad, points, grad_features, grad_jacobian, ctx.numbers)
        elif ctx.needs_input_grad[1]:
            grad_table = _backward_table(points, grad_features, grad_jacobian, ctx.entries, ctx.numbers).to(ctx.dtype)
    return grad_points, grad_table, None, None, None


@op("hash_encode_backward_points")
def _backward_points(
    points: Tensor, table: Tensor, grad_features: Tensor, grad_jacobian: Tensor | None, numbers: list[int]
) -> Tensor:
    points, table, grad_features = points.contiguous(), table.contiguous(), grad_features.contiguous()
    grad_jacobian = None if grad_jacobian is None else grad_jacobian.contiguous()
    grad_points, levels = torch.empty_like(points), _levels(tuple(numbers), points.device)
    tensors = (points, table, levels, grad_features, grad_jacobian, grad_points)
    _launch("hash_encode_backward_points", table.dtype, numbers, points, *tensors)
    return grad_points


@_backward_points.register_fake
def _(points, table, grad_features, grad_jacobian, numbers):
    return torch.empty_like(points)


@op("hash_encode_backward_table")
def _backward_table(
    points: Tensor, grad_features: Tensor, grad_jacobian: Tensor | None, entries: int, numbers: list[int]
) -> Tensor:
    grad_table = points.new_zeros(entries, numbers[1])
    _add_table_gradient(grad_table, points, grad_features, grad_jacobian, numbers)
    return grad_table


@_backward_table.register_fake
def _(points, grad_features, grad_jacobian, entries, numbers):
    return points.new_empty(entries, numbers[1])


@op("hash_encode_accumulate_", mutates=("table_grad",))
def _accumulate(
    table_grad: Tensor, points: Tensor, grad_features: Tensor, grad_jacobian: Tensor | None, numbers: list[int]
) -> None:
    _add_table_gradient(table_grad, points, grad_features, grad_jacobian, numbers)


@_accumulate.register_fake
def _(table_grad, points, grad_features, grad_jacobian, numbers):
    return None


def _add_table_gradient(table_grad, points, grad_features, grad_jacobian, numbers) -> None:
    points, grad_features = points.contiguous(), grad_features.contiguous()
    grad_jacobian = None if grad_jacobian is None else grad_jacobian.contiguous()
    tensors = (points, _levels(tuple(numbers), points.device), grad_features, grad_jacobian, table_grad)
    _launch("hash_encode_backward_table", points.dtype, numbers, points, *tensors, together=1)
