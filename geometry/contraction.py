"""All of space in a cube of twice the size: the inner cube stays as it is, the rest is drawn in.

    x -> x where |x| <= 1,   (2 - 1 / |x|) x / |x| beyond,   |x| = the largest of |x_k|

Source: Barron et al., "Mip-NeRF 360: Unbounded Anti-Aliased Neural Radiance Fields", CVPR 2022, eq. 10, with the
largest coordinate in place of the length, so that what stays is a cube (Tancik et al., "Nerfstudio", 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor


def contracted(points: Tensor) -> Tensor:
    """points (*, 3) -> (*, 3) in [-2, 2]^3; the cube [-1, 1]^3 stays."""
    size = points.abs().amax(-1, keepdim=True).clamp_min(1.0)
    return torch.where(size > 1, (2 - 1 / size) / size * points, points)
