"""Finer intervals where rays meet surfaces: importance resampling of marched intervals.

A law's first look gives every interval a weight w_i: how much of the ray's light ends in it. Places are drawn from
these weights by inverse-transform sampling, so many per ray, evenly by the share of the light; intervals are cut there:

    t_j = F^-1((j + 1/2) / K),  or with (j + u_j) / K while fitting;   F(t) = sum of the weights up to t

Intervals stay what they were, only shorter near surfaces: no part of a ray is counted twice or left out. Weights are
spread to their neighbours before, so that a surface at the end of an interval is looked at from both sides.

Sources: Wang et al., "NeuS", 2021, sec. 3.3 (hierarchical sampling); Mildenhall et al., "NeRF", 2020, sec. 5.2; Barron
et al., "Mip-NeRF", 2021, eq. 18 (the spreading, as a maximum of two).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda.checks import check_shape
from ..cuda.compositing import composite
from ..cuda.marching import interval_points
from ..fields.protocols import Field
from ..geometry import Rays, Samples

LEAST = 1e-2  # of a ray's light: what loses less than this meets nothing


class Resampling:
    """Cuts intervals at ``count`` places per ray that meets something."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"Resampling: count: expected at least 1, got {count}; leave resampling out instead")
        self.count = count

    @torch.no_grad()
    def __call__(
        self,
        field: Field,
        rays: Rays,
        samples: Samples,
        values: Tensor,
        alphas: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Samples, Tensor]:
        """Shorter intervals and the field's values in them; what is not cut is not asked again.

        Args:
            values, alphas: (S,) of the samples, by a first look.
            generator: of places while fitting; None: always the same ones.
        """
        weights, _, _ = composite(alphas, [], samples.ray_offsets)
        finer, parents, cut = cut_by_weights(samples, spread_weights(weights, samples), self.count, generator)
        values = values.index_select(0, parents)
        pieces = (t.index_select(0, cut) for t in (finer.t_starts, finer.t_ends, finer.ray_indices))
        values[cut] = field.query(interval_points(rays.origins, rays.directions, *pieces)).values
        return finer, values


def spread_weights(weights: Tensor, samples: Samples) -> Tensor:
    """weights (S,) -> (S,): the mean of the larger of each and the one before, and of each and the next on its ray."""
    if len(weights) < 2:
        return weights
    same = samples.ray_indices[1:] == samples.ray_indices[:-1]
    larger = torch.where(same, torch.maximum(weights[1:], weights[:-1]), 0.0)
    none = larger.new_zeros(1)
    before, behind = torch.cat([none, larger]), torch.cat([larger, none])
    return (torch.maximum(before, weights) + torch.maximum(behind, weights)) / 2


def cut_by_weights(
    samples: Samples, weights: Tensor, count: int, generator: torch.Generator | None = None
) -> tuple[Samples, Tensor, Tensor]:
    """Cut packed intervals at ``count`` places of each ray that are even by weight.

    Args:
        samples: S intervals, front to back, of R rays.
        weights: (S,) at least 0. A ray whose weights sum to less than LEAST is not cut.
        count: K at least 1.
        generator: draws each place from its K-th; None: the middle of it.

    Returns:
        samples (S + K A,), of A rays that are cut; parents (S + K A,) int64, the interval that each is a part of; and
        the numbers of those that are not all of it, in order. On a GPU it waits for A and for how many these are.
    """
    check_shape("cut_by_weights", "weights", weights, (len(samples),))
    device, offsets = weights.device, samples.ray_offsets.long()
    sums = torch.cat([weights.new_zeros(1, dtype=torch.float64), weights.double().cumsum(0)])
    begins, ends = sums[offsets[:-1]], sums[offsets[1:]]
    hit = (ends - begins >= LEAST).nonzero()[:, 0]
    share = torch.full((len(hit), count), 0.5, dtype=torch.float64, device=device)
    if generator is not None:
        share = torch.rand(len(hit), count, generator=generator, dtype=torch.float64, device=device)
    share = (torch.arange(count, device=device) + share) / count
    wanted = (begins[hit, None] + share * (ends - begins)[hit, None]).flatten()
    inside = torch.searchsorted(sums[1:], wanted, right=True)
    # Rounding may put the last place of a ray behind it, or into an interval without weight at its end.
    inside = torch.minimum(inside, (offsets[1:][hit] - 1).repeat_interleave(count, output_size=len(wanted)))
    part = (wanted - sums[inside]) / (sums[inside + 1] - sums[inside]).clamp_min(1e-300)
    starts, stops = samples.t_starts.double()[inside], samples.t_ends.double()[inside]
    return _cut(samples, inside, (starts + part.clamp(0, 1) * (stops - starts)).to(samples.t_starts))


def _cut(samples: Samples, inside: Tensor, places: Tensor) -> tuple[Samples, Tensor, Tensor]:
    """Cut interval ``inside[m]`` at ``places[m]``; both (M,) ascending along the packed rays."""
    size, device = len(samples) + len(places), places.device
    cuts = torch.zeros(len(samples) + 1, dtype=torch.long, device=device)
    cuts[1:].index_add_(0, inside, torch.ones_like(inside))
    before = cuts.cumsum(0)  # (S + 1,): cuts in all intervals before
    number = torch.arange(len(samples), device=device)
    first, last = number + before[:-1], number + before[1:]  # of an interval's parts
    made = inside + 1 + torch.arange(len(places), device=device)  # the part that begins at each place
    t_starts, t_ends = samples.t_starts.new_empty(size), samples.t_ends.new_empty(size)
    t_starts[first], t_starts[made] = samples.t_starts, places
    t_ends[last], t_ends[made - 1] = samples.t_ends, places
    parents = number.repeat_interleave(cuts[1:] + 1, output_size=size)
    offsets = samples.ray_offsets.long()
    finer = Samples(t_starts, t_ends, samples.ray_indices.index_select(0, parents), (offsets + before[offsets]).int())
    return finer, parents, (cuts[1:].index_select(0, parents) > 0).nonzero()[:, 0]
