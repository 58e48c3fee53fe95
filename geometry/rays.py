"""Rays cut to a box (slabs, Kay & Kajiya 1986): t is inside where it is inside all three slabs,

    near' = max(near, max_k min(t_low_k, t_high_k)),   far' = min(far, min_k max(t_low_k, t_high_k)),

exact for any renderer that honours near and far: what lies outside of the box is not there at all.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .types import Aabb, Rays


def clip_to_box(rays: Rays, box: Aabb) -> Rays:
    """Rays with near and far moved to where they enter and leave ``box``; one that misses it is empty (far = near)."""
    enter, leave = slabs(rays, box)
    near, far = torch.maximum(rays.near, enter), torch.minimum(rays.far, leave)
    missed = ~(near < far)
    return replace(rays, near=torch.where(missed, rays.near, near), far=torch.where(missed, rays.near, far))


def slabs(rays: Rays, box: Aabb) -> tuple[Tensor, Tensor]:
    """(R,) (R,) where rays have entered the last of the box's slabs and where they leave the first; infinite if never.

    In this order on rays that meet the box, in the other one on those that miss it.
    """
    still = rays.directions == 0
    speed = torch.where(still, 1.0, rays.directions)
    to_low, to_high = (box.low - rays.origins) / speed, (box.high - rays.origins) / speed
    inside = (rays.origins >= box.low) & (rays.origins <= box.high)
    inf = torch.inf
    enter = torch.where(still, torch.where(inside, -inf, inf), torch.minimum(to_low, to_high)).amax(-1)
    leave = torch.where(still, torch.where(inside, inf, -inf), torch.maximum(to_low, to_high)).amin(-1)
    return enter, leave
