"""SSIM and its loss in torch: five convolutions with the window."""

from __future__ import annotations

import torch
from torch import Tensor

_C1, _C2 = 0.01**2, 0.03**2


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """(H, W, C) images -> (C, H, W) SSIM at each pixel."""
    at = torch.arange(11, dtype=x.dtype) - 5
    window = torch.exp(-at * at / (2 * 1.5**2))
    window = window / window.sum()
    images = torch.stack([x, y, x * x, y * y, x * y]).permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    blurred = torch.nn.functional.conv2d(images, window.view(1, 1, 11, 1), padding=(5, 0))
    blurred = torch.nn.functional.conv2d(blurred, window.view(1, 1, 1, 11), padding=(0, 5))
    mx, my, xx, yy, xy = blurred[:, 0].unflatten(0, (5, -1))
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    return (2 * mx * my + _C1) * (2 * cov + _C2) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))


def ssim_l1(x: Tensor, y: Tensor, weight: float = 0.2, mask: Tensor | None = None) -> Tensor:
    """The loss, means over the pixels that count."""
    if mask is not None:
        x = torch.where(mask[..., None], x, y)
    share = 1.0 if mask is None else float(mask.numel() / mask.sum().clamp(min=1))
    return share * ((1 - weight) * (x - y).abs().mean() + weight * (1 - ssim_map(x, y)).mean())
