"""Gaussians that look alike at every distance and size: Mip-Splatting's two filters (Yu et al. 2024) on ``splat``.

In the image, opacities shrink as the blur widens an ellipse (``antialias``). In space, no Gaussian stays smaller than
what the photograph that sees it best could show: scales are held above that, where the paper convolves with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ...fields.gaussians import GaussianField
from ...renderers.splat import SplatConfig
from ..fit import Report
from . import splat


@dataclass(frozen=True)
class Config(splat.Config):
    """3D Gaussians with Mip-Splatting's filters: no aliasing when zooming in or out."""

    draw: SplatConfig = field(default_factory=lambda: SplatConfig(blur=0.1, antialias=True))
    smallest: float = 0.2**0.5
    """Standard deviation of the smallest Gaussian, in pixels of the photograph that sees it best."""
    filter_every: int = 100
    """Steps between looks at what photographs see."""

    def after_step(self) -> list:
        """``splat``'s, and the filter in space."""
        return [*super().after_step(), self.filter_scales]

    def filter_scales(self, report: Report) -> None:
        """Let no Gaussian be smaller than the sampling rate of the photographs allows (section 4.1)."""
        job = report.job
        if job.step % self.filter_every and report.spent < 1:
            return
        assert isinstance(job.field, GaussianField)
        finest = footprints(job.field.means.detach(), job.batches.cameras) * self.smallest  # type: ignore[attr-defined]
        with torch.no_grad():
            job.field.log_scales.clamp_(min=finest.log()[:, None])


def footprints(means: torch.Tensor, cameras: list) -> torch.Tensor:
    """(G,) length that one pixel of the camera that sees a mean (G, 3) best covers there; 1e-6 where none sees it."""
    best = means.new_full((len(means),), 1e-6)
    rate = means.new_zeros(len(means))
    for camera in cameras:
        pixels, z = camera.project(means)
        size = pixels.new_tensor([camera.width, camera.height])
        seen = ((pixels >= 0) & (pixels <= size)).all(-1) & (z > 1e-3)
        here = torch.where(seen, camera.K[0, 0] / z, 0.0)
        rate = torch.maximum(rate, here)
    return torch.where(rate > 0, 1 / rate.clamp(min=1e-12), best)
