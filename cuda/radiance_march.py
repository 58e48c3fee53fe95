"""Marching through a hash-grid radiance field: ``radiance_march``. On a CPU one kernel, ``include/radiance_march.h``.

Which intervals rays meet and which of them they see, in one call: what ``march_grid``, ``interval_points``,
``radiance_density``, ``composite`` and ``prune`` find one after the other. On a CPU intervals are met a few at a time,
until a ray has no light left; on a GPU, which would have to be waited for, all at once, by those ops.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_device, check_dtype, check_range, check_shape
from .compositing import prune_packed
from .hash_encoding import HashLayout, _levels
from .marching import _check, _longest, _outputs, interval_points, march_grid
from .native import launch, on_gpu
from .ops import op
from .radiance import Found, _check_field, _names, _network, radiance_density


class March(NamedTuple):
    """Intervals of rays, packed by ray, and what the field says of them."""

    t_starts: Tensor  # (S,)
    t_ends: Tensor  # (S,)
    ray_indices: Tensor  # (S,) int32
    ray_offsets: Tensor  # (R + 1,) int32
    sigmas: Tensor  # (S,) densities at their middles
    seen: tuple[Tensor, Tensor, Tensor, Tensor]  # t_starts, t_ends, ray_indices, ray_offsets of those that rays see
    found: Found | None = None  # at the middles of the seen, if it was to be kept


def radiance_march(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    states: Tensor,
    low: Tensor,
    high: Tensor,
    table: Tensor,
    layout: HashLayout,
    density_weights: Sequence[Tensor],
    *,
    resolution: int,
    half_extent: float,
    step: float,
    cone_angle: float = 0.0,
    jitter: Tensor | None = None,
    min_transmittance: float = 1e-4,
    min_alpha: float = 0.0,
    half: Tensor | None = None,
    bfloat16: bool = False,
    keep: bool = False,
) -> March:
    """The occupied intervals of rays until their light is gone, and those that can be seen. No gradients.

    Args:
        origins, directions, near, far, bits, states, resolution, step, cone_angle, jitter: as for ``march_grid``,
            whose ``half`` is ``half_extent`` here.
        low, high: (3,) the corners of the field's unit cube.
        table, layout, density_weights, half, bfloat16: as for ``radiance_density``.
        min_transmittance: a ray ends once less light than this is left; what lies behind is not seen.
        min_alpha: what is more transparent than this is not seen.
        keep: on a CPU, keep what was found of seen intervals, for ``radiance``.

    alpha = 1 - exp(-sigma dt). Intervals that lie behind the end of a ray may be among those met or not.
    """
    _check(origins, directions, near, far, bits, resolution, half_extent, step, cone_angle, jitter, 0)
    op = "radiance_march"
    check_shape(op, "states", states, (bits.numel() + 4,))
    check_dtype(op, "states", states, torch.uint8)
    for name, corner in (("low", low), ("high", high)):
        check_shape(op, name, corner, (3,))
        check_dtype(op, name, corner, torch.float32)
    _check_field(op, origins, table, layout, half, None, density_weights, bfloat16)
    check_dtype(op, "table", table, torch.float32)
    check_range(op, "min_transmittance", min_transmittance, 0, 1)
    check_range(op, "min_alpha", min_alpha, 0, 1)
    tensors = dict(bits=bits, states=states, low=low, high=high, table=table, jitter=jitter)
    check_device(op, origins=origins, directions=directions, near=near, far=far, **tensors)
    scale = 1 / (high - low)
    box = torch.stack([scale, -low * scale])
    rays = (origins, directions, near, far, jitter)
    networks = (table.detach(), half, [w.detach() for w in density_weights])
    if on_gpu(origins):
        return _in_parts(
            *rays, bits, states, box, *networks, layout, resolution, half_extent, step, cone_angle,
            min_transmittance, min_alpha, bfloat16,
        )  # fmt: skip
    found = _radiance_march(
        *rays, bits, states, box, *networks, layout._numbers, resolution, half_extent, step, cone_angle,
        min_transmittance, min_alpha, bfloat16, keep,
    )  # fmt: skip
    starts, ends, indices, offsets, sigmas, *seen = found
    kept = Found(*seen[4:]) if keep else None
    return March(starts, ends, indices, offsets, sigmas, (seen[0], seen[1], seen[2], seen[3]), kept)


def _in_parts(
    origins, directions, near, far, jitter, bits, states, box, table, half, weights, layout, resolution, half_extent,
    step, cone_angle, min_transmittance, min_alpha, bfloat16,
) -> March:  # fmt: skip
    """The same by the ops that it is made of."""
    marching = dict(resolution=resolution, half=half_extent, step=step, cone_angle=cone_angle, jitter=jitter)
    starts, ends, indices, offsets = march_grid(origins, directions, near, far, bits, states=states, **marching)
    points = interval_points(origins, directions, starts, ends, indices)
    sigmas = radiance_density(
        torch.addcmul(box[1], points, box[0]), table, layout, weights, half=half, bfloat16=bfloat16
    )
    alphas = -torch.expm1(sigmas * (starts - ends))
    limits = dict(min_transmittance=min_transmittance, min_alpha=min_alpha)
    return March(starts, ends, indices, offsets, sigmas, prune_packed(alphas, starts, ends, offsets, **limits)[1:])


@op("radiance_march")
def _radiance_march(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor | None,
    bits: Tensor,
    states: Tensor,
    box: Tensor,
    table: Tensor,
    half: Tensor | None,
    weights: list[Tensor],
    numbers: list[int],
    resolution: int,
    half_extent: float,
    step: float,
    cone_angle: float,
    min_transmittance: float,
    min_alpha: float,
    bfloat16: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> t_starts, t_ends, ray_indices, ray_offsets, sigmas; t_starts, t_ends, ray_indices, ray_offsets of the seen,
    features, geometry there (without rows unless ``keep``)."""
    tensors = [None if x is None else x.contiguous() for x in (origins, directions, near, far, jitter, bits, states)]
    source, weights = (table if half is None else half).contiguous(), [w.contiguous() for w in weights]
    count, levels = len(origins), (len(numbers) - 2) // 4
    longest = _longest(resolution, half_extent, step, len(bits))
    grid = (count, resolution, len(bits), half_extent, step, cone_angle, longest, min_transmittance, min_alpha)
    offsets, seen_offsets = (origins.new_empty(count + 1, dtype=torch.int32) for _ in range(2))
    totals = (ctypes.c_int64 * 2)()
    name, _, rounded = _names(source, bfloat16)
    field = (box.contiguous(), source, _levels(tuple(numbers), origins.device), levels, numbers[1], rounded)
    network = _network(levels * numbers[1], weights)
    outputs = (int(keep), offsets, seen_offsets, ctypes.addressof(totals))
    launch(name.replace("radiance", "radiance_march"), None, *tensors, *grid, *field, *network, *outputs)
    met, seen = _outputs(origins, totals[0]), _outputs(origins, totals[1])
    sigmas = torch.empty_like(met[0])
    widths = (levels * numbers[1], len(weights[-1]))
    features, geometry = (origins.new_empty(totals[1] if keep else 0, width) for width in widths)
    kept = (features, geometry) if keep else (None, None)
    launch("radiance_march_write", None, offsets, seen_offsets, *met, sigmas, *seen, *kept, *widths, count)
    return *met, offsets, sigmas, *seen, seen_offsets, features, geometry


@_radiance_march.register_fake
def _(origins, directions, near, far, jitter, bits, states, box, table, half, weights, numbers, *rest):
    offsets, parts = origins.new_empty(origins.shape[0] + 1, dtype=torch.int32), []
    for _part in range(2):
        samples = torch.library.get_ctx().new_dynamic_size()
        indices = origins.new_empty(samples, dtype=torch.int32)
        parts.append((origins.new_empty(samples), origins.new_empty(samples), indices, torch.empty_like(offsets)))
    rows = samples if rest[-1] else 0  # those of the seen
    kept = (origins.new_empty(rows, width) for width in (weights[0].shape[1], weights[-1].shape[0]))
    return *parts[0], torch.empty_like(parts[0][0]), *parts[1], *kept
