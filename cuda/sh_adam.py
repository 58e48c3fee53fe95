"""Adam on the colours of Gaussians, from the two factors of their gradient. Kernel: ``kernels/sh_adam.cu``."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import FLOATS, check_contiguous, check_device, check_dtype, check_range, check_shape
from .native import launch, on_gpu
from .sparse_adam import adam_rates

FACTORS = 6  # numbers per Gaussian: direction, gradient of the colour


def sh_adam_(
    sh: Tensor,
    factors: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    degree: int,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
    column_rates: Tensor | None = None,
) -> None:
    """``sparse_adam_`` on spherical harmonics, in place, all tensors contiguous and of one dtype.

    Seen from one camera, the gradient of a Gaussian's harmonics is the product of the basis in the camera's direction
    and the gradient of its colour: ``grad[g, k] = Y_k(factors[g, :3]) * factors[g, 3:]``, 0 beyond ``degree``. Six
    numbers are kept of it and consumed: the colours' part is zero afterwards.

    Args:
        sh, exp_avg, exp_avg_sq: (G, B, 3) parameter, its first and second moment.
        factors: (G, 6) as ``render_gaussians`` leaves them in ``grad_buffers``.
        degree: highest band that was drawn.
        step, lr, beta1, beta2, eps, column_rates: as for ``sparse_adam_``; ``column_rates`` has 3 B numbers.

    Source: Kingma and Ba, "Adam", ICLR 2015; Kerbl et al., "3D Gaussian Splatting", 2023, for the colours.
    """
    op = "sh_adam_"
    check_shape(op, "sh", sh, (None, None, 3))
    check_dtype(op, "sh", sh, *FLOATS)
    bases = sh.shape[1]
    tensors = {"sh": sh, "factors": factors, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, tensor in tensors.items():
        check_shape(op, name, tensor, (sh.shape[0], FACTORS) if name == "factors" else tuple(sh.shape))
        check_dtype(op, name, tensor, sh.dtype)
        check_contiguous(op, name, tensor)
    check_device(op, **tensors)
    check_range(op, "degree", degree, 0, round(bases**0.5) - 1)
    check_range(op, "step", step, 1, 2**62)
    if column_rates is not None:
        check_shape(op, "column_rates", column_rates, (3 * bases,))
        check_dtype(op, "column_rates", column_rates, sh.dtype)
    rates = adam_rates(step, lr, beta1, beta2, eps, 0.0, column_rates)
    away = on_gpu(sh)
    items = sh.shape[0] * (3 * (degree + 1) ** 2 if away else 1)
    launch("sh_adam", sh.dtype, sh, factors, exp_avg, exp_avg_sq, items, bases, degree, *rates)
    if away:
        factors[:, 3:] = 0
    torch.autograd.graph.increment_version((sh, factors, exp_avg, exp_avg_sq))
