"""Adam in torch, masked: a number without gradient keeps its parameter and moments; the gradient is consumed."""

from __future__ import annotations

import torch
from torch import Tensor


def sparse_adam_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
    weight_decay: float = 0.0,
    half: Tensor | None = None,
    dense: bool = False,
) -> None:
    touched = torch.ones_like(grad, dtype=torch.bool) if dense else grad != 0
    m = beta1 * exp_avg + (1 - beta1) * grad
    v = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    update = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps)
    param.copy_(torch.where(touched, param * (1 - lr * weight_decay) - lr * update, param))
    exp_avg.copy_(torch.where(touched, m, exp_avg))
    exp_avg_sq.copy_(torch.where(touched, v, exp_avg_sq))
    if not dense:
        grad.zero_()
    if half is not None:
        half.copy_(torch.where(touched, param.to(half.dtype), half))
