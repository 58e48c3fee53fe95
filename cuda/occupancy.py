"""What an occupancy grid is made of: cells to bits, bits to jumps, running maxima. ``kernels/occupancy_grid.cu``.

Cells of a cascade are in plain order, z fastest, cascades one after the other; ``bits`` are (cascades,
(resolution / 4)^3) int64, one word per brick of 4x4x4 cells.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .checks import check_device, check_dtype, check_range, check_shape
from .native import launch, on_gpu
from .ops import op


def _check_resolution(op: str, resolution: int) -> None:
    check_range(op, "resolution", resolution, 4, 1024)
    if resolution % 4:
        raise ValueError(f"{op}: resolution: expected a multiple of 4, got {resolution}; round it up")


def pack_bits(occupied: Tensor, resolution: int) -> Tensor:
    """occupied (cascades, resolution^3) bool or uint8 0/1 -> (cascades, (resolution / 4)^3) int64.

    Cell (x, y, z) is bit 16 (x % 4) + 4 (y % 4) + z % 4 of its brick's word.
    """
    _check_resolution("pack_bits", resolution)
    check_dtype("pack_bits", "occupied", occupied, torch.bool, torch.uint8)
    check_shape("pack_bits", "occupied", occupied, (None, resolution**3))
    return _pack_bits(occupied, resolution)


def pack_densities(densities: Tensor, threshold: float, resolution: int) -> Tensor:
    """``pack_bits(densities >= threshold)``, in one pass; densities (cascades, resolution^3) float32."""
    _check_resolution("pack_densities", resolution)
    check_dtype("pack_densities", "densities", densities, torch.float32)
    check_shape("pack_densities", "densities", densities, (None, resolution**3))
    return _pack_densities(densities, threshold, resolution)


def brick_states(bits: Tensor, resolution: int) -> Tensor:
    """What ``march_grid`` jumps by: bits (cascades, (resolution / 4)^3) -> (bits.numel() + 4,) uint8.

    Per brick 0 (some cells occupied), 129 (all), or the distance in bricks (at most 15) to the nearest that has
    anything in it or belongs to another cascade; and four bytes of padding.
    """
    _check_resolution("brick_states", resolution)
    check_dtype("brick_states", "bits", bits, torch.int64)
    check_shape("brick_states", "bits", bits, (None, (resolution // 4) ** 3))
    return _brick_states(bits, resolution)


def occupied_cells(bits: Tensor, resolution: int) -> Tensor:
    """bits (cascades, (resolution / 4)^3) -> (N,) int32: the numbers of all occupied cells, by rows of bricks."""
    _check_resolution("occupied_cells", resolution)
    check_dtype("occupied_cells", "bits", bits, torch.int64)
    check_shape("occupied_cells", "bits", bits, (None, (resolution // 4) ** 3))
    return _occupied_cells(bits, resolution)


def cell_points(cells: Tensor, offsets: Tensor, resolution: int, half: float) -> Tensor:
    """cells (N,) int32, offsets (N, 3) in [0, 1) float32 -> points (N, 3), at these places within the cells."""
    check_dtype("cell_points", "cells", cells, torch.int32)
    check_shape("cell_points", "cells", cells, (None,))
    check_dtype("cell_points", "offsets", offsets, torch.float32)
    check_shape("cell_points", "offsets", offsets, (cells.shape[0], 3))
    check_device("cell_points", cells=cells, offsets=offsets)
    return _cell_points(cells, offsets, resolution, half)


def locate_cells(points: Tensor, resolution: int, cascades: int, half: float) -> Tensor:
    """points (N, 3) float32 -> (N,) int32: the cell of each in the finest cascade around it; beyond: on the border."""
    check_dtype("locate_cells", "points", points, torch.float32)
    check_shape("locate_cells", "points", points, (None, 3))
    check_range("locate_cells", "cascades", cascades, 1, 16)
    return _locate_cells(points, resolution, cascades, half)


def raise_densities(densities: Tensor, cells: Tensor, values: Tensor, decay: float) -> None:
    """In place: densities[cell] = max(decay densities[cell], value); negative ones stay as they are.

    A cell that is listed n times holds the largest of its values; it fades n times, in order, on a CPU, once on a GPU.
    densities (*) float32; cells (N,) int32, which must be valid; values (N,) float32.
    """
    check_dtype("raise_densities", "densities", densities, torch.float32)
    check_dtype("raise_densities", "cells", cells, torch.int32)
    check_shape("raise_densities", "cells", cells, (None,))
    check_dtype("raise_densities", "values", values, torch.float32)
    check_shape("raise_densities", "values", values, (cells.shape[0],))
    check_device("raise_densities", densities=densities, cells=cells, values=values)
    _raise_densities(densities, cells, values, decay)


def mean_density(densities: Tensor) -> float:
    """The mean of those that are not negative; 0 if there are none."""
    check_dtype("mean_density", "densities", densities, torch.float32)
    if on_gpu(densities):
        seen = densities >= 0
        total, count = torch.stack(
            [densities.where(seen, 0).sum(dtype=torch.float64), seen.sum(dtype=torch.float64)]
        ).tolist()
        return total / count if count else 0.0
    sums = (ctypes.c_double * 2)()
    launch("density_sum", None, densities, ctypes.addressof(sums), densities.numel())
    return sums[0] / sums[1] if sums[1] else 0.0


@op("pack_bits")
def _pack_bits(occupied: Tensor, resolution: int) -> Tensor:
    words = occupied.new_empty(len(occupied), (resolution // 4) ** 3, dtype=torch.int64)
    launch("pack_bits", None, occupied.contiguous(), words, words.numel(), resolution)
    return words


@_pack_bits.register_fake
def _(occupied, resolution):
    return occupied.new_empty(occupied.shape[0], (resolution // 4) ** 3, dtype=torch.int64)


@op("pack_densities")
def _pack_densities(densities: Tensor, threshold: float, resolution: int) -> Tensor:
    words = densities.new_empty(len(densities), (resolution // 4) ** 3, dtype=torch.int64)
    launch("pack_densities", None, densities.contiguous(), threshold, words, words.numel(), resolution)
    return words


@_pack_densities.register_fake
def _(densities, threshold, resolution):
    return densities.new_empty(densities.shape[0], (resolution // 4) ** 3, dtype=torch.int64)


@op("brick_states")
def _brick_states(bits: Tensor, resolution: int) -> Tensor:
    bits = bits.contiguous()
    states = bits.new_zeros(bits.numel() + 4, dtype=torch.uint8)
    if on_gpu(bits):
        along_z, along_y = states.new_empty(2, bits.numel())
        count, bricks = bits.numel(), resolution // 4
        launch("brick_distances_z", None, bits, along_z, count, bricks, len(bits))
        launch("brick_distances_y", None, along_z, along_y, count, bricks)
        launch("brick_states", None, along_y, bits, states, count, bricks)
    else:
        launch("brick_states", None, bits, states, len(bits), resolution)
    return states


@_brick_states.register_fake
def _(bits, resolution):
    return bits.new_empty(bits.numel() + 4, dtype=torch.uint8)


@op("occupied_cells")
def _occupied_cells(bits: Tensor, resolution: int) -> Tensor:
    bits, bricks = bits.contiguous(), resolution // 4
    rows = len(bits) * bricks * bricks
    offsets = bits.new_zeros(rows + 1)
    launch("count_bits", None, bits, offsets[1:], rows, bricks)
    offsets[1:].cumsum_(0)
    cells = bits.new_empty(int(offsets[-1]), dtype=torch.int32)  # which is waited for
    launch("list_bits", None, bits, offsets, cells, rows, bricks)
    return cells


@_occupied_cells.register_fake
def _(bits, resolution):
    return bits.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int32)


@op("cell_points")
def _cell_points(cells: Tensor, offsets: Tensor, resolution: int, half: float) -> Tensor:
    points = torch.empty_like(offsets, memory_format=torch.contiguous_format)
    launch("cell_points", None, cells.contiguous(), offsets.contiguous(), points, len(cells), resolution, half)
    return points


@_cell_points.register_fake
def _(cells, offsets, resolution, half):
    return torch.empty_like(offsets, memory_format=torch.contiguous_format)


@op("locate_cells")
def _locate_cells(points: Tensor, resolution: int, cascades: int, half: float) -> Tensor:
    cells = points.new_empty(len(points), dtype=torch.int32)
    launch("locate_cells", None, points.contiguous(), cells, len(points), cascades, resolution, half)
    return cells


@_locate_cells.register_fake
def _(points, resolution, cascades, half):
    return points.new_empty(points.shape[0], dtype=torch.int32)


@op("raise_densities", mutates=("densities",))
def _raise_densities(densities: Tensor, cells: Tensor, values: Tensor, decay: float) -> None:
    cells, values, count = cells.contiguous(), values.contiguous(), len(cells)
    if on_gpu(densities):
        faded = torch.empty_like(values)
        launch("read_densities", None, densities, cells, decay, faded, count)
        launch("fade_densities", None, densities, cells, faded, count)
        launch("raise_densities", None, densities, cells, values, faded, count)
    else:
        launch("raise_densities", None, densities, cells, values, decay, count)


@_raise_densities.register_fake
def _(densities, cells, values, decay):
    return None
