"""Where along each ray half of the light is gone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Samples


def median_depths(weights: Tensor, samples: Samples) -> Tensor:
    """weights (S,) of packed intervals, front to back -> (R,) depths; 0 where the weights of a ray stay below 1/2.

    Within the interval where the sum crosses 1/2, as if light went evenly.
    """
    offsets = samples.ray_offsets.long()
    depths = weights.new_zeros(len(offsets) - 1)
    if len(weights) == 0:
        return depths
    sums = weights.double().cumsum(0)
    ends = torch.cat([sums.new_zeros(1), sums])
    through = sums - ends[offsets[:-1]].index_select(0, samples.ray_indices.long())  # of a ray, behind each interval
    crossing = ((through >= 0.5) & (through - weights < 0.5)).nonzero()[:, 0]
    share = (0.5 - (through - weights))[crossing] / weights[crossing].clamp_min(1e-12)
    starts, stops = samples.t_starts[crossing], samples.t_ends[crossing]
    depths[samples.ray_indices[crossing].long()] = torch.lerp(starts, stops, share.to(starts).clamp(0, 1))
    return depths
