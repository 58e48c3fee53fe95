"""Image metrics as reported: PSNR here, SSIM and LPIPS by torchmetrics (imported where used).

PSNR is -10 log10 of the mean squared error over counted pixels and channels, colours in [0, 1]. SSIM is Wang et al.
2004 with an 11 x 11 Gaussian window (sigma 1.5) per channel. LPIPS (Zhang et al. 2018) needs its weights at hand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def psnr(colors: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB. colors, target (H, W, 3); mask (H, W) True = counts."""
    error = (colors.clamp(0, 1) - target).square().mean(-1)
    mean = float(error.mean() if mask is None else error[mask].mean())
    return -10 * math.log10(max(mean, 1e-10))


def ssim(colors: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Structural similarity. colors, target (H, W, 3); pixels that do not count are made equal before comparing."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    colors = colors.clamp(0, 1)
    if mask is not None:
        colors = torch.where(mask[..., None], colors, target)
    a, b = (image.permute(2, 0, 1)[None] for image in (colors, target))
    return float(structural_similarity_index_measure(a, b, data_range=1.0))  # type: ignore[arg-type]


def lpips(colors: Tensor, target: Tensor) -> float | None:
    """Learned perceptual distance (AlexNet). colors, target (H, W, 3); None if its weights are absent."""
    try:
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as distance

        a, b = (image.clamp(0, 1).permute(2, 0, 1)[None] for image in (colors, target))
        return float(distance(a, b, net_type="alex", normalize=True))
    except (ImportError, OSError, RuntimeError):  # torchvision missing, weights not on disk and no network
        return None
