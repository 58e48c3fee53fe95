"""Ray marching: ``march_grid`` and ``interval_points``. Kernels: ``march_grid.cu``, ``interval_points.cu``."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from .checks import FLOATS, check_device, check_dtype, check_range, check_shape
from .native import launch, on_gpu
from .occupancy import brick_states
from .ops import op

MAX_STEPS = 8_000_000  # per ray: above, float32 no longer counts them
RUNS = 8  # of a ray that are kept between the passes on a GPU, as in the kernel


def march_grid(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    *,
    resolution: int,
    half: float,
    step: float,
    cone_angle: float = 0.0,
    jitter: Tensor | None = None,
    max_samples: int = 0,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The intervals of each ray that lie in occupied cells, front to back, packed by ray.

    Cascade c covers the cube [-half 2^c, half 2^c]^3 with ``resolution``^3 cells. A ray starts at t_0, where it first
    is beyond ``near`` and inside the outermost cube, and is cut into one sequence of intervals [t_k, t_k + dt) with
    t_{k+1} = t_k + dt, dt = clamp(t_k cone_angle, step, max(step, cell of the outermost cascade)), shifted by
    jitter dt. An interval is a sample if its middle lies before ``far`` and in an occupied cell; of the cascades, the
    finest counts that contains the middle and whose cells are not smaller than dt.

    Args:
        origins: (R, 3) float32. Rays that are not finite have no samples.
        directions: (R, 3) unit.
        near: (R,) where rays begin.
        far: (R,) where they end; may be infinite.
        bits: (cascades, (resolution / 4)^3) int64, one word per brick of 4x4x4 cells, see ``occupancy.pack_bits``.
        resolution: cells along a cube's edge, a multiple of 4; of 16 with several cascades.
        half: half the edge of the innermost cube.
        step: shortest interval.
        cone_angle: growth of intervals with distance; 0 = constant.
        jitter: (R,) in [0, 1): where in the first interval the sequence starts. None = 0.
        max_samples: of one ray; 0 = no limit.
        states: ``occupancy.brick_states(bits)``, if at hand (a few microseconds otherwise).

    Returns:
        t_starts (S,), t_ends (S,), ray_indices (S,) int32, ray_offsets (R + 1,) int32: ray r owns
        [ray_offsets[r], ray_offsets[r + 1]). No gradients.

    Source: Müller et al., "Instant Neural Graphics Primitives", 2022, appendix E.
    """
    _check(origins, directions, near, far, bits, resolution, half, step, cone_angle, jitter, max_samples)
    tensors = dict(origins=origins, directions=directions, near=near, far=far, bits=bits, jitter=jitter, states=states)
    check_device("march_grid", **tensors)
    if states is None:
        states = brick_states(bits, resolution)
    check_shape("march_grid", "states", states, (bits.numel() + 4,))
    check_dtype("march_grid", "states", states, torch.uint8)
    return _march_grid(
        origins, directions, near, far, bits, states, resolution, half, step, cone_angle, jitter, max_samples
    )


def interval_points(
    origins: Tensor, directions: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor
) -> Tensor:
    """The middles (S, 3) of packed intervals: origins + directions (t_starts + t_ends) / 2, each of its own ray.

    origins, directions (R, 3); t_starts, t_ends (S,), all float32 or float64; ray_indices (S,) int32, which must be
    valid. Differentiable in origins and directions.
    """
    check_shape("interval_points", "origins", origins, (None, 3))
    check_shape("interval_points", "directions", directions, (len(origins), 3))
    check_shape("interval_points", "t_starts", t_starts, (None,))
    samples = (len(t_starts),)
    check_shape("interval_points", "t_ends", t_ends, samples)
    check_shape("interval_points", "ray_indices", ray_indices, samples)
    check_dtype("interval_points", "ray_indices", ray_indices, torch.int32)
    check_dtype("interval_points", "origins", origins, *FLOATS)
    for name, tensor in (("directions", directions), ("t_starts", t_starts), ("t_ends", t_ends)):
        check_dtype("interval_points", name, tensor, origins.dtype)
    tensors = dict(directions=directions, t_starts=t_starts, t_ends=t_ends, ray_indices=ray_indices)
    check_device("interval_points", origins=origins, **tensors)
    return _interval_points(origins, directions, t_starts, t_ends, ray_indices)


@op("interval_points")
def _interval_points(
    origins: Tensor, directions: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor
) -> Tensor:
    tensors = [x.contiguous() for x in (origins, directions, t_starts, t_ends, ray_indices)]
    points = origins.new_empty(len(t_starts), 3)
    launch("interval_points", origins.dtype, *tensors, points, len(t_starts))
    return points


@_interval_points.register_fake
def _(origins, directions, t_starts, t_ends, ray_indices):
    return origins.new_empty(t_starts.shape[0], 3)


def _points_context(ctx, inputs, output):
    origins, _, t_starts, t_ends, ray_indices = inputs
    ctx.rays = len(origins)
    ctx.save_for_backward(t_starts, t_ends, ray_indices)


def _points_backward(ctx, grad):
    t_starts, t_ends, ray_indices = ctx.saved_tensors
    zeros = grad.new_zeros(ctx.rays, 3)
    middles = ((t_starts + t_ends) * 0.5)[:, None]
    return zeros.index_add(0, ray_indices, grad), zeros.index_add(0, ray_indices, grad * middles), None, None, None


_interval_points.register_autograd(_points_backward, setup_context=_points_context)


