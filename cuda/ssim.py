"""Structural similarity and the photometric loss of Gaussian splatting: ``ssim_l1`` and ``ssim``."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_dtype, check_range, check_shape

_C1, _C2 = 0.01**2, 0.03**2


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
    check_shape(op, "prediction", prediction, (None, None, None))
    check_shape(op, "target", target, tuple(prediction.shape))
    check_dtype(op, "target", target, prediction.dtype)
    check_range(op, "weight", weight, 0, 1)
    if mask is not None:
        check_shape(op, "mask", mask, tuple(prediction.shape[:2]))
        check_dtype(op, "mask", mask, torch.bool)
        prediction = torch.where(mask[..., None], prediction, target)
    share = 1.0 if mask is None else float(mask.numel() / mask.sum().clamp(min=1))
    l1 = (prediction - target).abs().mean()
    return share * ((1 - weight) * l1 + weight * (1 - _map(prediction, target)).mean())


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """() mean SSIM of (H, W, C) images, as in ``ssim_l1``. No gradients."""
    with torch.no_grad():
        return _map(prediction, target).mean()


def _map(x: Tensor, y: Tensor) -> Tensor:
    at = torch.arange(11, dtype=x.dtype) - 5
    window = torch.exp(-at * at / (2 * 1.5**2))
    window = window / window.sum()
    images = torch.stack([x, y, x * x, y * y, x * y]).permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    blurred = torch.nn.functional.conv2d(images, window.view(1, 1, 11, 1), padding=(5, 0))
    blurred = torch.nn.functional.conv2d(blurred, window.view(1, 1, 1, 11), padding=(0, 5))
    mx, my, xx, yy, xy = blurred[:, 0].unflatten(0, (5, -1))
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    return (2 * mx * my + _C1) * (2 * cov + _C2) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
