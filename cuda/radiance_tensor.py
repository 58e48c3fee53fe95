"""The fused radiance field on a GPU's tensor cores, for ``radiance(..., bfloat16=True)``: ``kernels/radiance_bf16.cu``.

One kernel from points to densities and colours, one for densities alone, one back to the features, whose gradient
``hash_encode``'s own kernel adds to the table. They are compiled for a field's sizes on first use (about two seconds).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .hash_encoding import _levels
from .mlp_tensor import (
    MAX_LAYERS,
    REGISTERS,
    add_up,
    aligned,
    backward_blocks,
    packed_size,
    registers,
    sum_targets,
    tiles,
)
from .native import Table, launch
from .nvrtc import Constants

_TABLES = {torch.float32: "float", torch.bfloat16: "BFloat16", torch.float16: "Float16"}


def fits(density: Sequence[Tensor], color: Sequence[Tensor]) -> bool:
    """Whether a thread's registers hold both networks on the way back; if not, they are kernels of their own."""
    networks = [dims for dims in (_dims(density), _color_dims(density, color)) if dims]
    width = max(map(max, networks))
    return sum(registers(dims) - 8 * tiles(max(dims)) for dims in networks) + 8 * tiles(width) <= REGISTERS


def forward(
    points: Tensor,
    extras: Tensor,
    source: Tensor,
    numbers: Sequence[int],
    density: Sequence[Tensor],
    color: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> None:
    """Fills sigmas (N,), colors (N, 3), features (as ``new_kept`` makes them; where empty, not) and packed weights."""
    sigmas, colors, kept, packed = outputs
    build, samples = constants(source.dtype, numbers, density, color), len(points)
    _pack(density, color, packed, build)
    levels = _levels(tuple(numbers), points.device)
    tensors = (points, source, levels, aligned(extras), packed, sigmas, colors, kept if kept.numel() else None)
    launch("radiance_tensor", None, *tensors, -(-samples // 16), samples, constants=build)


def densities(
    points: Tensor, source: Tensor, numbers: Sequence[int], density: Sequence[Tensor], sigmas: Tensor
) -> None:
    """Fills sigmas (N,)."""
    build, samples = constants(source.dtype, numbers, density, ()), len(points)
    levels = _levels(tuple(numbers), points.device)
    packed = new_packed(points, density, ())
    _pack(density, (), packed, build)
    tensors = (points, source, levels, packed, sigmas)
    launch("radiance_tensor_density", None, *tensors, -(-samples // 16), samples, constants=build)


def backward(
    extras: Tensor,
    outputs: Sequence[Tensor],
    grad_sigmas: Tensor,
    grad_colors: Tensor,
    density: Sequence[Tensor],
    color: Sequence[Tensor],
    grads: Sequence[Tensor],
    build: Constants,
) -> None:
    """Fills ``grads``: of the features (N, L F), of all weights. outputs, build: what ``forward`` filled, its own."""
    _, colors, kept, packed = outputs
    samples, blocks = len(extras), backward_blocks(len(extras), extras.device)
    targets, size = sum_targets([_dims(density), _dims(color)], False, grads[1:])
    sums = extras.new_empty(blocks, size)
    tensors = (aligned(extras), kept, colors, grad_sigmas, grad_colors, packed, grads[0], sums)
    launch("radiance_tensor_backward", None, *tensors, blocks, samples, constants=build)
    add_up(sums, targets)


def constants(
    source: torch.dtype, numbers: Sequence[int], density: Sequence[Tensor], color: Sequence[Tensor]
) -> Constants:
    """What the kernels are compiled for. source: what the table that is read holds; numbers: ``HashLayout._numbers``;
    no ``color``: for densities alone."""
    return sizes(_TABLES[source], (len(numbers) - 2) // 4, numbers[1], _dims(density), _dims(color))


def sizes(table: str, levels: int, features: int, density: Sequence[int], color: Sequence[int]) -> Constants:
    """The same from the networks' sizes, inputs first, and the table's type as kernels call it."""
    return (
        ("PF_LEVELS", levels),
        ("PF_DIMENSIONS", 3),
        ("PF_FEATURES", features),
        ("PF_TABLE", table),
        ("PF_DENSITY_LAYERS", len(density) - 1),
        ("PF_DENSITY", ",".join(map(str, density))),
        ("PF_COLOR_LAYERS", max(len(color) - 1, 0)),
        ("PF_COLOR", ",".join(map(str, color or (0,)))),
        ("PF_EXTRAS", color[0] - density[-1] if color else 0),
    )


def new_kept(points: Tensor, channels: int, keep: bool) -> Tensor:
    """Room for the features of all points, as operands; empty unless ``keep``."""
    return points.new_empty((points.shape[0] + 15) // 16 * tiles(channels) * 128 if keep else 0, dtype=torch.int32)


def new_packed(points: Tensor, density: Sequence[Tensor], color: Sequence[Tensor]) -> Tensor:
    """Room for the weights of both networks, as operands of both directions."""
    return points.new_empty(packed_size(_dims(density)) + packed_size(_color_dims(density, color)), dtype=torch.int32)


def _pack(density: Sequence[Tensor], color: Sequence[Tensor], packed: Tensor, build: Constants) -> None:
    tables = (Table(weights, MAX_LAYERS) for weights in (density, color))
    launch("radiance_pack", None, *tables, packed, packed.numel() // 4, constants=build)


def _dims(weights: Sequence[Tensor]) -> list[int]:
    return [weights[0].shape[1], *(w.shape[0] for w in weights)] if weights else []


def _color_dims(density: Sequence[Tensor], color: Sequence[Tensor]) -> list[int]:
    """The colour network as it is held: extras and the density network's outputs fill sixteens of their own."""
    inputs, width = color[0].shape[1] if color else 0, density[-1].shape[0]
    return [16 * (tiles(inputs - width) + tiles(width)), *(w.shape[0] for w in color)] if color else []