def march_grid_scalar(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    *,
    resolution: int,
    half: float,
    step: float,
    cone_angle: float = 0.0,
    jitter: Tensor | None = None,
    max_samples: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``march_grid`` one ray and one cell at a time: what tests and benchmarks compare it with."""
    _check(origins, directions, near, far, bits, resolution, half, step, cone_angle, jitter, max_samples)
    rays = [None if x is None else x.contiguous() for x in (origins, directions, near, far, jitter, bits)]
    ray_offsets, total = torch.empty(len(origins) + 1, dtype=torch.int32), ctypes.c_int64()
    numbers = (
        len(origins),
        resolution,
        len(bits),
        half,
        step,
        cone_angle,
        _longest(resolution, half, step, len(bits)),
        max_samples,
    )
    launch("march_grid_scalar", None, *rays, *numbers, ray_offsets, ctypes.addressof(total))
    t_starts, t_ends, ray_indices = _outputs(origins, total.value)
    launch("march_grid_scalar_write", None, ray_offsets, t_starts, t_ends, ray_indices, len(origins))
    return t_starts, t_ends, ray_indices, ray_offsets


def _longest(resolution: int, half: float, step: float, cascades: int) -> float:
    return max(step, 2 * half * 2 ** (cascades - 1) / resolution)


def _check(origins, directions, near, far, bits, resolution, half, step, cone_angle, jitter, max_samples):
    op = "march_grid"
    check_shape(op, "origins", origins, (None, 3))
    rays = origins.shape[0]
    check_shape(op, "directions", directions, (rays, 3))
    check_shape(op, "near", near, (rays,))
    check_shape(op, "far", far, (rays,))
    for name, tensor in (("origins", origins), ("directions", directions), ("near", near), ("far", far)):
        check_dtype(op, name, tensor, torch.float32)
    if jitter is not None:
        check_shape(op, "jitter", jitter, (rays,))
        check_dtype(op, "jitter", jitter, torch.float32)
    check_dtype(op, "bits", bits, torch.int64)
    check_range(op, "resolution", resolution, 4, 1024)
    check_shape(op, "bits", bits, (None, (resolution // 4) ** 3))
    cascades = bits.shape[0]
    check_range(op, "bits: cascades", cascades, 1, 16)
    unit = 4 if cascades == 1 else 16
    if resolution % unit:
        raise ValueError(f"{op}: resolution: expected a multiple of {unit} with {cascades} cascades, got {resolution}")
    if not (half > 0 and math.isfinite(half)):
        raise ValueError(f"{op}: half: expected a positive number, got {half}")
    shortest = 2 * math.sqrt(3) * half * 2 ** (cascades - 1) / MAX_STEPS
    if not (shortest <= step < math.inf):
        raise ValueError(
            f"{op}: step: expected at least {shortest:.3g} ({MAX_STEPS} steps per ray), got {step}; use a longer step"
        )
    check_range(op, "cone_angle", cone_angle, 0, 1)
    check_range(op, "max_samples", max_samples, 0, 2**31 - 1)


def _outputs(origins: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    if samples >= 2**31:
        raise ValueError(
            f"march_grid: origins: expected fewer than 2^31 samples, got {samples}; march fewer rays at a time"
        )
    return origins.new_empty(samples), origins.new_empty(samples), origins.new_empty(samples, dtype=torch.int32)


@op("march_grid")
def _march_grid(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    states: Tensor,
    resolution: int,
    half: float,
    step: float,
    cone_angle: float,
    jitter: Tensor | None,
    max_samples: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rays = [None if x is None else x.contiguous() for x in (origins, directions, near, far, jitter, bits, states)]
    count, total = len(origins), ctypes.c_int64()
    longest = _longest(resolution, half, step, len(bits))
    numbers = (count, resolution, len(bits), half, step, cone_angle, longest)
    if on_gpu(origins):
        logs = (math.log2(1 + cone_angle), math.log2(longest / step))
        return _march_on_gpu(origins, rays, (*numbers, *logs), max_samples)
    ray_offsets = origins.new_empty(count + 1, dtype=torch.int32)
    launch("march_grid", None, *rays, *numbers, max_samples, ray_offsets, ctypes.addressof(total))
    t_starts, t_ends, ray_indices = _outputs(origins, total.value)
    launch("march_grid_write", None, ray_offsets, t_starts, t_ends, ray_indices, count)
    return t_starts, t_ends, ray_indices, ray_offsets


def _march_on_gpu(
    origins: Tensor, rays: list[Tensor | None], numbers: tuple, max_samples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two passes, between which the number of samples is waited for."""
    count = len(origins)
    counts, runs = origins.new_empty(count, dtype=torch.int32), origins.new_empty(count, RUNS, 2, dtype=torch.int32)
    starts = origins.new_empty(count)
    launch("march_grid_runs", None, *rays, *numbers, max_samples, counts, starts, runs)
    ray_offsets = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int64), (1, 0))
    total = int(ray_offsets[-1])
    t_starts, t_ends, ray_indices = _outputs(origins, total)
    ray_offsets = ray_offsets.int()
    kept = (ray_offsets, starts, runs)
    launch("march_grid_samples", None, *rays, *numbers, *kept, t_starts, t_ends, ray_indices)
    return t_starts, t_ends, ray_indices, ray_offsets


@_march_grid.register_fake
def _(origins, directions, near, far, bits, states, resolution, half, step, cone_angle, jitter, max_samples):
    samples = torch.library.get_ctx().new_dynamic_size()
    t_starts, t_ends = origins.new_empty(samples), origins.new_empty(samples)
    ray_indices = origins.new_empty(samples, dtype=torch.int32)
    return t_starts, t_ends, ray_indices, origins.new_empty(origins.shape[0] + 1, dtype=torch.int32)
