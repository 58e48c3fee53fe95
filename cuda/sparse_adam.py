"""Adam in place, in one pass over memory, that touches only what has a gradient. Kernel: ``kernels/sparse_adam.cu``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import FLOATS, check_contiguous, check_device, check_dtype, check_range, check_shape
from .native import launch
from .ops import op

_LANES = 16  # the widest there are
_FORMATS = {None: 0, torch.bfloat16: 1, torch.float16: 2}


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
    column_rates: Tensor | None = None,
) -> None:
    """One step of Adam on tensors of one shape, all contiguous and of one dtype (float32 or float64), in place.

    A number whose gradient is exactly zero keeps its parameter and its moments: they are not even read where a
    whole vector of gradients is zero. The gradient is consumed: ``grad`` is zero afterwards. Bias is corrected by
    ``step`` for all numbers alike. With ``dense=True`` it is ordinary AdamW: zero gradients decay the moments,
    weight decay reaches every number, and ``grad`` is left as it is.

    A NaN or infinite gradient goes into its parameter, as in torch's Adam, and nowhere else: whoever owns the loop
    looks at the loss before it calls this.

    Args:
        param, grad, exp_avg, exp_avg_sq: parameter, its gradient, first and second moment.
        step: number of this step, from 1.
        lr, beta1, beta2, eps: the published names and their meaning; eps is added to the root of the corrected moment.
        weight_decay: decoupled (AdamW): the parameter shrinks by ``lr * weight_decay`` before its step, where touched.
        column_rates: (C,) factors of ``lr`` where rows of C numbers learn at different rates: number i of the parameter
            has ``column_rates[i % C]``.
        half: bfloat16 or float16 copy of a float32 ``param``: brought up to date where the parameter changes.

    Source: Kingma and Ba, "Adam", ICLR 2015; Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022,
    section 4 (skipping zero gradients); Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    op = "sparse_adam_"
    check_dtype(op, "param", param, *FLOATS)
    tensors = {"param": param, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, tensor in tensors.items():
        check_shape(op, name, tensor, tuple(param.shape))
        check_dtype(op, name, tensor, param.dtype)
    if half is not None:
        tensors["half"] = half
        check_shape(op, "half", half, tuple(param.shape))
        check_dtype(op, "half", half, torch.bfloat16, torch.float16)
        check_dtype(op, "param", param, torch.float32)
    check_device(op, **tensors)
    for name, tensor in tensors.items():
        check_contiguous(op, name, tensor)
    if column_rates is not None:
        check_shape(op, "column_rates", column_rates, (None,))
        check_dtype(op, "column_rates", column_rates, param.dtype)
        if not len(column_rates) or param.numel() % len(column_rates):
            raise ValueError(
                f"{op}: column_rates: expected a length that divides {param.numel()}, got {len(column_rates)}; "
                "give one per number of a row"
            )
    check_range(op, "step", step, 1, 2**62)
    check_range(op, "beta1", beta1, 0, 1)
    check_range(op, "beta2", beta2, 0, 1)
    numbers = (step, lr, beta1, beta2, eps, weight_decay, dense)
    with torch.no_grad():
        _sparse_adam(param, grad, exp_avg, exp_avg_sq, half, *numbers, column_rates)


@op("sparse_adam_", mutates=("param", "grad", "exp_avg", "exp_avg_sq", "half"))
def _sparse_adam(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    half: Tensor | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    dense: bool,
    column_rates: Tensor | None = None,
) -> None:
    numbers = (*adam_rates(step, lr, beta1, beta2, eps, weight_decay, column_rates), int(dense))
    half_format = _FORMATS[None if half is None else half.dtype]
    tensors = (param, grad, exp_avg, exp_avg_sq, half)
    launch("sparse_adam", param.dtype, *tensors, param.numel(), *numbers, half_format)


def adam_rates(
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    column_rates: Tensor | None = None,
) -> tuple[float | int | Tensor | None, ...]:
    """As the kernels take them (``AdamRates`` in ``include/adam.h``); columns are repeated beyond a lane's width."""
    step_size, root_correction = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    columns, width = None, 1
    if column_rates is not None:
        width = len(column_rates)
        columns = column_rates.repeat(1 + -(-_LANES // width))[: width + _LANES].contiguous()
    return beta1, beta2, step_size, root_correction, eps, lr * weight_decay, columns, width


@_sparse_adam.register_fake
def _(param, grad, exp_avg, exp_avg_sq, half, step, lr, beta1, beta2, eps, weight_decay, dense, column_rates=None):
    return None
