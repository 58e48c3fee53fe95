"""Normal loss: the blended normals against measured ones. Pixels without a measured normal (0, NaN) do not count.

With weights w_i, normals n_i and A = sum_i w_i, a pixel's loss is 1 - N . m for m = sum_i w_i n_i / A, which is not
made unit: it asks all that a ray meets to agree, and gradients stay bounded where normals cancel out. As for depths, a
pixel counts by its A, taken as a constant. (The same cosine, between other normals: Huang et al. 2024, "2D Gaussian
Splatting", eq. 14.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..protocols import Step


def normal_error(normals: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """normals, target (*P, 3) -> 1 - their scalar product (*P,), 0 where the target is unknown; and known (*P,)."""
    length = target.square().sum(-1)
    known = length.isfinite() & (length > 0.25)
    wanted = torch.nn.functional.normalize(torch.where(known[..., None], target, 0.0), dim=-1)
    return torch.where(known, 1 - (normals * wanted).sum(-1), 0.0), known


@dataclass(frozen=True)
class Normal:
    """How much measured normals count; mean over the pixels that have one."""

    weight: float = 0.0
    """0 leaves it out."""

    needs: ClassVar[str] = "normals"  # of the targets

    def __call__(self, step: Step) -> Tensor:
        normals, alphas, target = step.render.mean_normals, step.render.pixels.alphas, step.target.normals
        if normals is None or alphas is None or target is None:
            which = "target" if target is None else "render"
            raise ValueError(f"normal: {which}: expected normals, got none; ask for them, or drop the loss")
        error, known = normal_error(normals, target)
        return self.weight * step.mean(error * alphas.detach(), known)
