"""An order of points in which neighbours in space are neighbours in memory (Morton, "A computer oriented geodetic data
base", 1966)."""

from __future__ import annotations

import torch
from torch import Tensor


def morton_order(points: Tensor) -> Tensor:
    """(N, 3) -> (N,) indices along the Z-shaped curve through their bounding box, 16 bits an axis."""
    x = points.detach().double()
    if not len(x):
        return torch.zeros(0, dtype=torch.int64, device=x.device)
    low, high = x.amin(0), x.amax(0)
    cells = ((x - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny) * 65535).round().long()
    for shift in (32, 16, 8, 4, 2):  # bit b of an axis moves to bit 3 b
        mask = {32: 0x1F00000000FFFF, 16: 0x1F0000FF0000FF, 8: 0x100F00F00F00F00F, 4: 0x10C30C30C30C30C3}
        cells = (cells | cells << shift) & mask.get(shift, 0x1249249249249249)
    return (cells[:, 0] | cells[:, 1] << 1 | cells[:, 2] << 2).argsort(stable=True)
