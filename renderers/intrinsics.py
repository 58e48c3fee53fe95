"""Intrinsics refined while fitting: for each camera that took photographs, a focal length and a radial distortion.

    f' = f exp(s - a / 3),    k1' = k1 + a / R^2        s and a begin at zero, under a prior

R is the radius of the image's corner on the plane at unit focal length, and 1 / 3 the mean of (r / R)^2 over an image:
so a step of s or a moves corners about as far, and one of a does not make the image larger.
Photographs of one camera share these. A ray's direction follows by Newton's method from where it was, its gradient by
the implicit function theorem (``lenses.follow_opencv``); a rasterizer draws with another K. Pinholes
may turn out to be distorted where rays are marched. Equirectangular images have nothing to refine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import Camera, CameraModel
from ..geometry.lenses import coefficients, follow_fisheye, follow_opencv
from .pose_deltas import View
from .protocols import Step


@dataclass(frozen=True)
class IntrinsicsConfig:
    """How far, and when, focal lengths and distortions may change."""

    learning_rate: float = 1e-3
    """Of a focal length's logarithm and of the distortion, per step, at most about."""
    final_fraction: float = 0.05
    """Of the learning rate, at the end of the budget."""
    begin: float = 0.1
    """Share of the budget before they change: first there must be a scene to go by."""
    prior: float = 1e-2
    """Weight of the mean squared change."""

    def group(self, intrinsics: Intrinsics) -> dict[str, Any]:
        """What an optimizer is told."""
        learned = list(intrinsics.parameters())
        return {"params": learned, "lr": self.learning_rate, "final_fraction": self.final_fraction}


class Intrinsics(nn.Module):
    """Changes the views of photographs with these cameras; ``owners`` says which camera took each, from 0."""

    rotations: Tensor  # (F, 3, 3) camera to world
    pinholes: Tensor  # (F, 4) fx, fy, cx, cy
    lens: Tensor  # (F, 8) distortion, zeros where there is none
    size: Tensor  # (F, 2) width, height
    fisheye: Tensor  # (F,) bool: which lenses are equidistant
    corners: Tensor  # (C,) squared radius of an image's corner on the plane at unit focal length
    around: Tensor  # (F,) bool: which images are panoramas
    owners: Tensor  # (F,)

    def __init__(
        self, cameras: Sequence[Camera], owners: Sequence[int], config: IntrinsicsConfig, *, radial: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.models = {camera.model for camera in cameras}
        K = torch.stack([camera.K for camera in cameras]).double()
        none = torch.zeros(0)
        known = [torch.stack(coefficients(none if c.distortion is None else c.distortion, 8)) for c in cameras]
        tables = {
            "rotations": torch.stack([c.camera_to_world[:3, :3] for c in cameras]),
            "pinholes": torch.stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]], -1),
            "lens": torch.stack(known),
            "size": torch.tensor([[c.width, c.height] for c in cameras], dtype=torch.float64),
            "fisheye": torch.tensor([c.model is CameraModel.FISHEYE for c in cameras]),
            "around": torch.tensor([c.model is CameraModel.EQUIRECTANGULAR for c in cameras]),
            "owners": torch.tensor(list(owners)),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        count = max(owners) + 1
        half = self.size / 2 / self.pinholes[:, :2]
        corners = torch.zeros(count).double().index_copy_(0, self.owners, half.square().sum(-1))
        self.register_buffer("corners", corners, persistent=False)
        self.log_focals = nn.Parameter(torch.zeros(count))
        self.radial = nn.Parameter(torch.zeros(count)) if radial else None

    def forward(self, view: View, frames: Tensor, spent: float = 1.0) -> View:
        """A Camera of one photograph, () its number; or Rays with ``image_points``, (R,) each one's number."""
        for parameter in self.parameters():
            parameter.requires_grad_(spent >= self.config.begin)
        if isinstance(view, Camera):
            return self.refined(view, self.owners[frames])
        if view.image_points is None:
            raise ValueError("Intrinsics: view: expected rays with image_points, got none; draw them")
        local = (view.directions[:, None] @ self.rotations[frames])[:, 0]
        turned = (self.rotations[frames] @ self._followed(view.image_points, local, frames)[:, :, None])[:, :, 0]
        directions = torch.where(self.around[frames][:, None], view.directions, turned)
        return replace(view, directions=directions)

    def scales(self) -> Tensor:
        """(C,) by what the cameras' focal lengths are multiplied."""
        change = self.log_focals if self.radial is None else self.log_focals - self.radial / 3
        return change.double().exp()

    def bends(self) -> Tensor:
        """(C,) what is added to k1, the first coefficient of every lens."""
        assert self.radial is not None
        return self.radial / self.corners

    def refined(self, camera: Camera, owner: int | Tensor) -> Camera:
        """A view of this camera as it turned out to be."""
        if camera.model is CameraModel.EQUIRECTANGULAR:
            return camera
        scale = torch.ones_like(camera.K)
        scale[0, 0] = scale[1, 1] = self.scales()[owner].to(camera.K)
        camera = replace(camera, K=camera.K * scale)
        if self.radial is None:
            return camera
        known = camera.K.new_zeros(4) if camera.distortion is None else camera.distortion
        change = self.bends()[owner].to(known)
        lens = torch.cat([known[:1] + change, known[1:]])
        model = CameraModel.OPENCV if camera.model is CameraModel.PINHOLE else camera.model
        return replace(camera, model=model, distortion=lens)

    def _followed(self, points: Tensor, local: Tensor, frames: Tensor) -> Tensor:
        """Unit directions (R, 3) before the cameras, which were ``local`` as the cameras were said to be."""
        owner = self.owners[frames]
        fx, fy, cx, cy = self.pinholes[frames].unbind(-1)
        scale = self.scales()[owner]
        x, y = (points.double() * self.size[frames]).unbind(-1)
        u, v = (x - cx) / (fx * scale), (y - cy) / (fy * scale)
        lens = self.lens[frames]
        if self.radial is not None:
            lens = torch.cat([lens[:, :1] + self.bends()[owner, None], lens[:, 1:]], -1)
        k, start, found = lens.unbind(-1), local.double(), None
        if self.models - {CameraModel.FISHEYE}:
            found = follow_opencv(start, u, v, k)
        if CameraModel.FISHEYE in self.models:
            bent = follow_fisheye(start, u, v, k[:4])
            found = bent if found is None else torch.where(self.fisheye[frames][:, None], bent, found)
        assert found is not None
        return found.to(local)

    def prior(self, step: Step) -> Tensor:
        """A loss: cameras are about as they were said to be."""
        return self.config.prior * sum((p.square().mean() for p in self.parameters()), torch.zeros(()).to(self.lens))
