"""Occupancy-grid marching in torch, float64: every interval of every ray is tested, nothing is skipped."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sequence(t0: float, jitter: float, end: float, step: float, cone: float, longest: float) -> tuple[Tensor, Tensor]:
    """Starts and lengths of the intervals of one ray whose middles lie before ``end``.

    t_{k+1} = t_k + clamp(t_k cone, step, longest), written closed in k, which differs in the one interval that crosses
    from constant to growing steps, or back.
    """
    t1, t2 = (step / cone, longest / cone) if cone > 0 else (math.inf, math.inf)
    growth = math.log1p(cone)
    u1, u2 = t1 / step, (t1 / step + math.log(longest / step) / growth) if cone > 0 else math.inf
    u0 = t0 / step if t0 < t1 else u1 + math.log(t0 / t1) / growth if t0 < t2 else u2 + (t0 - t2) / longest
    u = u0 + jitter + torch.arange(max(int((end - t0) / step) + 2, 0), dtype=torch.float64)
    if cone > 0:
        grown = t1 * torch.exp((u - u1) * growth)
        t = torch.where(u < u1, u * step, torch.where(u < u2, grown, t2 + (u - u2) * longest))
    else:
        t = u * step
    lengths = (t * cone).clamp(step, longest)
    keep = t + lengths / 2 < end
    return t[keep], lengths[keep]


def march_grid(origins, directions, near, far, bits, *, resolution, half, step, cone_angle=0.0, jitter=None):
    """-> t_starts, t_ends, ray_indices, margins: how far, in cells, the next wall is from each middle.

    Also returns all intervals of all rays as a fifth value (starts, ray_indices, margins), for what was left out.
    """
    cascades, bricks = len(bits), resolution // 4
    longest = max(step, 2 * half * 2 ** (cascades - 1) / resolution)
    found, everything = [], []
    for r in range(len(origins)):
        o, d = origins[r].double(), directions[r].double()
        outer = half * 2 ** (cascades - 1)
        if (d == 0).logical_and(o.abs() >= outer).any() or not torch.isfinite(o.sum() + d.sum()):
            continue
        inverse = torch.where(d == 0, torch.inf, 1 / d)
        a, b = (-outer - o) * inverse, (outer - o) * inverse
        a, b = torch.where(d == 0, -torch.inf, a), torch.where(d == 0, torch.inf, b)
        t0 = max(float(torch.minimum(a, b).max()), float(near[r]))
        end = min(float(torch.maximum(a, b).min()), float(far[r]))
        if not t0 < end:
            continue
        t, dt = sequence(t0, 0.0 if jitter is None else float(jitter[r]), end, step, cone_angle, longest)
        p = o + d * (t + dt / 2)[:, None]
        reach = p.abs().amax(-1)
        cascade = torch.zeros(len(t), dtype=torch.int64)
        for c in range(1, cascades):
            cascade += (reach >= half * 2 ** (c - 1)) | (dt > 2 * half * 2 ** (c - 1) / resolution * (1 + 1e-6))
        g = (p / (half * 2.0 ** cascade[:, None]) + 1) * resolution / 2
        margins = (g - g.round()).abs().amin(-1)
        for c in range(1, cascades):  # nor is it certain which cascade counts, beside a border between two
            margins = torch.minimum(margins, (dt / (2 * half * 2 ** (c - 1) / resolution) - 1).abs() * 10)
        cell = g.long().clamp(0, resolution - 1)
        brick, local = cell // 4, cell % 4
        index = ((cascade * bricks + brick[:, 0]) * bricks + brick[:, 1]) * bricks + brick[:, 2]
        occupied = (bits.reshape(-1)[index] >> (local[:, 0] * 16 + local[:, 1] * 4 + local[:, 2])) & 1 == 1
        rays = torch.full_like(cell[:, 0], r)
        found.append((t[occupied], (t + dt)[occupied], rays[occupied], margins[occupied]))
        everything.append((t, rays, margins))
    if not found:
        empty = torch.zeros(0, dtype=torch.float64)
        return empty, empty, empty.long(), empty, (empty, empty.long(), empty)
    columns = [torch.cat(c) for c in zip(*found, strict=True)]
    return (*columns, tuple(torch.cat(c) for c in zip(*everything, strict=True)))
