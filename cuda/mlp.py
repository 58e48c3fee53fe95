"""Fused multilayer perceptron: ``mlp(inputs, weights, biases)``. Kernels: ``kernels/mlp.cu``, ``kernels/mlp_bf16.cu``.

Of the hidden layers the deepest are kept for the backward pass, as many as fit in ``SAVED_BYTES`` and have at least
``SAVED_INPUTS`` inputs; the others are computed again, tile by tile in cache: with fewer inputs that costs less than
memory does. Memory stays bounded whatever N is, and pages stay warm: what the allocator returns to the system after
each step (beyond 32 MiB) costs more to write to than the layers cost to compute.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import mlp_tensor
from .checks import FLOATS, check_device, check_dtype, check_range, check_shape
from .memory import new_empty
from .mlp_tensor import MAX_LAYERS  # products: 4 hidden layers and the output
from .native import has_bfloat16, launch, on_gpu
from .ops import op

SAVED_BYTES = 24 << 20
SAVED_INPUTS = 48  # measured between 32 (recomputing is 3 % faster, forward + backward) and 64 (keeping is 6 %)
_NONE = (None,) * MAX_LAYERS


def mlp(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    *,
    bfloat16: bool = False,
    float16: bool = False,
) -> Tensor:
    """A multilayer perceptron with ReLU between its layers and a linear output, in one kernel.

    Args:
        inputs: (N, C_in) float32 or float64, C_in from 1 to 256.
        weights: 1 to 5 matrices (out, in) as in ``torch.nn.Linear``; hidden widths are multiples of 16 from 16 to 128
            and C_out is from 1 to 128.
        biases: one (out,) per weight, or None for none at all.
        bfloat16: multiply in bfloat16 and sum in float32; the tensors stay float32. Inputs, weights, hidden activations
            and the gradients of every layer's output are rounded to bfloat16 (to nearest, ties to even), biases are
            not. Without AVX512_BF16 the same roundings are followed by float32 products: the same numbers to float32
            accuracy on every machine, but no gain in speed.
        float16: the same with float16 instead, on a GPU only: the CPU's kernels have no such products. Rounding is off
            by 2^-11 of a number at most instead of 2^-8, but the range of what is rounded is small (sums are float32):
            values above 65504 become infinite, below 6e-5 they lose digits in steps of 6e-8, and gradients below half
            such a step vanish. So multiply a loss whose gradients are small, and divide the gradients afterwards.

    On a GPU, bfloat16 and float16 run on tensor cores, all layers in one kernel compiled for the network's sizes (in
    several where they are too wide for its registers). They have no products in full float32: without either the layers
    are torch's own, one after the other (exact, unless torch is told that TF32 will do).

    Returns:
        (N, C_out). Differentiable (once) in inputs, weights and biases; two runs agree to the bit, whatever the number
        of threads.

    Raises:
        ValueError for shapes and devices, TypeError for dtypes, that do not fit the above.

    Source: the layout of the passes after Müller et al., "Real-time Neural Radiance Caching for Path Tracing", 2021
    (fully fused networks); the register blocks after Goto and van de Geijn, "Anatomy of High-Performance Matrix
    Multiplication", 2008.
    """
    half = _half(bfloat16, float16)
    _check(inputs, weights, biases, half)
    if half is not None:
        check_tensor_cores("mlp", inputs, half)
    if on_gpu(inputs) and half is None:
        return _layer_by_layer(inputs, weights, biases or _NONE[: len(weights)])
    if not on_gpu(inputs):
        return _fused(inputs, weights, biases or (), half)
    x = inputs
    for begin, end in mlp_tensor.segments([inputs.shape[1], *(w.shape[0] for w in weights)]):
        x = _fused(x.relu() if begin else x, weights[begin:end], (biases or ())[begin:end], half)
    return x


def _fused(inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], half: torch.dtype | None) -> Tensor:
    tensors = [*weights, *_NONE[len(weights) :], *biases, *_NONE[len(biases) :]]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (inputs, *tensors))
    return _mlp(inputs, *tensors, half, keep)[0]


def _layer_by_layer(inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    x = inputs
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = torch.nn.functional.linear(x.relu() if index else x, weight, bias)
    return x


def _half(bfloat16: bool, float16: bool) -> torch.dtype | None:
    """What operands are rounded to."""
    if bfloat16 and float16:
        raise ValueError("mlp: float16: expected False beside bfloat16=True, got True; choose one of them")
    return torch.bfloat16 if bfloat16 else torch.float16 if float16 else None


def _check(
    inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, half: torch.dtype | None
) -> None:
    check_shape("mlp", "inputs", inputs, (None, None))
    check_dtype("mlp", "inputs", inputs, *(FLOATS[:1] if half is not None else FLOATS))
    _check_layers("mlp", "weights", weights, inputs.shape[1], inputs.dtype)
    named = {f"weights[{i}]": w for i, w in enumerate(weights)}
    check_device("mlp", inputs=inputs, **named, **{f"biases[{i}]": b for i, b in enumerate(biases or ())})
    if biases is None:
        return
    if len(biases) != len(weights):
        raise ValueError(
            f"mlp: biases: expected {len(weights)} of them, one per weight, got {len(biases)}; pass None for none"
        )
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        check_shape("mlp", f"biases[{index}]", bias, (weight.shape[0],))
        check_dtype("mlp", f"biases[{index}]", bias, inputs.dtype)


def check_tensor_cores(op: str, tensor: Tensor, half: torch.dtype) -> None:
    """Raise ValueError where this tensor's device has no products of ``half``: an old GPU; the CPU, of float16."""
    name = str(half).removeprefix("torch.")
    expected = f"{op}: {name}: expected a GPU of compute capability 8.0 or newer"
    if on_gpu(tensor) and not has_bfloat16(tensor):
        found = ".".join(map(str, torch.cuda.get_device_capability(tensor.device)))
        raise ValueError(f"{expected}, got {found}; pass {name}=False")
    if not on_gpu(tensor) and half == torch.float16:
        raise ValueError(f"{expected}, got the CPU, whose kernels have no float16 products; pass bfloat16=True instead")


