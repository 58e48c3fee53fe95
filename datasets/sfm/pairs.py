"""Which photographs are compared with which: all with all, neighbours in time, or look-alikes.

Look-alikes need no vocabulary: the few features of largest scale are compared between all pairs, and each photograph
keeps those with which it shares most ("preemptive matching", Wu 2013, "Towards Linear-time Incremental Structure from
Motion").
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from .features import Features

ALL_UP_TO = 50  # photographs that are all compared with all
WINDOW = 8  # neighbours in time
REACH = 64  # the farthest in time; beyond WINDOW, steps double
LOOK_ALIKES = 25
LOOPS = 5  # look-alikes of a video's frame, where the camera comes back to
LARGEST = 256  # features of largest scale
RATIO = 0.8  # of the best distance to the second best, at most


class Matching(Enum):
    """Which photographs are compared with each other."""

    AUTO = "auto"
    """exhaustive for 50 photographs or fewer, sequential for a video, else similar."""
    EXHAUSTIVE = "exhaustive"
    """All with all."""
    SEQUENTIAL = "sequential"
    """Neighbours in the order of names, and places that the camera comes back to."""
    SIMILAR = "similar"
    """Each with those that look most alike, and its neighbours."""


def choose_pairs(features: Sequence[Features], matching: Matching, is_video: bool) -> list[tuple[int, int]]:
    """Pairs i < j of indices, in sorted order."""
    count = len(features)
    if matching is Matching.AUTO:
        matching = Matching.EXHAUSTIVE if count <= ALL_UP_TO else Matching.SEQUENTIAL if is_video else Matching.SIMILAR
    if matching is Matching.EXHAUSTIVE:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    if matching is Matching.SEQUENTIAL:
        return sorted({*neighbours(count, WINDOW, REACH), *look_alikes(features, LOOPS, apart=WINDOW)})
    return sorted({*neighbours(count, 2, 2), *look_alikes(features, LOOK_ALIKES)})


def neighbours(count: int, window: int, reach: int) -> list[tuple[int, int]]:
    """Pairs up to ``window`` apart, and twice, four times, ... as far up to ``reach``."""
    steps = list(range(1, window + 1))
    while steps[-1] * 2 <= reach:
        steps.append(steps[-1] * 2)
    return [(i, i + step) for i in range(count) for step in steps if i + step < count]


def look_alikes(features: Sequence[Features], each: int, apart: int = 0) -> list[tuple[int, int]]:
    """Each photograph's ``each`` most similar ones that are more than ``apart`` away in order, as pairs i < j."""
    shared = similarity(features)
    index = torch.arange(len(features))
    shared[(index[:, None] - index).abs() <= apart] = 0
    best = shared.topk(min(each, len(features)), dim=1)
    return sorted(
        {
            (min(i, j), max(i, j))
            for i, (counts, others) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
            for count, j in zip(counts, others, strict=True)
            if count > 0
        }
    )


def similarity(features: Sequence[Features]) -> Tensor:
    """(P, P) how many of the largest features agree between two photographs; 0 on the diagonal."""
    chosen = torch.stack([_largest(f) for f in features])
    shared = torch.zeros(len(features), len(features))
    for i in range(len(features) - 1):
        cosines = torch.einsum("fc,pgc->pfg", chosen[i], chosen[i + 1 :])
        there, back = cosines.topk(min(2, LARGEST), dim=2), cosines.max(1)
        squared = 2 - 2 * there.values.clamp(max=1)  # squared distances of unit vectors
        distinct = squared[..., 0] < RATIO**2 * squared[..., 1]
        mutual = back.indices.gather(1, there.indices[..., 0]) == torch.arange(LARGEST)
        shared[i, i + 1 :] = (distinct & mutual & (there.values[..., 0] > 0)).sum(1).float()
    return shared + shared.T


def _largest(features: Features) -> Tensor:
    """(LARGEST, 128) unit descriptors of the features of largest scale; zeros where there are fewer."""
    order = np.argsort(-features.pixels[:, 2], kind="stable")[:LARGEST]
    found = torch.zeros(LARGEST, 128)
    found[: len(order)] = torch.nn.functional.normalize(torch.from_numpy(features.descriptors[order]).float(), dim=1)
    return found
