"""Camera poses refined while fitting: one small rigid motion per photograph, exp of a twist that starts at zero.

    R' = exp(phi) R,    c' = c + V(phi) rho        of a camera at c: it turns about its own centre and is carried along

What would move or scale all cameras together is taken out, so that the scene stays where held-out cameras expect it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..geometry import Camera, Rays
from ..geometry.transforms import rigid, se3_exp, skew
from .protocols import Step

View = TypeVar("View", Camera, Rays)


@dataclass(frozen=True)
class PoseConfig:
    """How far, and when, poses may move."""

    learning_rate: float = 1e-3
    """Radians and scene units per step, at most about."""
    final_fraction: float = 0.05
    """Of the learning rate, at the end of the budget."""
    begin: float = 0.1
    """Share of the budget before poses move: first there must be a scene to go by."""
    prior: float = 1e-2
    """Weight of the mean squared twist."""

    def build(self, cameras: Sequence[Camera]) -> PoseDeltas:
        """Deltas for these photographs, where their cameras are."""
        return PoseDeltas(torch.stack([camera.position for camera in cameras]).float(), self)

    def group(self, deltas: PoseDeltas) -> dict[str, Any]:
        """What an optimizer is told."""
        return {"params": [deltas.twists], "lr": self.learning_rate, "final_fraction": self.final_fraction}


class PoseDeltas(nn.Module):
    """Moves the views of photographs at ``centers`` (F, 3), scene units."""

    together: Tensor

    def __init__(self, centers: Tensor, config: PoseConfig = PoseConfig()) -> None:
        super().__init__()
        self.config = config
        self.twists = nn.Parameter(torch.zeros(len(centers), 6).to(centers))
        self.register_buffer("together", _similarities(centers), persistent=False)

    def deltas(self) -> Tensor:
        """(F, 6) twists (rho, phi) in world axes, scene units and radians, without what cameras have in common."""
        flat = self.twists.flatten()
        return (flat - self.together @ (self.together.T @ flat)).view_as(self.twists)

    def forward(self, view: View, frames: Tensor, spent: float = 1.0) -> View:
        """A Camera of one photograph, () its number; or Rays, (R,) each one's. Gradients once ``begin`` is spent."""
        self.twists.requires_grad_(spent >= self.config.begin)
        motions = se3_exp(self.deltas())[frames]
        turn, shift = motions[..., :3, :3], motions[..., :3, 3]
        if isinstance(view, Camera):
            pose = view.camera_to_world
            return replace(view, camera_to_world=rigid(turn @ pose[:3, :3], pose[:3, 3] + shift))
        directions = (turn @ view.directions[:, :, None])[:, :, 0]
        return replace(view, origins=view.origins + shift, directions=directions)

    def prior(self, step: Step) -> Tensor:
        """A loss: cameras are about where they were said to be."""
        return self.config.prior * self.deltas().square().sum(-1).mean()


def _similarities(centers: Tensor) -> Tensor:
    """(6 F, k <= 7) orthonormal: the twists of all cameras when space is shifted, turned or scaled about the origin."""
    eye = torch.eye(3).to(centers).expand(len(centers), 3, 3)
    shifted = torch.cat([eye, torch.zeros_like(eye)], 1)
    turned = torch.cat([-skew(centers), eye], 1)
    scaled = torch.cat([centers, torch.zeros_like(centers)], 1)[..., None]
    basis = torch.cat([shifted, turned, scaled], 2).flatten(0, 1)
    axes, sizes, _ = torch.linalg.svd(basis.double(), full_matrices=False)
    return axes[:, sizes > 1e-6 * sizes[:1]].to(centers)
