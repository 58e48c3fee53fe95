"""How far two sets of the same Gaussians are apart, attribute by attribute: what a file format has cost.

Quaternions are compared as rotations: angle = 2 asin |q_a x q_b| for unit quaternions, whatever their sign or length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .gaussian_transforms import with_degree
from .gaussians import SH_C0, Gaussians


@dataclass(frozen=True)
class Differences:
    """Largest over all Gaussians."""

    means: float  # scene units
    angles: float  # radians between the two rotations
    log_scales: float  # 0.01 is about 1 % of the size
    opacities: float  # of [0, 1]
    colors: float  # the part that does not depend on direction, of [0, 1]
    sh: float  # any coefficient of degree 1 or more; 0 if there is none

    def __str__(self) -> str:
        return (
            f"means {self.means:.2g}, rotations {self.angles:.2g} rad, log scales {self.log_scales:.2g}, "
            f"opacities {self.opacities:.2g}, colours {self.colors:.2g}, higher sh {self.sh:.2g}"
        )


def largest_differences(a: Gaussians, b: Gaussians) -> Differences:
    """Compare Gaussian i of ``a`` with Gaussian i of ``b``; bands that one of them lacks count as zero.

    Raises:
        ValueError: their numbers differ, or are zero.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(
            f"largest_differences: b: expected as many Gaussians as a ({len(a)}), at least one, got {len(b)}"
        )
    degree = max(a.degree, b.degree)
    a, b = (with_degree(x.detach().to("cpu"), degree)._map(lambda t: t.double()) for x in (a, b))
    sh = (a.sh - b.sh).abs()
    return Differences(
        means=float((a.means - b.means).abs().max()),
        angles=float(_angles(a.quats, b.quats).max()),
        log_scales=float((a.log_scales - b.log_scales).abs().max()),
        opacities=float((a.opacities - b.opacities).abs().max()),
        colors=SH_C0 * float(sh[:, 0].max()),
        sh=float(sh[:, 1:].max()) if degree else 0.0,
    )


def _angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
    near = torch.where((a * b).sum(-1, keepdim=True) < 0, -b, b)
    return 4 * torch.asin(((a - near).norm(dim=-1) / 2).clamp(max=1))
