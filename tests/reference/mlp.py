"""A multilayer perceptron layer by layer in torch, and the roundings of its bfloat16 and float16 forms spelled out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class _Round(torch.autograd.Function):
    """To a type of 16 bits and back, for the value, for the gradient, or for both."""

    @staticmethod
    def forward(ctx, x: Tensor, value: torch.dtype | None, gradient: torch.dtype | None) -> Tensor:
        ctx.gradient = gradient
        return x.to(value).to(x.dtype) if value else x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad.to(ctx.gradient).to(grad.dtype) if ctx.gradient else grad), None, None


def mlp(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    *,
    bfloat16: bool = False,
    float16: bool = False,
) -> Tensor:
    """inputs (N, C_in), weights (out, in) -> (N, C_out); ReLU between layers.

    With ``bfloat16`` or ``float16``, operands of every product are rounded: inputs, weights, hidden activations, and
    in the backward pass the gradient of every layer's output.
    """
    half = torch.bfloat16 if bfloat16 else torch.float16 if float16 else None
    h = inputs
    for index, weight in enumerate(weights):
        if half:
            h, weight = _Round.apply(h, half, None), _Round.apply(weight, half, None)  # noqa: PLW2901
        h = h @ weight.T
        if biases is not None:
            h = h + biases[index]
        if half:
            h = _Round.apply(h, None, half)
        if index + 1 < len(weights):
            h = torch.relu(h)
    return h
