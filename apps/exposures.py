"""What a fit takes out of single photographs, so that it does not end up in the scene: nothing, gains, or more."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import nn

from ..renderers.appearance import LEARNING_RATE, AppearanceCodes
from ..renderers.bilateral_grid import BilateralConfig, BilateralGrids
from ..renderers.exposure import Exposure
from .fit import Report


class ExposureKind(Enum):
    """What changes from one photograph to the next, beside the view."""

    NONE = "none"
    GAIN = "gain"
    """One gain per photograph and channel."""
    CODES = "codes"
    """A code per photograph, of which a small network makes an affine map of colours (GLO; Rematas et al. 2022)."""
    BILATERAL = "bilateral"
    """Affine maps of colours that vary over the image and with luminance (Wang et al. 2024)."""

    @classmethod
    def _missing_(cls, value: object) -> ExposureKind | None:
        """Runs of an older version say true or false."""
        return {True: cls.GAIN, False: cls.NONE}.get(value) if isinstance(value, bool) else None

    def build(
        self, images: int, bilateral: BilateralConfig, device: torch.device, **options: Any
    ) -> tuple[nn.Module | None, list[dict[str, Any]]]:
        """The module and its groups for an optimizer; ``options`` are those of gains."""
        if self is ExposureKind.NONE:
            return None, []
        if self is ExposureKind.GAIN:
            gains = Exposure(images).to(device)
            return gains, [{"params": list(gains.parameters()), **options}]
        if self is ExposureKind.CODES:
            codes = AppearanceCodes(images).to(device)
            return codes, [{"params": list(codes.parameters()), **options, "lr": LEARNING_RATE}]
        grids = BilateralGrids(images, bilateral).to(device)
        return grids, [bilateral.group(grids)]


def center_exposures(report: Report) -> None:
    """After a step: now and then, give the scene back what all photographs have in common."""
    grids = report.job.exposure
    if isinstance(grids, BilateralGrids) and report.job.step % grids.config.center_every == 0:
        grids.center()
