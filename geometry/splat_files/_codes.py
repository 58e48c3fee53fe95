"""What the formats share in rounding numbers to a few bits: arrays of Gaussians, quaternions, opacities.

Smallest three: of a unit quaternion the largest component is left out (it follows from the others, and is positive
after a change of sign); the others lie in [-1/sqrt 2, 1/sqrt 2].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..gaussians import Gaussians

SQRT_HALF = 0.7071067811865476
TINY = float(np.finfo(np.float32).tiny)  # a scale of zero is read as this
Array = NDArray[Any]


class Arrays(NamedTuple):
    """Gaussians as float64 arrays, quaternions of unit length: what writers round."""

    means: NDArray[np.float64]  # (G, 3)
    quats: NDArray[np.float64]  # (G, 4) w, x, y, z
    log_scales: NDArray[np.float64]  # (G, 3)
    opacities: NDArray[np.float64]  # (G,) in [0, 1]
    sh: NDArray[np.float64]  # (G, B, 3)


def to_arrays(gaussians: Gaussians) -> Arrays:
    """Float64 on the CPU, activated where formats want it so."""
    g = gaussians.detach().to("cpu")._map(lambda t: t.double())
    quats = torch.nn.functional.normalize(g.quats, dim=-1)
    return Arrays(*(t.numpy() for t in (g.means, quats, g.log_scales, g.opacities, g.sh)))


def to_gaussians(means: Array, quats: Array, log_scales_: Array, logits: Array, sh: Array) -> Gaussians:
    """Float32 tensors of their own memory. Infinite logits (opacities 0 and 1) and log 0 become finite."""
    with np.errstate(over="ignore"):
        tensors = [torch.from_numpy(np.array(x, dtype=np.float32)) for x in (means, quats, log_scales_, logits, sh)]
    tensors[2] = torch.where(tensors[2] == -torch.inf, tensors[2].new_tensor(np.log(TINY)), tensors[2])
    limit = float(logit(np.array(1.0)))
    tensors[3] = torch.where(tensors[3].isinf(), tensors[3].clamp(-limit, limit), tensors[3])
    return Gaussians(*tensors)


def logit(opacities: Array) -> NDArray[np.float64]:
    """log p / (1 - p), of float32's nearest neighbours inside (0, 1) for 0 and 1."""
    p = np.clip(opacities.astype(np.float64), TINY, 1 - 2.0**-25)
    return np.log(p) - np.log1p(-p)


def log_scales(scales: Array) -> NDArray[np.float64]:
    """log of standard deviations; NaN for negative ones, finite for 0."""
    with np.errstate(invalid="ignore"):
        return np.log(np.where(scales == 0, TINY, scales.astype(np.float64)))


def opacity_bytes(opacities: Array) -> NDArray[np.uint8]:
    """[0, 1] to 0 .. 255."""
    return to_bytes(opacities * 255)


def logit_of_bytes(values: Array) -> NDArray[np.float64]:
    """Inverse of ``opacity_bytes``; 0 and 255 stand for the half steps beside them, so that logits are finite."""
    return logit(np.clip(values.astype(np.float64), 0.25, 254.75) / 255)


def to_bytes(values: Array) -> NDArray[np.uint8]:
    """Rounded and clamped to 0 .. 255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def smallest_three(quats: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Unit (G, 4) -> which component is left out (G,), and the others in their order (G, 3)."""
    largest = np.abs(quats).argmax(1)
    sign = np.where(np.take_along_axis(quats, largest[:, None], 1) < 0, -1.0, 1.0)
    return largest, np.take_along_axis(quats * sign, _others(largest), 1)


def from_smallest_three(largest: Array, three: Array) -> NDArray[np.float64]:
    """Inverse of ``smallest_three``."""
    quats = np.empty((len(three), 4))
    left = np.sqrt(np.maximum(0.0, 1 - np.square(three, dtype=np.float64).sum(1)))
    np.put_along_axis(quats, largest.astype(np.int64)[:, None], left[:, None], 1)
    np.put_along_axis(quats, _others(largest), three, 1)
    return quats


def _others(largest: Array) -> NDArray[np.int64]:
    return np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest.astype(np.int64)]
