"""Rays in patches of neighbouring pixels, whose samples' differences are their field's gradients.

The rays of a patch are cut at the same distances, so that samples lie on a small lattice: x along one row of pixels,
along one column, and along the ray. With d the differences of distances f between a sample's neighbours, and D those of
their places (3 x 3, a row for each of the three ways), the gradient g is what explains them: D g = d. No further
distances are needed (Cao and Taketomi, "SuperNormal", CVPR 2024, sec. 4.2). Differences are central within a patch and
one-sided at its borders; a sample without a neighbour along its ray counts as met head-on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda.compositing import prune_packed
from ..geometry import Samples

NEXT = 1.5  # samples whose middles are farther apart than this many of their lengths are no neighbours


def middle_rays(rays: int, patch: int, device: torch.device) -> Tensor:
    """The numbers of the rays in the patches' middles, (rays / patch^2,)."""
    return torch.arange(patch * patch // 2, rays, patch * patch, device=device)


def with_neighbors(kept: Tensor, samples: Samples) -> Tensor:
    """kept (K,) numbers of samples -> theirs and those of the samples before and behind on the same ray, in order."""
    some = torch.zeros(len(samples) + 2, dtype=torch.bool, device=samples.t_starts.device)
    same = torch.zeros_like(some)
    same[2:-1] = samples.ray_indices[1:] == samples.ray_indices[:-1]  # as the one before, at its own number + 1
    some[1:-1].index_fill_(0, kept.long(), True)
    wider = some.clone()
    wider[1:] |= some[:-1] & same[1:]
    wider[:-1] |= some[1:] & same[1:]
    return wider[1:-1].nonzero()[:, 0]


def seen_with_neighbors(alphas: Tensor, samples: Samples, patch: int, **limits: float) -> Samples:
    """The samples that ``prune`` would keep and those before and behind them, for every ray of their patches."""
    packed = (samples.t_starts, samples.t_ends, samples.ray_offsets)
    kept = prune_packed(alphas, *packed, **limits)[0]
    return spread(samples, with_neighbors(kept, samples), patch)


def spread(samples: Samples, chosen: Tensor, patch: int) -> Samples:
    """The ``chosen`` samples of the middle rays, for every ray of their patches."""
    many, middles = patch * patch, len(samples.ray_offsets) - 1
    rays, device = many * middles, samples.t_starts.device
    owner = samples.ray_indices.index_select(0, chosen).long()
    counts = torch.zeros(middles, dtype=torch.long, device=device).index_add_(0, owner, torch.ones_like(owner))
    begins = counts.cumsum(0) - counts
    per_ray, total = counts.repeat_interleave(many, output_size=rays), many * len(chosen)
    offsets = torch.zeros(rays + 1, dtype=torch.long, device=device)
    torch.cumsum(per_ray, 0, out=offsets[1:])
    ray = torch.arange(rays, device=device).repeat_interleave(per_ray, output_size=total)
    place = torch.arange(total, device=device) - offsets[ray] + begins[ray // many]
    source = chosen[place]
    return Samples(samples.t_starts[source], samples.t_ends[source], ray.int(), offsets.int())


class PatchDifferences:
    """distances (S,) of samples of patches -> gradients (S, 3). ``positions`` (S, 3) get none."""

    @torch.no_grad()
    def __init__(self, samples: Samples, positions: Tensor, directions: Tensor, patch: int) -> None:
        number = torch.arange(len(samples), device=positions.device)
        ray = samples.ray_indices.long()
        count = samples.ray_offsets.diff().long()[ray]  # of each sample's ray, which is that of its whole patch
        column, row = ray % (patch * patch) % patch, ray % (patch * patch) // patch
        self.pairs = [_pair(number, count, column, patch), _pair(number, patch * count, row, patch)]
        self.pairs.append(_along(samples, number))
        a, b, c = (positions[high] - positions[low] for low, high in self.pairs)
        crosses = torch.stack([torch.linalg.cross(*two, dim=-1) for two in ((b, c), (c, a), (a, b))], 1)
        volume = (a * crosses[:, 0]).sum(-1)
        self.known = volume.abs() > 0
        self.ways = crosses / torch.where(self.known, volume, 1.0)[:, None, None]
        self.against = -directions

    def __call__(self, values: Tensor) -> Tensor:
        changes = torch.stack([values[high] - values[low] for low, high in self.pairs], 1)
        return torch.where(self.known[:, None], (changes[:, :, None] * self.ways).sum(1), self.against)


def _pair(number: Tensor, stride: Tensor, place: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """The samples (S,) before and behind in a row of pixels; the sample itself at the patch's borders."""
    return torch.where(place > 0, number - stride, number), torch.where(place < patch - 1, number + stride, number)


def _along(samples: Samples, number: Tensor) -> tuple[Tensor, Tensor]:
    """The samples before and behind on the ray, if they are near."""
    middles, lengths = (samples.t_starts + samples.t_ends) / 2, samples.t_ends - samples.t_starts
    near = samples.ray_indices[1:] == samples.ray_indices[:-1]
    near &= middles.diff() < NEXT * torch.maximum(lengths[1:], lengths[:-1])
    none = near.new_zeros(1)
    return number - torch.cat([none, near]).long(), number + torch.cat([near, none]).long()
