"""Normal consistency: surfels lie in the surface that their depths make (Huang et al., "2D Gaussian Splatting", 2024,
eq. 14)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...geometry import Camera
from ..protocols import Step


def depth_normals(depths: Tensor, camera: Camera) -> Tensor:
    """Depths along the rays (H, W), 0 = nothing -> unit normals (H, W, 3) of the surface they make, towards the camera.

    By central differences of neighbouring pixels; zero at the image's border, and where a neighbour has no depth.
    """
    normals = depths.new_zeros(*depths.shape, 3)
    if min(depths.shape) < 3:
        return normals
    rays = camera.rays()
    points = depths[..., None] * rays.directions.view(*depths.shape, 3)  # from the camera
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    inner = functional.normalize(torch.linalg.cross(down, across), dim=-1)
    some = depths.detach() > 0
    known = some[1:-1, 2:] & some[1:-1, :-2] & some[2:, 1:-1] & some[:-2, 1:-1]
    return functional.pad(torch.where(known[..., None], inner, 0.0), (0, 0, 1, 1, 1, 1))


@dataclass(frozen=True)
class NormalConsistency:
    """Mean over pixels that count of sum_i w_i (1 - n_i N), n_i a surfel's normal, N that of the depth map."""

    weight: float = 0.05
    """As published. 0 leaves it out."""
    begin: float = 7 / 30
    """Share of the budget before it counts (published: 7,000 of 30,000 steps)."""

    def __call__(self, step: Step) -> Tensor:
        pixels, normals = step.render.pixels, step.render.mean_normals
        if pixels.depths is None or pixels.alphas is None or normals is None:
            raise ValueError(
                "normal_consistency: render: expected depths and normals, got none; use SurfelRenderer(geometry=True)"
            )
        if step.spent < self.begin:
            return normals.new_zeros(())
        assert isinstance(step.view, Camera)
        surface = depth_normals(pixels.depths, step.view.to(normals.device))
        known = surface.detach().square().sum(-1) > 0
        missing = pixels.alphas * (1 - (normals * surface).sum(-1))
        return self.weight * step.mean(torch.where(known, missing, 0.0))
