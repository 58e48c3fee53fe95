"""Sphere tracing in torch, one ray and one place at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

STEEPEST = 32.0


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
) -> tuple[Tensor, Tensor]:
    """-> depths (R,) and openness (R,)."""
    found = []
    for o, d, a, b in zip(origins, directions, near.tolist(), far.tolist(), strict=True):
        ask = lambda t, o=o, d=d: float(function((o + t * d)[None]))  # noqa: E731
        found.append(_trace(ask, a, b, tolerance, relaxation, steepness, max_steps))
    return tuple(torch.tensor(x, dtype=origins.dtype) for x in zip(*found, strict=True))  # type: ignore[return-value]


def _trace(ask, near, far, tolerance, relaxation, steep, max_steps):
    openness = math.inf
    if not near < far:
        return math.inf, openness
    low = None  # the last place outside, and its distance
    t = near
    while max_steps > 0:
        max_steps -= 1
        f = ask(t)
        if math.isnan(f):
            break
        if abs(f) <= tolerance or (f < 0 and low is None):
            return t, openness
        if low is not None:
            steep = min(max(steep, abs(low[1] - f) / (t - low[0])), STEEPEST)
        if low is not None and relaxation > 1 and low[1] + abs(f) < steep * (t - low[0]):
            relaxation, t = 1.0, low[0] + low[1] / steep
            continue
        if f < 0:
            return _between(ask, *low, t, f, tolerance, max_steps), openness
        if t > near:
            openness = min(openness, f / (t - near))
        if t + f / steep >= far:
            break
        low, t = (t, f), min(t + relaxation * f / steep, far)
    return math.inf, openness


def _between(ask, low, low_f, high, high_f, tolerance, max_steps):
    """The Illinois rule."""
    last = 0
    t = low + (high - low) * (low_f / (low_f - high_f))
    while high - low > tolerance and max_steps > 0:
        max_steps -= 1
        f = ask(t)
        if abs(f) <= tolerance:
            return t
        if f > 0:
            high_f = high_f / 2 if last > 0 else high_f
            low, low_f, last = t, f, 1
        else:
            low_f = low_f / 2 if last < 0 else low_f
            high, high_f, last = t, f, -1
        t = low + (high - low) * (low_f / (low_f - high_f))
    return t if high - low <= tolerance else math.inf
