"""The gradient of colours multiplied out by the definition of the basis, then masked Adam in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from . import sh_basis, sparse_adam


def gradient(factors: Tensor, bases: int, degree: int) -> Tensor:
    """factors (G, 6): direction, gradient of the colour -> (G, bases, 3), 0 beyond ``degree``."""
    drawn = sh_basis.sh_basis(factors[:, :3], degree)
    basis = torch.nn.functional.pad(drawn, (0, bases - drawn.shape[1]))
    return basis[:, :, None] * factors[:, None, 3:]


def sh_adam_(sh: Tensor, factors: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, degree: int, **options) -> None:
    grad = gradient(factors, sh.shape[1], degree)
    sparse_adam.sparse_adam_(sh, grad, exp_avg, exp_avg_sq, **options)
    factors[:, 3:] = 0
