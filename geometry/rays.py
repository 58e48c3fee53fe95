"""Rays cut to a box (slabs, Kay & Kajiya 1986): t is inside where it is inside all three slabs,

    near' = max(near, max_k min(t_low_k, t_high_k)),   far' = min(far, min_k max(t_low_k, t_high_k)),

exact for any renderer that honours near and far: what lies outside of the box is not there at all.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .types import Aabb, Rays


def clip_to_box(rays: Rays, box: Aabb) -> Rays:
    """Rays with near and far moved to where they enter and leave ``box``; one that misses it is empty (far = near)."""
    still = rays.directions == 0
    speed = torch.where(still, 1.0, rays.directions)
    to_low, to_high = (box.low - rays.origins) / speed, (box.high - rays.origins) / speed
    inside = (rays.origins >= box.low) & (rays.origins <= box.high)
    inf = torch.inf
    enter = torch.where(still, torch.where(inside, -inf, inf), torch.minimum(to_low, to_high)).amax(-1)
    leave = torch.where(still, torch.where(inside, inf, -inf), torch.maximum(to_low, to_high)).amin(-1)
    near, far = torch.maximum(rays.near, enter), torch.minimum(rays.far, leave)
    missed = ~(near < far)
    return replace(rays, near=torch.where(missed, rays.near, near), far=torch.where(missed, rays.near, far))