def _check_layers(op: str, name: str, weights: Sequence[Tensor], width: int, dtype: torch.dtype) -> None:
    check_range(op, f"number of {name}", len(weights), 1, MAX_LAYERS)
    check_range(op, "C_in", width, 1, 256)
    for index, weight in enumerate(weights):
        check_shape(op, f"{name}[{index}]", weight, (None, width))
        check_dtype(op, f"{name}[{index}]", weight, dtype)
        width = weight.shape[0]
        if index == len(weights) - 1:
            check_range(op, "C_out", width, 1, 128)
        elif not 16 <= width <= 128 or width % 16:
            raise ValueError(
                f"{op}: {name}[{index}]: expected a hidden width of 16, 32, ..., 128, got {width}; pad it with zeros"
            )


def _dims(inputs: Tensor, weights: Sequence[Tensor]) -> list[int]:
    dims = [inputs.shape[1], *(w.shape[0] for w in weights)]
    return dims + [0] * (MAX_LAYERS + 1 - len(dims))


def _saved(inputs: Tensor, weights: Sequence[Tensor], half: torch.dtype | None, keep: bool) -> Tensor:
    """What forward leaves for backward: hidden layers, rows in pairs; on a GPU the weights, as they are multiplied."""
    if on_gpu(inputs):
        sizes = mlp_tensor.packed_size([inputs.shape[1], *(w.shape[0] for w in weights)])
        return inputs.new_empty(sizes, dtype=torch.int32)
    dtype = half if half is not None and has_bfloat16() else inputs.dtype
    rows, columns = (inputs.shape[0] + 1) // 2 * 2, 0
    for weight in reversed(weights[:-1] if keep else ()):
        if rows * (columns + weight.shape[0]) * dtype.itemsize > SAVED_BYTES or weight.shape[1] < SAVED_INPUTS:
            break
        columns += weight.shape[0]
    return new_empty(inputs, rows * columns, dtype=dtype)


def _first_saved(saved: Tensor, inputs: Tensor, weights: Sequence[Tensor]) -> int:
    """The hidden layer from which on ``saved`` has them all; the number of layers if it has none."""
    layer, left = len(weights), saved.numel()
    while left > 0:
        layer -= 1
        left -= (inputs.shape[0] + 1) // 2 * 2 * weights[layer - 1].shape[0]
    return layer


def _kernel(name: str, inputs: Tensor, half: torch.dtype | None) -> tuple[str, torch.dtype, int]:
    """On the CPU: the kernel, its suffix, and whether it rounds operands itself. There half is bfloat16 or None."""
    if half is not None and has_bfloat16():
        return name, half, 0
    return name, inputs.dtype, int(half is not None)


