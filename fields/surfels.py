"""Gaussians as surfels, discs of the first two axes: how thin the third is kept, and how a fit of them begins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry.gaussians import Gaussians

LOG_THICKNESS = math.log(1e-4)
"""Of the third axis, scene units: what draws surfels does not look at it, but files, viewers and densities do."""


def surfels(gaussians: Gaussians, generator: torch.Generator) -> Gaussians:
    """The same, flattened along their third axis and turned at random (Huang et al. 2024)."""
    quats = torch.randn(gaussians.quats.shape, generator=generator, device=generator.device).to(gaussians.quats)
    log_scales = gaussians.log_scales.clone()
    flatten(log_scales)
    return Gaussians(gaussians.means, quats, log_scales, gaussians.logit_opacities, gaussians.sh)


@torch.no_grad()
def flatten(log_scales: Tensor) -> None:
    """Give the third column of log_scales (G, 3) the thickness of surfels, in place."""
    log_scales[:, 2] = LOG_THICKNESS
