"""Free-space loss: between a camera and what it sees there is nothing (after Ortiz et al., "iSDF", 2022, eq. 4).

    max(0, -steepness f, f - b),   b how far it still is to the measured depth

at random places of rays: a distance there is positive, and no larger than the way to what the ray met. Of rays that
the photograph's alpha says to meet nothing, all of the way through the bounds is free, and b is infinite. iSDF's growth
inside of surfaces is exponential; here it is a line, which no bad beginning makes overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...fields.protocols import Field
from ...geometry import Rays
from ...geometry.rays import clip_to_box
from ..protocols import Step


def free_error(distances: Tensor, most: Tensor, steepness: float) -> Tensor:
    """distances, most (N,) -> (N,): how far distances are from [0, most], below 0 times ``steepness``."""
    return torch.maximum((-steepness * distances).relu(), distances - most)


@dataclass(frozen=True)
class FreeSpace:
    """How much it counts, at random places of rays whose depth, or emptiness, is known."""

    weight: float = 0.0
    """0 leaves it out."""
    margin: float = 0.02
    """Before the measured depth, where nothing is asked, scene units."""
    steepness: float = 5.0
    """How much more a place counts that is inside than one that is too far off."""
    points: int = 4096
    """Places per step."""

    needs_any: ClassVar[tuple[str, ...]] = ("depths", "alphas")  # of the targets

    def __call__(self, step: Step) -> Tensor:
        view, field = step.view, step.field
        depths, alphas = step.target.depths, step.target.alphas
        if not isinstance(view, Rays) or not isinstance(field, Field):
            raise ValueError("free_space: view: expected rays through a distance field, got none; drop the loss")
        if depths is None and alphas is None:
            raise ValueError("free_space: target: expected depths or alphas, got none; drop the loss")
        device = view.origins.device
        generator = step.generator(device)
        rays = view.detach()
        chosen = torch.randint(len(rays), (self.points,), generator=generator, device=device)
        counts = torch.ones_like(chosen, dtype=torch.bool)
        if step.target.masks is not None:
            counts &= step.target.masks[chosen]
        inside = clip_to_box(rays, field.bounds)
        start, end = inside.near[chosen], inside.far[chosen]
        most, empty = torch.full_like(start, torch.inf), torch.zeros_like(counts)
        if alphas is not None:
            empty = alphas[chosen] == 0
        if depths is not None:
            seen = depths[chosen].isfinite() & (depths[chosen] > 0) & ~empty
            most = torch.where(seen, depths[chosen], most)
            end = torch.where(seen, torch.minimum(end, most - self.margin), end)
            empty = empty | seen
        known = counts & empty & (end > start)
        start, end = torch.where(known, start, 0.0), torch.where(known, end, 0.0)
        t = start + (end - start) * torch.rand(self.points, generator=generator, device=device, dtype=start.dtype)
        error = free_error(
            field.query(rays.origins[chosen] + t[:, None] * rays.directions[chosen]).values, most - t, self.steepness
        )
        return self.weight * torch.where(known, error, 0.0).sum() / known.sum().clamp(min=1)
