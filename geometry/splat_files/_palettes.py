"""Numbers and rows of numbers replaced by the nearest of a few, as ``.sog`` stores them.

A codebook of 256: for the least mean square error, codes should be as dense as the cube root of the density of the
numbers (Panter and Dite, 1951). A quarter of them is spread evenly, so that no number is further from its code than
two 255ths of the range. A palette of rows: the means of boxes cut at the median of their widest axis, over and over.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CODES = 256


def codebook(values: Floats) -> Floats:
    """(N,) -> 256 increasing codes from the least value to the greatest; exact where there are no more than 256."""
    distinct = np.unique(values)
    if len(distinct) <= CODES:
        return np.concatenate([distinct, np.full(CODES - len(distinct), distinct[-1])])
    low, high = distinct[0], distinct[-1]
    counts, edges = np.histogram(values, 4096, (low, high))
    density = np.cbrt(counts)
    share = 0.75 * density / density.sum() + 0.25 / len(counts)
    return np.interp(np.linspace(0, 1, CODES), np.concatenate([[0], share.cumsum() / share.sum()]), edges)


def nearest_codes(values: Floats, codes: Floats) -> NDArray[np.uint8]:
    """Index of the code nearest to each value, any shape."""
    return np.searchsorted((codes[1:] + codes[:-1]) / 2, values).astype(np.uint8)


def palette(rows: Floats, size: int) -> tuple[Floats, NDArray[np.int64]]:
    """(N, D) -> at most ``size`` (a power of two) rows, and for each given row the index of the one that stands for it.

    Exact if there are no more than ``size`` distinct rows.
    """
    distinct, labels = np.unique(rows, axis=0, return_inverse=True)
    if len(distinct) <= size:
        return distinct, labels.reshape(-1)
    order, starts = np.arange(len(rows)), np.array([0, len(rows)])
    while len(starts) - 1 < size:
        sums, squares = (np.add.reduceat(x[order], starts[:-1]) for x in (rows, rows**2))
        lengths = np.diff(starts)
        axes = (squares - sums**2 / lengths[:, None]).argmax(1)
        box = np.repeat(np.arange(len(lengths)), lengths)
        order = order[np.lexsort((rows[order, axes[box]], box))]
        starts = np.unique(np.concatenate([starts, starts[:-1] + lengths // 2]))
    lengths = np.diff(starts)
    means = np.add.reduceat(rows[order], starts[:-1]) / lengths[:, None]
    labels = np.empty(len(rows), np.int64)
    labels[order] = np.repeat(np.arange(len(lengths)), lengths)
    return means, labels
