"""S3IM: the structural similarity of pixels that have nothing to do with each other (Xie et al. 2023, "S3IM:
Stochastic Structural SIMilarity and Its Unreasonable Effectiveness for Neural Fields", eq. 5).

The rays of a step are shuffled, laid out as an image and compared by SSIM in blocks that do not overlap, several times
over: 1 - the mean of

    (2 m n + c1) (2 s_mn + c2) / ((m^2 + n^2 + c1) (s_m^2 + s_n^2 + c2)),   c1 = 0.01^2, c2 = 0.03^2,

m, n, s the means, deviations and covariance of a block's rendered and photographed pixels, per channel. It compares
contrasts over all photographs at once, where a mean of squares compares pixel by pixel. The published blocks are 4 x 4
pixels weighted by a Gaussian: in a shuffled image no place differs from another, so here a block is any 16 pixels,
weighted alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..protocols import Step

C1, C2 = 0.01**2, 0.03**2


def similarities(found: Tensor, target: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """found, target (B, K, C), counts (B, K) 1 or 0 -> SSIM of each block (B,), and how many of it count (B,)."""
    number = counts.sum(1)
    shares = (counts / number.clamp(min=1)[:, None])[..., None]
    mean = lambda values: (shares * values).sum(1)  # noqa: E731
    m, n = mean(found), mean(target)
    a, b = found - m[:, None], target - n[:, None]
    structure = (2 * m * n + C1) * (2 * mean(a * b) + C2)
    return (structure / ((m * m + n * n + C1) * (mean(a * a) + mean(b * b) + C2))).mean(-1), number


@dataclass(frozen=True)
class S3im:
    """How much it counts, beside the photometric loss; masked pixels are left out."""

    weight: float = 0.0
    """0 leaves it out. Published: 1 for radiance fields of squared errors."""
    repeats: int = 10
    """Times that rays are shuffled."""
    block: int = 16
    """Pixels that are compared together."""

    def __call__(self, step: Step) -> Tensor:
        colors = step.render.pixels.colors
        if colors is None:
            raise ValueError("s3im: render: expected colours, got none; use a renderer of colours")
        found, target = colors.reshape(-1, 3), step.target_colors.reshape(-1, 3)
        generator = step.generator(found.device)
        rays = len(found)
        if not rays:
            return found.new_zeros(())
        size = min(self.block, rays)
        whole = rays // size * size
        shuffled = lambda: torch.randperm(rays, generator=generator, device=found.device)[:whole]  # noqa: E731
        order = torch.cat([shuffled() for _ in range(self.repeats)])
        masks = step.target.masks
        counts = torch.ones_like(found[:, 0]) if masks is None else masks.reshape(-1).to(found.dtype)
        cut = lambda values: values.index_select(0, order).view(-1, size, *values.shape[1:])  # noqa: E731
        similar, number = similarities(cut(found), cut(target), cut(counts))
        return self.weight * ((1 - similar) * number).sum() / number.sum().clamp(min=1)
