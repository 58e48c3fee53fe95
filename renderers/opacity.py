"""Opacity laws: from a field's values to the alpha of an interval. NGP is "hash grid + density law"."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fields.protocols import FieldOutput
from ..geometry import Rays, Samples


def density(output: FieldOutput, rays: Rays, samples: Samples) -> Tensor:
    """alpha = 1 - exp(-sigma dt): values are densities per unit length (Max 1995; Mildenhall et al. 2020, eq. 3)."""
    return -torch.expm1(-output.values * (samples.t_ends - samples.t_starts))
