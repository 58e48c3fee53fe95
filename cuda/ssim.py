"""Structural similarity and the photometric loss of Gaussian splatting: ``ssim_l1`` and ``ssim``.

Kernel: ``kernels/ssim.cu``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import FLOATS, check_device, check_dtype, check_range, check_shape
from .memory import new_empty
from .native import launch, on_gpu

_PIECE = 32  # rows that the kernel works on together
_SIDE = 16  # on a GPU, of a block's square of pixels


def ssim_l1(prediction: Tensor, target: Tensor, *, weight: float = 0.2, mask: Tensor | None = None) -> Tensor:
    """(1 - weight) mean |prediction - target| + weight (1 - mean SSIM), colours in [0, 1].

    SSIM has an 11 x 11 Gaussian window (sigma 1.5) and takes pixels beyond the border as 0, as 3D Gaussian Splatting
    does.

    Args:
        prediction: (H, W, C) float32 or float64.
        target: (H, W, C)
        weight: of the structural part.
        mask: (H, W) bool, True = counts: elsewhere the prediction counts as equal to the target, and means are over the
            pixels that count.

    Returns:
        (). Differentiable in ``prediction``.

    Source: Wang et al., "Image Quality Assessment", 2004; Kerbl et al., "3D Gaussian Splatting", 2023, eq. 7.
    """
    op = "ssim_l1"
    _check(op, prediction, target)
    check_range(op, "weight", weight, 0, 1)
    if mask is not None:
        check_shape(op, "mask", mask, tuple(prediction.shape[:2]))
        check_dtype(op, "mask", mask, torch.bool)
        check_device(op, prediction=prediction, mask=mask)
    return _SsimL1.apply(prediction, target, float(weight), mask)


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """() mean SSIM of (H, W, C) images, as in ``ssim_l1``. No gradients."""
    _check("ssim", prediction, target)
    return _sums(prediction.detach().contiguous(), target.contiguous(), 0, 0, None)[1] / max(prediction.numel(), 1)


def _check(op: str, prediction: Tensor, target: Tensor) -> None:
    check_shape(op, "prediction", prediction, (None, None, None))
    check_dtype(op, "prediction", prediction, *FLOATS)
    check_shape(op, "target", target, tuple(prediction.shape))
    check_dtype(op, "target", target, prediction.dtype)
    check_device(op, prediction=prediction, target=target)


def _sums(x: Tensor, y: Tensor, l1: float, structure: float, grad: Tensor | None) -> Tensor:
    """(2,) sums of |x - y| and of SSIM; the gradient of their weighted sum goes to ``grad``."""
    height, width, channels = x.shape
    gpu = on_gpu(x)
    parts = -(-height // _SIDE) * -(-width // _SIDE) * channels if gpu else -(-height // _PIECE)
    sums = torch.zeros(parts, 2, dtype=torch.float64, device=x.device)
    if gpu:
        shape = (height, width, channels, parts)
        maps = None if grad is None else new_empty(x, 3, *x.shape)
        launch("ssim_maps", x.dtype, x, y, *shape, maps, sums)
        if grad is not None:
            launch("ssim_gradient", x.dtype, maps, x, y, *shape, l1, structure, grad)
    elif x.numel():
        launch("ssim_l1", x.dtype, x, y, height, width * channels, channels, l1, structure, grad, sums)
    return sums.sum(0).to(x.dtype)


class _SsimL1(torch.autograd.Function):
    """The gradient comes out of the forward pass, which has all that it needs in cache."""

    @staticmethod
    def forward(ctx, prediction, target, weight, mask):
        x, y = prediction.contiguous(), target.contiguous()
        if mask is not None:
            x = torch.where(mask[..., None], x, y)
        scale = 1 / max(x.numel(), 1)
        grad = new_empty(x, *x.shape) if ctx.needs_input_grad[0] else None
        absolute, similar = _sums(x, y, (1 - weight) * scale, -weight * scale, grad)
        loss = ((1 - weight) * absolute + weight * (x.numel() - similar)) * scale
        if mask is not None:  # a tensor, so that nobody waits for its number of pixels
            share = mask.numel() / mask.sum().clamp(min=1).to(x.dtype)
            loss = loss * share
            grad = None if grad is None else grad * (mask[..., None] * share)
        if grad is not None:
            ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        return grad * upstream, None, None, None
