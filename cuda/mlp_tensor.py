"""The fused perceptron on a GPU's tensor cores, for ``mlp(..., bfloat16=True)``. Kernels: ``kernels/mlp_bf16.cu``.

Kernels are compiled for the sizes of a network on first use (about a second). Weights are rounded and laid out once per
forward pass, for both directions; the backward pass computes activations again from the inputs: nothing else is kept.
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
_OWN_SUMS = 96  # registers that a thread may spend on the sums of weights' gradients; more are left to another pass


def tiles(channels: int) -> int:
    """Fragments of 16 channels."""
    return -(-channels // 16)


def constants(dims: Sequence[int], biased: bool, layers: tuple[int, int]) -> Constants:
    """What the kernels are compiled for: the sizes, and the layers whose gradients a backward pass adds up."""
    sizes = [*dims, *[0] * (MAX_LAYERS + 1 - len(dims))]
    return (
        ("PF_LAYERS", len(dims) - 1),
        *((f"PF_D{index}", size) for index, size in enumerate(sizes)),
        ("PF_BIASED", int(biased)),
        ("PF_ROWS", rows(dims)),
        ("PF_FROM", layers[0]),
        ("PF_TO", layers[1]),
    )


def rows(dims: Sequence[int]) -> int:
    """Samples of a warp in the forward pass: its registers hold all activations of a layer and of the next."""
    return 32 if max(dims) <= 64 else 16


def passes(dims: Sequence[int]) -> list[tuple[int, int]]:
    """Layers (from, to) whose sums fit in registers together; one backward pass for each."""
    found, end, used = [], len(dims) - 1, 0
    for layer in reversed(range(len(dims) - 1)):
        own = 8 * -(-tiles(dims[layer]) * tiles(dims[layer + 1]) // _WARPS)
        if used and used + own > _OWN_SUMS:
            found.append((layer + 1, end))
            end, used = layer + 1, 0
        used += own
    return [*found, (0, end)]


def packed_size(dims: Sequence[int]) -> int:
    """32-bit words of the weights of a network, for both directions."""
    return 2 * 128 * sum(tiles(i) * tiles(o) for i, o in itertools.pairwise(dims))


def aligned(tensor: Tensor) -> Tensor:
    """The same, at an address that is read four numbers at a time."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def forward(inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], packed: Tensor) -> Tensor:
    """-> outputs; fills ``packed`` (int32, ``packed_size``)."""
    dims = _dims(inputs, weights)
    build = constants(dims, bool(biases), passes(dims)[0])
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
    grad_inputs: Tensor | None,
    grads: Sequence[Tensor | None],
) -> None:
    """Fills grad_inputs (or None) and ``grads``: of the weights, then of the biases where there are some."""
    layers, samples = len(dims) - 1, len(inputs)
    inputs, grad_outputs, table = aligned(inputs), aligned(grad_outputs), Table(biases, MAX_LAYERS)
    for begin, end in passes(dims):
        wanted = [grads[i] for i in (*range(begin, end), *(range(layers + begin, layers + end) if biases else ()))]
        if all(g is None for g in wanted) and grad_inputs is None:
            continue
        build = constants(dims, bool(biases), (begin, end))
        blocks = min(-(-samples // _BLOCK_ROWS), _resident_blocks(inputs.device))
        targets, size = _targets(dims, begin, end, wanted)
        sums = None if all(g is None for g in wanted) else inputs.new_empty(blocks, size)
        tensors = (inputs, grad_outputs, packed, table, grad_inputs, sums)
        launch("mlp_tensor_backward", None, *tensors, blocks, samples, constants=build)
        grad_inputs = None  # the first pass has them
        if sums is not None:
            launch("mlp_add_up", None, sums, *targets, size, blocks, -(-size // 32), constants=build)


def _targets(
    dims: Sequence[int], begin: int, end: int, wanted: Sequence[Tensor | None]
) -> tuple[tuple[Table, int], int]:
    """Where each gradient lies in the sums of a block, weights and biases by layers: (table, entries), size."""
    entries: list[Tensor | int | None] = []
    place = 0
    for layer in range(begin, end):
        sizes = (dims[layer] * dims[layer + 1], dims[layer + 1])
        for size, grad in zip(sizes, wanted[layer - begin :: end - begin], strict=False):
            entries += [place, size, grad]
            place += -(-size // 4) * 4
    return (Table(entries, 6 * MAX_LAYERS), len(entries) // 3), place


def _dims(inputs: Tensor, weights: Sequence[Tensor]) -> list[int]:
    return [inputs.shape[1], *(w.shape[0] for w in weights)]


@functools.cache
def _resident_blocks(device: torch.device) -> int:
    """Blocks of the backward pass at a time: each writes its sums once. Few for the emulator, so that each has work."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
