"""Pictures between their pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def sampled(image: Tensor, places: Tensor, mode: str = "bilinear") -> Tensor:
    """image (C, H, W) at places (N, 2), (-1, -1) to (1, 1) from corner to corner -> (N, C); outside, the border's."""
    grid = places[None, :, None]
    found = functional.grid_sample(image[None], grid, mode=mode, padding_mode="border", align_corners=False)
    return found[0, :, :, 0].T
