"""A multilayer perceptron layer by layer in torch, and the roundings of its bfloat16 form spelled out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class _Round(torch.autograd.Function):
    """To bfloat16 and back, for the value, for the gradient, or for both."""

    @staticmethod
    def forward(ctx, x: Tensor, value: bool, gradient: bool) -> Tensor:
        ctx.gradient = gradient
        return x.to(torch.bfloat16).to(x.dtype) if value else x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad.to(torch.bfloat16).to(grad.dtype) if ctx.gradient else grad), None, None


def mlp(
    inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None, *, bfloat16: bool = False
) -> Tensor:
    """inputs (N, C_in), weights (out, in) -> (N, C_out); ReLU between layers.

    With ``bfloat16``, operands of every product are rounded: inputs, weights, hidden activations, and in the backward
    pass the gradient of every layer's output.
    """
    h = inputs
    for index, weight in enumerate(weights):
        if bfloat16:
            h, weight = _Round.apply(h, True, False), _Round.apply(weight, True, False)  # noqa: PLW2901
        h = h @ weight.T
        if biases is not None:
            h = h + biases[index]
        if bfloat16:
            h = _Round.apply(h, False, True)
        if index + 1 < len(weights):
            h = torch.relu(h)
    return h
