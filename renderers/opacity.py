"""Opacity laws: from a field's values to the alpha of an interval. NGP is "hash grid + density law", NeuS "signed
distance + NeuS law"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..fields.protocols import FieldOutput
from ..geometry import Rays, Samples


class Density:
    """alpha = 1 - exp(-sigma dt): values are densities per unit length (Max 1995; Mildenhall et al. 2020, eq. 3)."""

    needs_gradients, needs_neighbors, outwards = False, False, -1.0

    def __call__(self, output: FieldOutput, rays: Rays, samples: Samples) -> Tensor:
        return -torch.expm1(-output.values * (samples.t_ends - samples.t_starts))

    def densities(self, values: Tensor, reach: float = 0.0) -> Tensor:
        """(N,) per unit length: what occupancy goes by."""
        return values


density = Density()


def slopes_along(values: Tensor, samples: Samples) -> Tensor:
    """d value / dt (S,) from each sample to the next of its ray, or from the one before where it is the last; -1 of a
    sample alone on its ray."""
    if len(values) < 2:
        return torch.full_like(values, -1.0)
    middles, rays = (samples.t_starts + samples.t_ends) / 2, samples.ray_indices
    slopes = values.diff() / middles.diff().clamp(min=1e-9)
    same = rays[1:] == rays[:-1]
    none = slopes.new_full((1,), -1.0)
    before = torch.cat([none, torch.where(same, slopes, -1.0)])
    return torch.where(torch.cat([same, same[:0].new_zeros(1)]), torch.cat([slopes, none]), before).clamp(-1, 1)


class Neus(nn.Module):
    """alpha of a signed distance whose surface is as sharp as the law has learned (Wang et al., NeuS, 2021, eq. 13).

        alpha = max(0, (P(f_near) - P(f_far)) / P(f_near)),   P = logistic function of sharpness s,

    f_near and f_far at the interval's ends, by the distance in its middle and its slope along the ray. Where gradients
    are not given, the slope is that between neighbouring intervals: counting rays as meeting surfaces head-on would end
    those that graze one before it is opaque.
    """

    needs_gradients, needs_neighbors, outwards = True, False, 1.0
    annealing: Tensor

    def __init__(self, sharpness: float = 20.0) -> None:
        super().__init__()
        self.third = nn.Parameter(torch.tensor(sharpness).log() / 3)  # of the sharpness's logarithm: it learns faster
        # 0 to 1: below 1, rays that leave a surface see something of it too, so that it can move
        self.register_buffer("annealing", torch.tensor(0.0))

    @property
    def sharpness(self) -> Tensor:
        """Of the logistic function, per unit length: the surface is about 4 / s thick."""
        return (3 * self.third).exp().clamp(max=1e6)

    def forward(self, output: FieldOutput, rays: Rays, samples: Samples) -> Tensor:
        if output.gradients is None:
            cosine = slopes_along(output.values, samples)
        else:
            cosine = (output.gradients * samples.directions(rays)).sum(-1)
        steepness = self.annealing * (-cosine).relu() + (1 - self.annealing) * (0.5 - 0.5 * cosine).relu()
        half = (samples.t_ends - samples.t_starts) / 2 * steepness
        near = torch.sigmoid((output.values + half) * self.sharpness)
        far = torch.sigmoid((output.values - half) * self.sharpness)
        return ((near - far + 1e-5) / (near + 1e-5)).clamp(0, 1)

    def densities(self, values: Tensor, reach: float = 0.0) -> Tensor:
        """(N,) the highest per unit length within ``reach`` of points with these distances, of a ray that meets the
        surface head-on: -d log P / df."""
        return self.sharpness * torch.sigmoid((reach - values) * self.sharpness)


class Volsdf(nn.Module):
    """Density of a signed distance: that of a Laplace distribution's cumulative, as wide as the law has learned.

        sigma = Psi(-d) / beta,   Psi = exp(x / beta) / 2 below 0, 1 - exp(-x / beta) / 2 above

    (Yariv et al., "Volume Rendering of Neural Implicit Surfaces", 2021, eq. 2 and 3, alpha = 1 / beta.)
    """

    needs_gradients, needs_neighbors, outwards = False, False, 1.0

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.third = nn.Parameter(torch.tensor(beta).log() / 3)  # of its logarithm: it learns faster

    @property
    def beta(self) -> Tensor:
        """Scene units."""
        return (3 * self.third).exp().clamp(min=1e-6)

    def forward(self, output: FieldOutput, rays: Rays, samples: Samples) -> Tensor:
        return -torch.expm1(-self.densities(output.values) * (samples.t_ends - samples.t_starts))

    def densities(self, values: Tensor, reach: float = 0.0) -> Tensor:
        """(N,) the highest per unit length within ``reach`` of points with these distances."""
        depth = (reach - values) / self.beta
        tail = 0.5 * torch.exp(-depth.abs())
        return torch.where(depth > 0, 1 - tail, tail) / self.beta


class Unsigned(nn.Module):
    """alpha of an unsigned distance: what a ray loses as it comes nearer to the surface, on whichever side.

        alpha = (Z(f_near) - Z(f_low)) / Z(f_near),   Z(f) = 1 - exp(-s f),

    f_near where the interval begins and f_low the least distance in it, by the distance in its middle and its slope
    along the ray: that between intervals, since on the surface, where all light goes, there is no gradient. Light along
    an approach is Z(f), 0 on the surface, so weights are unbiased to first order and a surface is opaque from both
    sides; where a ray leaves, nothing is lost. An interval whose middle lies behind the surface that it crosses has it
    too: the distance is reflected there. s is learned.

    Source: Liu et al., "NeUDF: Learning Unsigned Distance Fields with Volume Rendering", 2023, eq. 6 to 8, with a Z
    that nears 1 exponentially in place of a fraction: the fraction's tail darkens what passes an edge far off.
    """

    needs_gradients, needs_neighbors, outwards = False, True, 1.0

    def __init__(self, sharpness: float = 60.0) -> None:
        super().__init__()
        self.third = nn.Parameter(torch.tensor(sharpness).log() / 3)  # of the sharpness's logarithm: it learns faster

    @property
    def sharpness(self) -> Tensor:
        """Per unit length: a ray that passes an edge within 1 / s sees something of it."""
        return (3 * self.third).exp().clamp(max=1e5)

    def forward(self, output: FieldOutput, rays: Rays, samples: Samples) -> Tensor:
        change = (samples.t_ends - samples.t_starts) / 2 * _steepest(output.values, samples)
        near, low = (output.values - change).abs(), (output.values - change.abs()).relu()
        light, left = (-torch.expm1(-self.sharpness * f) for f in (near, low))
        return ((light - left + 1e-5) / (light + 1e-5)).clamp(0, 1)

    def densities(self, values: Tensor, reach: float = 0.0) -> Tensor:
        """(N,) the highest per unit length within ``reach`` of points with these distances, of a ray that meets the
        surface head-on: -d log Z / df."""
        return self.sharpness / torch.expm1(self.sharpness * (values - reach).clamp_min(1e-4)).clamp_min(1e-6)


def _steepest(values: Tensor, samples: Samples) -> Tensor:
    """d value / dt (S,), the steeper of those to the neighbours before and behind, falling where the ray came nearer.

    Around a surface the distance goes down and up again: the mean of the two would show nothing of it.
    """
    onward = slopes_along(values, samples)
    if len(values) < 2:
        return onward
    same = samples.ray_indices[1:] == samples.ray_indices[:-1]
    before = torch.cat([onward[:1], torch.where(same, onward[:-1], onward[1:])])
    steep = torch.maximum(onward.abs(), before.abs())
    return torch.where(before < 0, -steep, steep)
