"""Sphere tracing: ``sphere_trace(function, ...)``, where rays meet a surface. Kernel: ``kernels/sphere_trace.cu``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import FLOATS, check_device, check_dtype, check_range, check_shape
from .native import launch, on_gpu
from .ops import op

ROWS = 7  # of a state, as in the kernel
DEPTH, LOW_F, STEEP, PHASE = 0, 2, 5, 6
CAREFUL, HIT = 1, 5  # phases
STEEPEST = 32.0  # slopes above this are jumps: the smallest step is the distance over this
ASK_EVERY = 4  # steps after which a GPU is asked how many rays are left
FEWER = 7 / 8  # of the rays left: the others make room


@torch.no_grad()
def sphere_trace(
    function: Callable[[Tensor], Tensor],
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    *,
    tolerance: float = 1e-4,
    relaxation: float = 1.0,
    steepness: float = 1.0,
    max_steps: int = 256,
    openness: Tensor | None = None,
) -> Tensor:
    """Where rays first come from where ``function`` is positive to where it is zero.

    Distances need not be exact: where a ray finds its distance to change faster than ``steepness``, its steps become as
    much shorter; a step longer than the distance is taken back unless the two spheres meet; where the sign changes, the
    place is found by secants. A thin sheet may still be passed where no sample tells of it: begin with a larger
    ``steepness`` for functions that grow faster than distance. A ray that begins inside meets the surface there.

    Args:
        function: points (N, 3) -> (N,) distances less the level that is looked for, positive outside; NaN ends a ray.
        origins: (R, 3) float32 or float64.
        directions: (R, 3) unit.
        near: (R,) where rays begin.
        far: (R,) where they end; one that does not lie beyond ``near`` is empty.
        tolerance: a distance that counts as zero, in units of length.
        relaxation: steps are this many distances long, 1 to 2.
        steepness: the slope that rays begin with; 1 for distances.
        max_steps: evaluations of one ray, after which it meets nothing.
        openness: (R,), lowered in place to the least function / (t - near) that a ray meets on its way: the tangent of
            the cone around it that is free. Take a relaxation of 1 for it.

    Returns:
        (R,) distances along the rays; infinite where nothing is met. No gradients: ``renderers.sphere_tracing`` has
        those of the place met.

    Source: Hart, "Sphere tracing", 1996; Keinert et al., "Enhanced sphere tracing", 2014.
    """
    _check(origins, directions, near, far, tolerance, relaxation, steepness, max_steps, openness)
    rays = (near < far).nonzero()[:, 0].int()
    state = origins.new_zeros(ROWS, len(rays))
    state[DEPTH], state[LOW_F], state[STEEP] = near[rays], -1.0, steepness
    if relaxation == 1:
        state[PHASE] = CAREFUL
    points = origins[rays] + directions[rays] * near[rays, None]
    depths = torch.full_like(near, math.inf)
    origins, directions, near, far = (x.contiguous() for x in (origins, directions, near, far))
    for step in range(max_steps):
        if len(rays) == 0:
            break
        values = function(points)
        check_shape("sphere_trace", "function: values", values, (len(points),))
        check_dtype("sphere_trace", "function: values", values, points.dtype)
        lengths = (near, far, tolerance, relaxation)
        sphere_trace_step(values, rays, origins, directions, *lengths, state, points, depths, openness)
        if not on_gpu(origins) or step % ASK_EVERY == ASK_EVERY - 1:
            rays, state, points = sphere_trace_keep(rays, state, points)
    return depths


def _check(origins, directions, near, far, tolerance, relaxation, steepness, max_steps, openness):
    op = "sphere_trace"
    check_shape(op, "origins", origins, (None, 3))
    check_dtype(op, "origins", origins, *FLOATS)
    check_shape(op, "directions", directions, (len(origins), 3))
    check_dtype(op, "directions", directions, origins.dtype)
    for name, tensor in (("near", near), ("far", far), ("openness", openness)):
        if tensor is not None:
            check_shape(op, name, tensor, (len(origins),))
            check_dtype(op, name, tensor, origins.dtype)
    check_device(op, origins=origins, directions=directions, near=near, far=far, openness=openness)
    if not 0 < tolerance < math.inf:
        raise ValueError(f"{op}: tolerance: expected a positive length, got {tolerance}")
    check_range(op, "relaxation", relaxation, 1, 2)
    check_range(op, "steepness", steepness, 1e-3, STEEPEST)
    check_range(op, "max_steps", max_steps, 1, 1 << 20)


def sphere_trace_step(
    values: Tensor,
    rays: Tensor,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    tolerance: float,
    relaxation: float,
    state: Tensor,
    points: Tensor,
    depths: Tensor,
    openness: Tensor | None,
) -> None:
    """What the values (A,) at the points (A, 3) of the ``rays`` (A,) int32 under way say, in place.

    state (7, A): see the kernel; points: where to ask next; depths (R,) and openness (R,) as ``sphere_trace`` has them.
    """
    values = values.contiguous()
    _step(values, rays, origins, directions, near, far, tolerance, relaxation, state, points, depths, openness)


def sphere_trace_keep(rays: Tensor, state: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``rays`` (A,), state (7, A) and points (A, 3) of those still under way, if they are few enough to be worth it."""
    places = (state[PHASE] < HIT).cumsum(0, dtype=torch.int32)
    kept = int(places[-1])
    return (rays, state, points) if kept > FEWER * len(rays) else _keep(places, rays, state, points, kept)


@op("sphere_trace_step", mutates=("state", "points", "depths", "openness"))
def _step(
    values: Tensor,
    rays: Tensor,
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    tolerance: float,
    relaxation: float,
    state: Tensor,
    points: Tensor,
    depths: Tensor,
    openness: Tensor | None,
) -> None:
    numbers = (tolerance, relaxation, STEEPEST)
    tensors = (values, rays, origins, directions, near, far)
    launch("sphere_trace_step", values.dtype, *tensors, *numbers, state, points, depths, openness, len(rays))


@_step.register_fake
def _(values, rays, origins, directions, near, far, tolerance, relaxation, state, points, depths, openness):
    return None


@op("sphere_trace_keep")
def _keep(places: Tensor, rays: Tensor, state: Tensor, points: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    fewer = rays.new_empty(kept), state.new_empty(ROWS, kept), points.new_empty(kept, 3)
    launch("sphere_trace_keep", state.dtype, places, rays, state, points, *fewer, kept, len(rays))
    return fewer


@_keep.register_fake
def _(places, rays, state, points, kept):
    return rays.new_empty(kept), state.new_empty(ROWS, kept), points.new_empty(kept, 3)
