"""Gaussians no finer than photographs could show: Mip-Splatting's 3D smoothing filter (Yu et al. 2024, section 4.1).

Each Gaussian is convolved with a round one of standard deviation f_i, its own share of the sampling interval of the
photograph that sees it best; what it absorbs in all stays the same:

    C_i + f_i^2 1,    opacity_i sqrt(det C_i / det(C_i + f_i^2 1)).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..geometry import Aabb, Camera, Gaussians
from .gaussians import GaussianField


class MipGaussianField(GaussianField):
    """Parameters are those before the filter; everything that draws or asks sees what ``gaussians`` makes of them."""

    filters: Tensor  # (G,) standard deviations, scene units

    def __init__(self, gaussians: Gaussians, bounds: Aabb) -> None:
        super().__init__(gaussians, bounds)
        self.register_buffer("filters", torch.zeros_like(self.logit_opacities))

    @torch.no_grad()
    def set_filters(self, cameras: list[Camera], share: float) -> None:
        """Let filters be ``share`` pixels wide in the photograph that sees a Gaussian best."""
        self.filters = share * footprints(self.means, cameras)

    def gaussians(self) -> Gaussians:
        """The filtered ones."""
        stored = self.stored()
        variances = (2 * stored.log_scales).exp()
        wider = variances + self.filters.square()[:, None]
        shares = (variances / wider).prod(-1).sqrt()
        logits = torch.logit(shares * stored.opacities, eps=1e-7)
        return replace(stored, log_scales=0.5 * wider.log(), logit_opacities=logits)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        filters = state_dict.get(prefix + "filters")
        if filters is not None and filters.dim() == 1:
            self.filters = self.filters.new_empty(filters.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def footprints(means: Tensor, cameras: list[Camera]) -> Tensor:
    """(G,) length that one pixel of the camera that sees a mean (G, 3) best covers there; 1e-6 where none sees it."""
    rate = means.new_zeros(len(means))
    for camera in cameras:
        pixels, z = camera.project(means)
        size = pixels.new_tensor([camera.width, camera.height])
        seen = ((pixels >= 0) & (pixels <= size)).all(-1) & (z > 1e-3)
        rate = torch.maximum(rate, torch.where(seen, camera.K[0, 0] / z, 0.0))
    return torch.where(rate > 0, 1 / rate.clamp(min=1e-12), 1e-6)