@op("mlp")
def _mlp(
    inputs: Tensor,
    w0: Tensor,
    w1: Tensor | None,
    w2: Tensor | None,
    w3: Tensor | None,
    w4: Tensor | None,
    b0: Tensor | None,
    b1: Tensor | None,
    b2: Tensor | None,
    b3: Tensor | None,
    b4: Tensor | None,
    half: torch.dtype | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    inputs = inputs.contiguous()
    weights = [w.contiguous() for w in (w0, w1, w2, w3, w4) if w is not None]
    biases = [b if b is None else b.contiguous() for b in (b0, b1, b2, b3, b4)]
    saved = _saved(inputs, weights, half, keep)
    if on_gpu(inputs):
        return mlp_tensor.forward(inputs, weights, [b for b in biases if b is not None], saved, half), saved
    outputs = new_empty(inputs, inputs.shape[0], weights[-1].shape[0])
    name, dtype, rounded = _kernel("mlp", inputs, half)
    shape = (inputs.shape[0], len(weights), rounded, *_dims(inputs, weights))
    kept = saved, _first_saved(saved, inputs, weights)
    launch(name, dtype, inputs, outputs, *kept, *shape, *weights, *_NONE[len(weights) :], *biases)
    return outputs, saved


@_mlp.register_fake
def _(inputs, w0, w1, w2, w3, w4, b0, b1, b2, b3, b4, half, keep):
    weights = [w for w in (w0, w1, w2, w3, w4) if w is not None]
    return inputs.new_empty(inputs.shape[0], weights[-1].shape[0]), _saved(inputs, weights, half, keep)


@op("mlp_backward")
def _mlp_backward(
    grad_outputs: Tensor,
    saved: Tensor,
    inputs: Tensor,
    parameters: list[Tensor],
    half: torch.dtype | None,
    biased: bool,
    wanted: list[bool],
) -> list[Tensor]:
    """Gradients to inputs, weights and biases; empty tensors where ``wanted`` says no."""
    grad_outputs, inputs = grad_outputs.contiguous(), inputs.contiguous()
    parameters = [p.contiguous() for p in parameters]
    layers = len(parameters) // 2 if biased else len(parameters)
    weights, gap = parameters[:layers], _NONE[layers:]
    biases = [*parameters[layers:], *gap] if biased else _NONE
    grads = [new_empty(t, *t.shape) if w else None for t, w in zip((inputs, *parameters), wanted, strict=True)]
    if on_gpu(inputs):
        dims = _dims(inputs, weights)[: layers + 1]
        mlp_tensor.backward(inputs, grad_outputs, saved, dims, parameters[layers:], half, grads[0], grads[1:])
        return [inputs.new_empty(0) if g is None else g for g in grads]
    grad_biases = [*grads[1 + layers :], *gap] if biased else _NONE
    name, dtype, rounded = _kernel("mlp_backward", inputs, half)
    shape = (inputs.shape[0], layers, rounded, *_dims(inputs, weights))
    kept = saved, _first_saved(saved, inputs, weights)
    launch(
        name,
        dtype,
        inputs,
        grad_outputs,
        *kept,
        *shape,
        *weights,
        *gap,
        *biases,
        grads[0],
        *grads[1 : 1 + layers],
        *gap,
        *grad_biases,
    )
    return [inputs.new_empty(0) if g is None else g for g in grads]


@_mlp_backward.register_fake
def _(grad_outputs, saved, inputs, parameters, half, biased, wanted):
    tensors = zip((inputs, *parameters), wanted, strict=True)
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) if w else t.new_empty(0) for t, w in tensors]


def _setup_context(ctx, inputs, output):
    ctx.half = inputs[-2]
    ctx.layers = sum(w is not None for w in inputs[1 : 1 + MAX_LAYERS])
    ctx.biased = inputs[1 + MAX_LAYERS] is not None
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *(t for t in inputs[:-2] if t is not None))


def _backward(ctx, grad_outputs, _):
    gap = _NONE[ctx.layers :]
    if grad_outputs is None:
        return (None,) * (1 + 2 * MAX_LAYERS + 2)
    saved, inputs, *parameters = ctx.saved_tensors
    need = ctx.needs_input_grad
    wanted = [*need[: 1 + ctx.layers], *(need[1 + MAX_LAYERS : 1 + MAX_LAYERS + ctx.layers] if ctx.biased else ())]
    grads = _mlp_backward(grad_outputs, saved, inputs, parameters, ctx.half, ctx.biased, wanted)
    grads = [g if w else None for g, w in zip(grads, wanted, strict=True)]
    grad_biases = [*grads[1 + ctx.layers :], *gap] if ctx.biased else _NONE
    return *grads[: 1 + ctx.layers], *gap, *grad_biases, None, None


_mlp.register_autograd(_backward, setup_context=_setup_context)
