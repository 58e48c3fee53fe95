"""Small multilayer perceptrons on the fused kernel: ReLU between the layers, the last one linear.

Weights have torch's (out, in) layout and Kaiming-uniform initialisation, one parameter per layer, so that a
hypernetwork or an optimizer sees plain matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..cuda.mlp import mlp
from ..cuda.mlp_slopes import mlp_with_slopes
from ..cuda.native import has_bfloat16


@dataclass(frozen=True)
class MlpConfig:
    """Shape of a network between a given number of inputs and outputs."""

    width: int = 64
    """Neurons per hidden layer: 16 to 128, in steps of 16."""
    hidden_layers: int = 1
    """1 to 4."""

    def build(self, inputs: int, outputs: int, *, bfloat16: bool | None = False, biases: bool = False) -> Mlp:
        return Mlp(inputs, outputs, self, bfloat16=bfloat16, biases=biases)


class Mlp(nn.Module):
    """inputs (N, C_in) -> (N, C_out). ``bfloat16``: of its products; None = where the inputs' device has them."""

    def __init__(
        self, inputs: int, outputs: int, config: MlpConfig, *, bfloat16: bool | None = False, biases: bool = False
    ) -> None:
        super().__init__()
        sizes = [inputs, *[config.width] * config.hidden_layers, outputs]
        self.in_bfloat16 = bfloat16
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList() if biases else None
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
            bound = math.sqrt(6 / fan_in)
            self.weights.append(nn.Parameter(torch.empty(fan_out, fan_in).uniform_(-bound, bound)))
            if self.biases is not None:
                self.biases.append(nn.Parameter(torch.zeros(fan_out)))

    def forward(self, inputs: Tensor) -> Tensor:
        biases = None if self.biases is None else list(self.biases)
        return mlp(inputs, list(self.weights), biases, bfloat16=self.rounds(inputs))

    def with_gradient(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (N, C_out), and the gradient (N, C_in) of the first of them by the inputs, both differentiable.

        Between the kinks of its activations a network is linear: the gradient is a product of weights, and a loss on it
        is differentiated once.
        """
        return mlp_with_slopes(inputs, list(self.weights), None if self.biases is None else list(self.biases))

    def rounds(self, inputs: Tensor) -> bool:
        """Whether products are in bfloat16."""
        return has_bfloat16(inputs) if self.in_bfloat16 is None else self.in_bfloat16
