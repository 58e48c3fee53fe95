"""How a distance's spatial gradient is found: exactly, or from differences of distances.

analytic      from the same pass as the distance, exact
finite        (f(x + h e_i) - f(x - h e_i)) / 2 h along each axis: six more distances, smoothed over h, so that a loss
              on gradients reaches more cells of a grid than the one that x lies in (Li et al., "Neuralangelo", 2023,
              eq. 5); h shrinks during a fit, as the levels of the grid join in
directional   from differences between the samples of neighbouring rays, and along them, while photographs are fitted:
              no more distances than samples (Cao and Taketomi, "SuperNormal", 2024, sec. 4.2); analytic elsewhere
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor


class Gradients(Enum):
    """What a distance's spatial gradient comes from."""

    ANALYTIC = "analytic"
    FINITE = "finite"
    DIRECTIONAL = "directional"


Differences = Callable[[Tensor], Tensor]  # distances (N,) at certain points -> gradients (N, 3) there


def around(points: Tensor, steps: Tensor) -> Tensor:
    """points (N, 3), steps (3,) -> (7 N, 3): the points, then those a step ahead along x, y, z, then a step behind."""
    shifts = torch.diag(steps)
    shifts = torch.cat([shifts.new_zeros(1, 3), shifts, -shifts])
    return (points + shifts[:, None]).view(-1, 3)


def central_differences(values: Tensor, steps: Tensor) -> Tensor:
    """values (7 N,) at the points of ``around`` -> gradients (N, 3), exact to the second order of steps (3,)."""
    each = values.view(7, -1)
    return ((each[1:4] - each[4:]) / (2 * steps)[:, None]).T
