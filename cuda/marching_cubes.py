"""Surfaces from lattices of values: ``marching_cubes`` (dense) and ``marching_cubes_blocks`` (sparse blocks, one mesh).

Kernel: ``kernels/marching_cubes.cu``. Two launches, because the sizes are only known after counting.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .checks import FLOATS, check_device, check_dtype, check_shape
from .marching_cubes_table import table
from .native import launch, on_gpu
from .ops import op

MAX_Z = 65535  # a row's counts are 16-bit
_PACK = 1 << 20  # block coordinates lie in [-_PACK, _PACK)


def marching_cubes(values: Tensor, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """The surface values = level of a dense lattice, as triangles with shared vertices.

    Args:
        values: (X, Y, Z) float32 or float64; infinities are allowed, NaN is not. A value equal to the level counts as
            below it.
        level: where to cut.

    Returns:
        vertices (V, 3), of the values' dtype, in index coordinates (0 to X - 1, ...), differentiable in ``values``; and
        faces (F, 3) int32, counter-clockwise seen from where values > level: the outside of a distance. (For a
        density, whose inside is above, reverse them: ``faces.flip(1)``.) Both are empty where nothing crosses the
        level. Every edge belongs to two triangles, except on the lattice's border.

    Raises:
        ValueError: values of another shape, with NaN, or with more than 2^31 vertices or triangles.

    Source: Lorensen & Cline, "Marching Cubes", SIGGRAPH 1987; triangle counts equal those of the classic table, with
    diagonals chosen so that no edge has more than two triangles.
    """
    check_shape("marching_cubes", "values", values, (None, None, None))
    _check("marching_cubes", values)
    vertices, faces, _ = _marching_cubes(values, float(level), values.requires_grad)
    return vertices, faces


def marching_cubes_blocks(values: Tensor, block_coordinates: Tensor, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """The surface values = level of a lattice of which only some blocks are known, as one mesh.

    A block of n^3 cells holds (n + 1)^3 values, the last of each axis shared with the next block, where both must be
    equal to the bit. The mesh is that of ``marching_cubes`` on the dense lattice, but for the order of vertices and
    triangles, and cut open where a block is missing.

    Args:
        values: (B, n + 1, n + 1, n + 1) float32 or float64.
        block_coordinates: (B, 3) integers, distinct, within ±2^20; block c covers index coordinates n c to n (c + 1).
        level: where to cut.

    Returns:
        vertices (V, 3) and faces (F, 3) as in ``marching_cubes``, in index coordinates of the whole lattice. The
        gradient of a shared vertex goes to one of the blocks that share it.

    Raises:
        ValueError: wrong shapes, NaN, repeated coordinates, or blocks that disagree about a shared value's sign.
    """
    name = "marching_cubes_blocks"
    check_shape(name, "values", values, (None, None, None, None))
    side = values.shape[1]
    if side < 2 or values.shape[1:] != (side, side, side):
        raise ValueError(
            f"{name}: values: expected shape (B, n + 1, n + 1, n + 1) with n >= 1, got {tuple(values.shape)}; "
            "pass cubic blocks"
        )
    _check(name, values)
    check_shape(name, "block_coordinates", block_coordinates, (len(values), 3))
    check_dtype(name, "block_coordinates", block_coordinates, torch.int64, torch.int32)
    check_device(name, values=values, block_coordinates=block_coordinates)
    vertices, faces, _ = _marching_cubes_blocks(values, block_coordinates, float(level), values.requires_grad)
    return vertices, faces


def _check(op: str, values: Tensor) -> None:
    check_dtype(op, "values", values, *FLOATS)
    if values.shape[-1] > MAX_Z:
        raise ValueError(
            f"{op}: values: expected at most {MAX_Z} along the last axis, got {values.shape[-1]}; cut it into blocks"
        )


class _Lattice:
    """Bits and row numbers of (B, X, Y, Z) values: what the second launch needs from the first."""

    def __init__(self, op: str, values: Tensor, level: float):
        shape = B, X, Y, Z = values.shape
        rows = B * X * Y
        new = values.new_empty
        self.values, self.level, self.shape, self.rows = values, level, shape, rows
        self.gpu, self.table = on_gpu(values), _table(values.device)
        self.bits = new(rows, (Z + 63) // 64, dtype=torch.int64)
        self.vertex_base, self.face_base = values.new_zeros(2, rows + 1, dtype=torch.int32)
        self.kinds = new(rows, dtype=torch.int32)
        self.vertices, self.faces, has_nan = self._count_on_gpu() if self.gpu else self._count()
        if has_nan:
            where = values.isnan().nonzero()[0].tolist()
            index = tuple(where[1:] if op == "marching_cubes" else where)
            raise ValueError(
                f"{op}: values: expected numbers, got NaN at index {index}; replace them, for "
                "instance by values.nan_to_num(nan=...)"
            )
        if max(self.vertices, self.faces) >= 2**31:
            raise ValueError(
                f"{op}: values: expected fewer than 2^31 vertices and triangles, got {self.vertices} and {self.faces}; "
                "lower the resolution or extract it in parts"
            )

    def _count(self) -> list[int]:
        totals = torch.zeros(3, dtype=torch.int64)
        rows = (self.bits, self.vertex_base, self.face_base, self.kinds)
        launch(
            "marching_cubes_count", self.values.dtype, self.values, *self.shape, self.level, self.table, *rows, totals
        )
        return totals.tolist()

    def _count_on_gpu(self) -> list[int]:
        nan = self.kinds.new_zeros(1)
        launch(
            "marching_cubes_bits",
            self.values.dtype,
            self.values,
            self.bits,
            nan,
            self.bits.numel(),
            self.shape[-1],
            self.level,
        )
        counts = (self.vertex_base[1:], self.face_base[1:])
        launch("marching_cubes_counts", None, self.bits, self.rows, *self.shape, self.table, *counts, self.kinds)
        totals = torch.stack([*(c.sum(dtype=torch.int64) for c in counts), nan[0].long()])
        for count in counts:
            count.cumsum_(0)
        return totals.tolist()  # which are waited for

    def write(
        self, vertices: int, coordinates: Tensor | None, merged: Tensor | tuple[Tensor, Tensor] | None, with_edges: bool
    ):
        """merged: as the merging leaves it, see the kernels; on a GPU, that and the final number of each vertex."""
        new = self.values.new_empty
        out, faces = new(vertices, 3), new(self.faces, 3, dtype=torch.int32)
        edges = new(vertices if with_edges else 0, dtype=torch.int64)
        edges_out = edges if with_edges else None
        if self.gpu:
            owned, final = (None, None) if merged is None else merged
            where, rows = (self.rows, *self.shape), (self.vertex_base, self.face_base, self.kinds)
            found = (self.vertex_base, coordinates, owned, out, edges_out)
            launch("marching_cubes_vertices", self.values.dtype, self.values, self.bits, *where, self.level, *found)
            launch("marching_cubes_faces", None, self.bits, *where, self.table, *rows, final, faces)
            return out, faces, edges
        assert not isinstance(merged, tuple)
        lattice = (self.bits, self.vertex_base, self.face_base, self.kinds)
        to = (coordinates, merged, out, faces, edges_out)
        launch(
            "marching_cubes_write", self.values.dtype, self.values, *self.shape, self.level, self.table, *lattice, *to
        )
        return out, faces, edges


@functools.lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    return table().to(device)


def _nothing(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    new = values.new_empty
    return new(0, 3), new(0, 3, dtype=torch.int32), new(0, dtype=torch.int64)


@op("marching_cubes")
def _marching_cubes(values: Tensor, level: float, with_edges: bool) -> tuple[Tensor, Tensor, Tensor]:
    if min(values.shape) < 2:
        return _nothing(values)
    lattice = _Lattice("marching_cubes", values.contiguous()[None], level)
    return lattice.write(lattice.vertices, None, None, with_edges)


@op("marching_cubes_blocks")
def _marching_cubes_blocks(
    values: Tensor, block_coordinates: Tensor, level: float, with_edges: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if len(values) == 0:
        return _nothing(values)
    coordinates = block_coordinates.to(torch.int64).contiguous()
    neighbors = _neighbors(coordinates)
    lattice = _Lattice("marching_cubes_blocks", values.contiguous(), level)
    merged, owned, disagree = (_merge_on_gpu if lattice.gpu else _merge)(lattice, neighbors)
    if disagree:
        raise ValueError(
            "marching_cubes_blocks: values: expected equal values where blocks meet, got values on different sides of "
            "the level; evaluate shared points once and copy them"
        )
    return lattice.write(owned, coordinates, merged, with_edges)


def _merge(lattice: _Lattice, neighbors: Tensor) -> tuple[Tensor, int, int]:
    merged = torch.empty(lattice.vertices, dtype=torch.int32)
    block_base, totals = torch.empty(len(neighbors), dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    rows = (lattice.bits, lattice.vertex_base, lattice.kinds)
    sizes = (len(neighbors), lattice.shape[-1] - 1)
    launch("marching_cubes_merge", None, *sizes, neighbors, *rows, merged, block_base, totals)
    return merged, *totals.tolist()


def _merge_on_gpu(lattice: _Lattice, neighbors: Tensor) -> tuple[tuple[Tensor, Tensor], int, int]:
    owners, disagree = lattice.kinds.new_empty(lattice.vertices), lattice.kinds.new_zeros(1)
    rows = (neighbors, lattice.vertex_base, lattice.kinds)
    sizes = (lattice.rows, len(neighbors), lattice.shape[-1])
    launch("marching_cubes_owners", None, lattice.bits, *sizes, *rows, owners, disagree)
    own = owners == 0
    numbers = own.cumsum(0, dtype=torch.int32) - 1
    owned = numbers.where(own, -1)
    final = owned.where(own, owned[-1 - owners.long()]) if lattice.vertices else owned
    return (owned, final), *torch.stack([own.sum(), disagree[0].long()]).tolist()


def _neighbors(coordinates: Tensor) -> Tensor:
    """(B, 3) -> (B, 27) int32, the block at offset (dx, dy, dz) - 1 in place 9 dx + 3 dy + dz; -1: there is none."""
    if (largest := int(coordinates.abs().max())) >= _PACK:
        raise ValueError(
            f"marching_cubes_blocks: block_coordinates: expected within ±2^20, got up to {largest}; subtract an offset"
        )
    unit = coordinates.new_tensor([1 << 42, 1 << 21, 1])
    keys, order = ((coordinates + _PACK) * unit).sum(1).sort()
    if (keys[1:] == keys[:-1]).any():
        again = coordinates[order[1:][keys[1:] == keys[:-1]][0]].tolist()
        raise ValueError(
            f"marching_cubes_blocks: block_coordinates: expected distinct blocks, got {again} twice; drop one"
        )
    neighbors = keys.new_empty(len(keys), 27, dtype=torch.int32)
    for i in range(27):
        offset = ((unit.new_tensor([i // 9, i // 3 % 3, i % 3]) - 1) * unit).sum()
        at = torch.searchsorted(keys, keys + offset).clamp_(max=len(keys) - 1)
        neighbors[order, i] = torch.where(keys[at] == keys + offset, order[at], -1).int()
    return neighbors


def _fake(values, level, with_edges):
    context = torch.library.get_ctx()
    V, F = context.new_dynamic_size(), context.new_dynamic_size()
    edges = values.new_empty(V if with_edges else 0, dtype=torch.int64)
    return values.new_empty(V, 3), values.new_empty(F, 3, dtype=torch.int32), edges


_marching_cubes.register_fake(_fake)
_marching_cubes_blocks.register_fake(
    lambda values, block_coordinates, level, with_edges: _fake(values, level, with_edges)
)


def _setup_context(ctx, inputs, output):
    values, ctx.level = inputs[0], inputs[-2]
    ctx.save_for_backward(values, output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _grad_values(ctx, grad_vertices: Tensor) -> Tensor:
    """t = (level - a) / (b - a): dt/da = -(1 - t) / (b - a), dt/db = -t / (b - a)."""
    values, edges = ctx.saved_tensors
    Y, Z = values.shape[-2:]
    axis, low = edges % 3, edges // 3
    high = low + edges.new_tensor([Y * Z, Z, 1])[axis]
    flat = values.reshape(-1)
    a, b = flat[low], flat[high]
    t, scale = (ctx.level - a) / (b - a), -grad_vertices.gather(1, axis[:, None])[:, 0] / (b - a)
    known = t.isfinite() & scale.isfinite()  # where an end is infinite, nothing moves
    grad = torch.zeros_like(flat)
    grad.index_add_(0, low, torch.where(known, (1 - t) * scale, 0))
    grad.index_add_(0, high, torch.where(known, t * scale, 0))
    return grad.view(values.shape)


def _backward(ctx, grad_vertices, grad_faces, grad_edges):
    return _grad_values(ctx, grad_vertices), None, None


def _backward_blocks(ctx, grad_vertices, grad_faces, grad_edges):
    return _grad_values(ctx, grad_vertices), None, None, None


_marching_cubes.register_autograd(_backward, setup_context=_setup_context)
_marching_cubes_blocks.register_autograd(_backward_blocks, setup_context=_setup_context)
