"""A fit whose every op is plain torch: what `fit_step` compares with.

The ops are those of ``tests/reference``; marching, which the tests' reference does ray by ray for clarity, is written
here over all rays and intervals at once, as one would in torch. The optimizer is torch's own Adam.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from polyfield.apps.fit import Job
from polyfield.cuda.hash_encoding import HashLayout
from polyfield.fields import networks, radiance_grid
from polyfield.geometry import Samples
from polyfield.geometry.occupancy import OccupancyGrid
from polyfield.renderers import volume
from torch import Tensor

from tests.reference import composite as composite_reference
from tests.reference import hash_encode as hash_reference
from tests.reference import mlp as mlp_reference
from tests.reference import sh_basis as sh_reference


def with_torch_adam(job: Job) -> Job:
    """A job that steps by torch's Adam, and marches all intervals at once: in torch that is faster than in waves
    (a step of fox: 300 ms; in waves of 24 intervals 390)."""
    job.renderer.config = replace(job.renderer.config, wave=0)
    options = ("params", "lr", "betas", "eps", "weight_decay")
    groups = [{name: group[name] for name in options} for group in job.optimizer.param_groups]
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = None
    job.optimizer = torch.optim.AdamW(groups)
    return job


@contextmanager
def in_place_of_ours() -> Iterator[None]:
    """While this lasts, fields and renderers call the references."""
    with ExitStack() as stack:
        for module, name, reference in (
            (networks, "mlp", _mlp),
            (radiance_grid, "sh_basis", sh_reference.sh_basis),
            (volume, "composite", composite_reference.composite),
            (volume, "prune", prune),
        ):
            stack.enter_context(patch.object(module, name, reference))
        from polyfield.fields import encodings

        stack.enter_context(patch.object(encodings, "hash_encode", _hash_encode))
        stack.enter_context(patch.object(OccupancyGrid, "march", march))
        stack.enter_context(patch.object(Samples, "positions", positions))
        stack.enter_context(patch.object(radiance_grid.RadianceGrid, "_fused", lambda *_: None))
        stack.enter_context(patch.object(volume, "Marchable", _Nothing))  # or it would march by our kernel
        yield


class _Nothing:
    """What no field is."""


def _mlp(inputs: Tensor, weights, biases=None, *, bfloat16: bool = False) -> Tensor:
    return mlp_reference.mlp(inputs, weights, biases)


def _hash_encode(points: Tensor, table: Tensor, layout: HashLayout, *, half=None, table_grad=None) -> Tensor:
    return hash_reference.hash_encode(points, table, layout)


def positions(samples: Samples, rays) -> Tensor:
    """(S, 3) interval midpoints."""
    index = samples.ray_indices.long()
    return rays.origins[index] + rays.directions[index] * ((samples.t_starts + samples.t_ends) * 0.5)[:, None]


def march(
    grid: OccupancyGrid,
    rays,
    *,
    step: float,
    cone_angle: float = 0.0,
    jitter: Tensor | None = None,
    max_samples: int = 0,
) -> Samples:
    """All intervals of all rays, tested against the grid: the lattice of ``polyfield.cuda.marching.march_grid``."""
    cascades, resolution, half = len(grid.bits), grid.resolution, grid.half_extent
    outer = half * 2 ** (cascades - 1)
    inverse = 1 / torch.where(rays.directions.abs() < 1e-12, torch.full_like(rays.directions, 1e-12), rays.directions)
    a, b = (-outer - rays.origins) * inverse, (outer - rays.origins) * inverse
    start = torch.maximum(torch.minimum(a, b).amax(-1), rays.near)
    end = torch.minimum(torch.maximum(a, b).amin(-1), rays.far)
    t, dt = _lattice(start, end, jitter, step, cone_angle, max(step, 2 * outer / resolution))
    middle = t + dt / 2
    points = rays.origins[:, None] + rays.directions[:, None] * middle[..., None]
    reach = points.abs().amax(-1)
    cascade = torch.zeros_like(reach, dtype=torch.long)
    for c in range(1, cascades):
        cascade += (reach >= half * 2 ** (c - 1)) | (dt > 2 * half * 2 ** (c - 1) / resolution * (1 + 1e-6))
    cell = (((points / (half * 2.0 ** cascade[..., None])) + 1) * (resolution / 2)).long().clamp(0, resolution - 1)
    brick, local, bricks = cell // 4, cell % 4, resolution // 4
    bits = grid.bits
    word = bits.reshape(-1)[((cascade * bricks + brick[..., 0]) * bricks + brick[..., 1]) * bricks + brick[..., 2]]
    occupied = (word >> (local[..., 0] * 16 + local[..., 1] * 4 + local[..., 2])) & 1 == 1
    kept = occupied & (middle < end[:, None]) & (start < end)[:, None]
    if max_samples:
        kept &= kept.cumsum(1) <= max_samples
    counts = kept.sum(1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).int()
    indices = torch.repeat_interleave(torch.arange(len(counts)), counts).int()
    return Samples(t[kept], (t + dt)[kept], indices, offsets)


def _lattice(
    start: Tensor, end: Tensor, jitter: Tensor | None, step: float, cone: float, longest: float
) -> tuple[Tensor, Tensor]:
    """Starts and lengths (R, K) of each ray's intervals, closed in k."""
    count = lambda u0, u1: max(int((u1 - u0).clamp(min=0).nan_to_num(0, 0, 0).max()) + 2, 1)  # noqa: E731
    shift = torch.zeros_like(start) if jitter is None else jitter
    if cone == 0:
        u0 = start / step
        u = (u0 + shift)[:, None] + torch.arange(count(u0, end / step))
        return u * step, torch.full_like(u, step)
    t1, t2, growth = step / cone, longest / cone, math.log1p(cone)
    u1 = t1 / step
    u2 = u1 + math.log(longest / step) / growth

    def to_u(t: Tensor) -> Tensor:
        grown = u1 + (t.clamp(min=t1) / t1).log() / growth
        return torch.where(t < t1, t / step, torch.where(t < t2, grown, u2 + (t - t2) / longest))

    u0 = to_u(start)
    u = (u0 + shift)[:, None] + torch.arange(count(u0, to_u(end)))
    grown = t1 * ((u.clamp(max=u2) - u1) * growth).exp()
    t = torch.where(u < u1, u * step, torch.where(u < u2, grown, t2 + (u - u2) * longest))
    return t, (t * cone).clamp(step, longest)


def prune(alphas: Tensor, samples: Samples, *, min_transmittance: float, min_alpha: float) -> Samples:
    """Samples that a ray can see, by a cumulative sum of log(1 - alpha) over the packed rays."""
    logs = torch.log1p(-alphas.double().clamp(max=1 - 1e-7))
    total = torch.cat([torch.zeros(1, dtype=torch.float64), logs.cumsum(0)])
    index = samples.ray_indices.long()
    before = total[:-1] - total[samples.ray_offsets.long()[index]]
    kept = (before.exp() >= min_transmittance) & (alphas >= min_alpha)
    counts = torch.zeros(len(samples.ray_offsets) - 1, dtype=torch.long).index_add(
        0, index[kept], torch.ones_like(index[kept])
    )
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).int()
    return Samples(samples.t_starts[kept], samples.t_ends[kept], samples.ray_indices[kept], offsets)
