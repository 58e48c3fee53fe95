"""Importance resampling of packed intervals, a ray at a time: what ``renderers/resampling.py`` must agree with."""

from __future__ import annotations

import numpy as np


def spread(weights: np.ndarray) -> np.ndarray:
    """weights (S,) of one ray -> (S,): Mip-NeRF's eq. 18 without its constant."""
    padded = np.concatenate([[0.0], weights, [0.0]])
    larger = np.maximum(padded[1:], padded[:-1])
    larger[[0, -1]] = weights[[0, -1]]
    return (larger[1:] + larger[:-1]) / 2


def places(edges: list[tuple[float, float]], weights: np.ndarray, shares: np.ndarray) -> list[float]:
    """Where so much of the weight lies before: by walking along the intervals of one ray."""
    found = []
    for share in shares:
        left = share * weights.sum()
        for (start, end), weight in zip(edges, weights, strict=True):
            if left < weight:
                found.append(start + (end - start) * left / weight)
                break
            left -= weight
    return found


def cut(edges: list[tuple[float, float]], at: list[float]) -> list[tuple[float, float]]:
    """The intervals of one ray, cut at these places."""
    pieces = []
    for start, end in edges:
        marks = [start, *sorted(t for t in at if start < t < end), end]
        pieces += list(zip(marks[:-1], marks[1:], strict=True))
    return pieces
