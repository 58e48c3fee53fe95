"""Fused networks with the derivatives of their first output: ``mlp_with_slopes``. Kernel: ``kernels/mlp_slopes.cu``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .memory import new_empty
from .mlp import _NONE, _check, _dims
from .native import launch, on_gpu
from .ops import op


def mlp_with_slopes(
    inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """``mlp`` and, from the same pass, how its first output changes with the inputs.

    Between the kinks of its activations a network is linear: slopes are a product of weights, so that a loss on them
    (an Eikonal term) needs no double backward, and reaches the inputs by the kinks alone, which counts as nothing.

    Args:
        inputs, weights, biases: as for ``mlp``, float32 or float64, multiplied as they are.

    Returns:
        outputs (N, C_out) and slopes (N, C_in), d outputs[:, 0] / d inputs. Both differentiable (once) in weights, the
        outputs in inputs and biases too.
    """
    _check(inputs, weights, biases, None)
    if on_gpu(inputs):
        return _layer_by_layer(inputs, weights, biases or _NONE[: len(weights)])
    outputs, slopes = _mlp_slopes(inputs, list(weights), list(biases or ()))
    return outputs, slopes


def _layer_by_layer(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """In torch's products: kernels on a GPU have none in full float32."""
    samples, gates = len(x), []
    for weight, bias in zip(weights[:-1], biases, strict=False):
        x = functional.linear(x, weight, bias)
        gates.append(x > 0)
        x = x.relu()
    slopes = weights[-1][:1].expand(samples, -1)
    for weight, gate in zip(weights[-2::-1], reversed(gates), strict=True):
        slopes = (slopes * gate) @ weight
    return functional.linear(x, weights[-1], biases[-1]), slopes


def _arguments(inputs: Tensor, weights: list[Tensor], biases: list[Tensor]) -> tuple:
    """What both kernels are told of the network."""
    weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    shape = (len(inputs), len(weights), *_dims(inputs, weights))
    return *shape, *weights, *_NONE[len(weights) :], *biases, *_NONE[len(biases) :]


@op("mlp_slopes")
def _mlp_slopes(inputs: Tensor, weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    inputs = inputs.contiguous()
    outputs, slopes = new_empty(inputs, len(inputs), weights[-1].shape[0]), new_empty(inputs, *inputs.shape)
    launch("mlp_slopes", inputs.dtype, inputs, outputs, slopes, *_arguments(inputs, weights, biases))
    return outputs, slopes


@_mlp_slopes.register_fake
def _(inputs, weights, biases):
    return inputs.new_empty(inputs.shape[0], weights[-1].shape[0]), torch.empty_like(inputs)


@op("mlp_slopes_backward")
def _mlp_slopes_backward(
    inputs: Tensor,
    grad_outputs: Tensor,
    grad_slopes: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    with_inputs: bool,
) -> list[Tensor]:
    """Gradients to inputs (empty if they are not wanted), weights and biases."""
    inputs, grad_outputs = inputs.contiguous(), grad_outputs.contiguous()
    grad_slopes = None if grad_slopes is None else grad_slopes.contiguous()
    grads = _new_grads(inputs, weights, biases, with_inputs)
    of_weights, of_biases = grads[1 : 1 + len(weights)], grads[1 + len(weights) :]
    gaps = _NONE[len(weights) :], _NONE[len(biases) :]
    written = (grads[0] if with_inputs else None, *of_weights, *gaps[0], *of_biases, *gaps[1])
    given = (inputs, grad_outputs, grad_slopes, *_arguments(inputs, weights, biases))
    launch("mlp_slopes_backward", inputs.dtype, *given, *written)
    return grads


def _new_grads(inputs, weights, biases, with_inputs) -> list[Tensor]:
    of_inputs = new_empty(inputs, *inputs.shape) if with_inputs else inputs.new_empty(0)
    return [of_inputs, *(t.new_empty(t.shape) for t in (*weights, *biases))]


@_mlp_slopes_backward.register_fake
def _(inputs, grad_outputs, grad_slopes, weights, biases, with_inputs):
    return _new_grads(inputs, weights, biases, with_inputs)


def _setup_context(ctx, inputs, output):
    x, weights, biases = inputs
    ctx.layers, ctx.outputs = len(weights), weights[-1].shape[0]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *weights, *biases)


def _backward(ctx, grad_outputs, grad_slopes):
    inputs, *parameters = ctx.saved_tensors
    weights, biases = parameters[: ctx.layers], parameters[ctx.layers :]
    if grad_outputs is None:
        grad_outputs = inputs.new_zeros(len(inputs), ctx.outputs)
    with_inputs = ctx.needs_input_grad[0]
    grads = _mlp_slopes_backward(inputs, grad_outputs, grad_slopes, weights, biases, with_inputs)
    return grads[0] if with_inputs else None, grads[1 : 1 + ctx.layers], grads[1 + ctx.layers :]


_mlp_slopes.register_autograd(_backward, setup_context=_setup_context)
