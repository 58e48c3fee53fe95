"""Transient masks: pixels whose residual is an outlier, and whose neighbours' are too, count in no loss.

What moved while photographs were taken disagrees with the scene that the other photographs show: its residuals are
among the largest, and it covers whole regions. Fine detail, which a fit learns late, has large residuals as well, but
in thin lines (Sabour et al. 2023, "RobustNeRF", eq. 8 to 10; for rasterization Sabour et al. 2024, "SpotLessSplats").
With e the mean absolute difference of a pixel's channels, and T a quantile of the residuals of the last steps:

    images   o = [e <= T],  w = [mean of o over 3 x 3 >= 1/2],  a pixel counts if w, or if the mean of w around >= 0.6
    rays     a pixel counts if e <= T in a region of which 0.4 are inliers, or in any case where 0.6 are

RobustNeRF draws rays in patches to see such regions at once. Here they stay scattered over all photographs, and a
coarse map of each photograph remembers how its rays of the last steps did: patches of 8 x 8 rays cost 4 dB in a short
fit of the demo. Early in a fit everything is an outlier: so the share that may be left out grows from 0. What counts
nowhere has no gradient, hence no say in density control either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..geometry import Camera
from .protocols import Step

BINS = 1024  # of the square roots of residuals, over [0, 1]
DECAY = 0.98  # of the histogram, per step
AGREEMENT, REGION = 0.5, 0.6  # of 3 x 3 pixels, of a neighbourhood: shares of inliers from which on pixels count
MEMORY = 8.0  # rays that a cell of a map remembers, about
MOST_CELLS = 32  # of a map, a side


@dataclass(frozen=True)
class RobustConfig:
    """Leaves out what moved between the photographs: people, cars, shadows."""

    outliers: float = 0.0
    """Share of pixels that may be outliers, at most: about what moving things cover; 0 = all pixels count."""
    begin: float = 0.02
    """Share of the budget before any pixel is left out: first there must be a scene to go by."""
    until: float = 0.2
    """Share of the budget at which ``outliers`` is reached."""
    neighborhood: int = 8
    """Pixels a side of what has to agree; larger where a photograph is more than 32 times as large."""

    def build(self, photographs: int, longest: int) -> RobustMasks:
        """For so many photographs, the longest of whose sides has so many pixels."""
        return RobustMasks(self, photographs, min(MOST_CELLS, max(1, longest // self.neighborhood)))


NOTHING_MOVES = RobustConfig()


class RobustMasks(nn.Module):
    """Takes the outliers of a step out of what counts."""

    histogram: Tensor  # (BINS,) of residuals
    shares: Tensor  # (F, C, C) of inliers among a photograph's rays, by row and column

    def __init__(self, config: RobustConfig, photographs: int, cells: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("histogram", torch.zeros(BINS))
        self.register_buffer("shares", torch.ones(photographs, cells, cells))

    @torch.no_grad()
    def forward(self, step: Step) -> Step:
        """The step with ``target.masks`` (*P,): of an image (H, W), or of rays with ``image_points`` (R,)."""
        colors, masks = step.render.pixels.colors, step.target.masks
        assert colors is not None
        residuals = (colors - step.target_colors).abs().mean(-1).nan_to_num(1.0)
        self._observe(residuals if masks is None else residuals.where(masks, -1.0))
        share = self.config.outliers * self._annealed(step.spent)
        if share <= 0:
            return step
        inliers = residuals <= self._quantile(1 - share)
        if masks is not None:
            inliers |= ~masks  # nothing is known there
        if isinstance(step.view, Camera):
            kept = consistent(inliers, self.config.neighborhood)
        else:
            kept = self._by_region(inliers, step)
        return replace(step, target=replace(step.target, masks=kept if masks is None else kept & masks))

    def _annealed(self, spent: float) -> float:
        begin, until = self.config.begin, self.config.until
        return float(spent >= until) if until <= begin else min(max((spent - begin) / (until - begin), 0.0), 1.0)

    def _observe(self, residuals: Tensor) -> None:
        """Take residuals (*P,) into the histogram; negative ones do not count."""
        roots = residuals.clamp(max=1.0).flatten()
        roots = torch.where(roots < 0, roots, roots.clamp(min=0).sqrt())
        self.histogram.mul_(DECAY).add_(torch.histc(roots, BINS, 0.0, 1.0))

    def _quantile(self, share: float) -> Tensor:
        """() the residual that this share of the last steps' residuals does not exceed, to the width of a bin."""
        sums = self.histogram.cumsum(0)
        return (((sums < share * sums[-1]).sum() + 1) / BINS).square()

    def _by_region(self, inliers: Tensor, step: Step) -> Tensor:
        """inliers (R,) of rays -> which count, by what their photographs' maps say; the maps learn of them."""
        points = getattr(step.view, "image_points", None)
        if points is None or step.frames is None:
            raise ValueError("robust: view: expected rays with image_points and their frames, got none; draw them")
        cells = self.shares.shape[1]
        column, row = (points * cells).long().clamp(0, cells - 1).unbind(-1)
        place = (step.frames * cells + row) * cells + column
        flat = self.shares.view(-1)
        found = torch.stack([inliers.float(), torch.ones_like(points[:, 0])], -1)
        sums, counts = flat.new_zeros(len(flat), 2).index_add_(0, place, found).unbind(-1)
        flat.add_((sums - counts * flat) / (counts + MEMORY))
        shares = flat[place]
        return (shares >= REGION) | (inliers & (shares >= 1 - REGION))


def consistent(inliers: Tensor, neighborhood: int) -> Tensor:
    """inliers (H, W) bool -> which pixels count: outliers alone among inliers do, inliers among outliers do not."""
    smooth = _box_mean(inliers.float(), 3) >= AGREEMENT
    return smooth | (_box_mean(smooth.float(), neighborhood | 1) >= REGION)


def _box_mean(values: Tensor, size: int) -> Tensor:
    """(H, W) -> means over the ``size`` x ``size`` pixels around each, of those inside the image; ``size`` odd."""
    half = size // 2
    for kernel, padding in (((1, size), (0, half)), ((size, 1), (half, 0))):
        values = functional.avg_pool2d(values[None, None], kernel, 1, padding, count_include_pad=False)[0, 0]
    return values
