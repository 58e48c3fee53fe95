"""The fused perceptron on a GPU's tensor cores, for ``mlp(..., bfloat16=True)`` and ``float16=True``: ``mlp_bf16.cu``.

Kernels are compiled for the sizes of a network on first use (about a second). Weights are rounded and laid out once per
forward pass, for both directions; the backward pass computes activations again from the inputs: nothing else is kept.
A network whose activations and sums do not fit in a thread's registers is several, one after the other (``segments``):
what lies between them goes through memory, which costs less than spilled registers and compiles in a third of the time.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .native import Table, launch
from .nvrtc import Constants

MAX_LAYERS = 5
_WARPS = 8  # of a block of the backward pass
_BLOCK_ROWS = 16 * _WARPS
_MAX_TARGETS = 10  # of kernels/add_up.cu
REGISTERS = 168  # about what of a thread's 255 may hold activations, gradients and sums, without spills


def tiles(channels: int) -> int:
    """Fragments of 16 channels."""
    return -(-channels // 16)


def constants(dims: Sequence[int], biased: bool, half: torch.dtype | None = None) -> Constants:
    """What the kernels are compiled for. half: what operands are rounded to, float16 or (also for None) bfloat16."""
    sizes = [*dims, *[0] * (MAX_LAYERS + 1 - len(dims))]
    return (
        ("PF_LAYERS", len(dims) - 1),
        *((f"PF_D{index}", size) for index, size in enumerate(sizes)),
        ("PF_BIASED", int(biased)),
        ("PF_ROWS", rows(dims)),
        *((("PF_HALF", "Float16"),) if half == torch.float16 else ()),
    )


def rows(dims: Sequence[int]) -> int:
    """Samples of a warp in the forward pass: its registers hold all activations of a layer and of the next."""
    return 32 if max(dims) <= 64 else 16


def registers(dims: Sequence[int]) -> int:
    """About what a thread of the backward pass holds: activations, two layers' gradients, its share of the sums."""
    width = [tiles(d) for d in dims]
    return 8 * max(width) + sum(4 * i + 8 * -(-i * o // _WARPS) for i, o in itertools.pairwise(width))


def segments(dims: Sequence[int]) -> list[tuple[int, int]]:
    """Layers (from, to) that one kernel takes, the longest runs from the first on whose registers suffice."""
    found, begin = [], 0
    for end in range(1, len(dims)):
        if end + 1 == len(dims) or registers(dims[begin : end + 2]) > REGISTERS:
            found.append((begin, end))
            begin = end
    return found


def packed_size(dims: Sequence[int]) -> int:
    """32-bit words of the weights of a network, for both directions."""
    return 2 * 128 * sum(tiles(i) * tiles(o) for i, o in itertools.pairwise(dims))


def aligned(tensor: Tensor) -> Tensor:
    """The same, at an address that is read four numbers at a time."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def forward(
    inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], packed: Tensor, half: torch.dtype | None
) -> Tensor:
    """-> outputs; fills ``packed`` (int32, ``packed_size``)."""
    dims = _dims(inputs, weights)
    build = constants(dims, bool(biases), half)
    outputs = inputs.new_empty(len(inputs), dims[-1])
    launch("mlp_pack", None, Table(weights, MAX_LAYERS), packed, packed.numel() // 4, constants=build)
    warps = -(-len(inputs) // rows(dims))
    tensors = (aligned(inputs), packed, Table(biases, MAX_LAYERS), outputs)
    launch("mlp_tensor", None, *tensors, warps, len(inputs), constants=build)
    return outputs


def backward(
    inputs: Tensor,
    grad_outputs: Tensor,
    packed: Tensor,
    dims: Sequence[int],
    biases: Sequence[Tensor],
    half: torch.dtype | None,
    grad_inputs: Tensor | None,
    grads: Sequence[Tensor | None],
) -> None:
    """Fills grad_inputs (or None) and ``grads``: of the weights, then of the biases where there are some."""
    inputs, grad_outputs = aligned(inputs), aligned(grad_outputs)
    build = constants(dims, bool(biases), half)
    blocks = backward_blocks(len(inputs), inputs.device)
    targets, size = sum_targets([dims], bool(biases), grads)
    sums = None if all(g is None for g in grads) else inputs.new_empty(blocks, size)
    tensors = (inputs, grad_outputs, packed, Table(biases, MAX_LAYERS), grad_inputs, sums)
    launch("mlp_tensor_backward", None, *tensors, blocks, len(inputs), constants=build)
    if sums is not None:
        add_up(sums, targets)


def backward_blocks(samples: int, device: torch.device) -> int:
    """Blocks of a backward pass: each goes over many samples and leaves its sums once."""
    return min(-(-samples // _BLOCK_ROWS), _resident_blocks(device))


Targets = list[Tensor | int | None]  # for each gradient: its place in the sums of a block, its size, itself


def sum_targets(networks: Sequence[Sequence[int]], biased: bool, grads: Sequence[Tensor | None]) -> tuple[Targets, int]:
    """Where gradients lie in the sums of a block, networks by layers, weights and biases; and the size of it all.

    grads: the weights of each network, then its biases where there are some.
    """
    entries: Targets = []
    place, given = 0, iter(grads)
    for dims in networks:
        layers = len(dims) - 1
        own = list(itertools.islice(given, layers * (2 if biased else 1)))
        for layer in range(layers):
            sizes = (dims[layer] * dims[layer + 1], dims[layer + 1])
            for size, grad in zip(sizes, own[layer::layers], strict=False):
                entries += [place, size, grad]
                place += -(-size // 4) * 4
    return entries, place


def add_up(sums: Tensor, targets: Targets) -> None:
    """Fill all gradients from the sums (blocks, size)."""
    blocks, size = sums.shape
    table = Table(targets, 3 * _MAX_TARGETS)
    launch("add_up", None, sums, table, len(targets) // 3, size, blocks, -(-size // 32))


def _dims(inputs: Tensor, weights: Sequence[Tensor]) -> list[int]:
    return [inputs.shape[1], *(w.shape[0] for w in weights)]


@functools.cache
def _resident_blocks(device: torch.device) -> int:
    """Blocks of the backward pass at a time: each writes its sums once. Few for the emulator, so that each has work."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
