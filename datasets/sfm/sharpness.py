"""How sharp a picture is: against its neighbours in a video, and by itself.

``sharpness``: mean squared gradient (Tenengrad; Krotkov 1988), which compares pictures of the same thing only.
``blur``: how little a picture changes when it is blurred once more, 0 (sharp) to 1 (nothing left to lose), along the
axis that is worse off (Crété et al. 2007, "The blur effect").
"""

from __future__ import annotations

import numpy as np

WINDOW = 9  # pixels of the blur that is compared with


def sharpness(grey: np.ndarray) -> float:
    """Mean squared difference of neighbours, of (H, W) uint8."""
    values = grey.astype(np.float32)
    down, right = np.diff(values, axis=0), np.diff(values, axis=1)
    return float(np.mean(down * down) + np.mean(right * right))


def blur(grey: np.ndarray) -> float:
    """0 to 1, of (H, W) uint8."""
    values = grey.astype(np.float32)
    return max(_blur_along(values), _blur_along(values.T))


def _blur_along(values: np.ndarray) -> float:
    """The share of the differences down the columns that a box blur of ``WINDOW`` leaves."""
    if values.shape[0] <= WINDOW + 1:
        return 0.0
    sums = np.cumsum(np.pad(values, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    smooth = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    inside = values[WINDOW // 2 : WINDOW // 2 + len(smooth)]
    before = np.abs(np.diff(inside, axis=0))
    lost = np.maximum(before - np.abs(np.diff(smooth, axis=0)), 0)
    total = float(before.sum())
    return 1 - float(lost.sum()) / total if total > 0 else 1.0
