"""A camera: intrinsics, pose and lens. OpenCV axes (+x right, +y down, +z forward); pixel (0, 0) has its centre at
(0.5, 0.5), so an image spans [0, width] x [0, height] and scaling an image scales fx, fy, cx and cy alike.

pixel = K [u, v, 1], where (u, v) is the lens's image of the direction (``lenses.py``): x/z, y/z for a pinhole; for
equirectangular images (u, v) are longitude and latitude in radians and K holds pixels per radian.
Where the lens sees nothing (``sees``), ``directions`` is the optical axis and ``rays`` are empty (far = near); points
that it cannot image are NaN in ``project``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import lenses
from .transforms import rigid_inverse
from .types import CameraModel, Rays, _TensorDataclass

_COUNTS = {
    CameraModel.PINHOLE: (0,),
    CameraModel.OPENCV: (4, 5, 8),
    CameraModel.FISHEYE: (4,),
    CameraModel.EQUIRECTANGULAR: (0,),
}


@dataclass(frozen=True)
class Camera(_TensorDataclass):
    """One view."""

    K: Tensor  # (3, 3) intrinsics in pixels, no skew; pixels per radian if equirectangular
    camera_to_world: Tensor  # (4, 4) rigid
    width: int
    height: int
    model: CameraModel = CameraModel.PINHOLE
    distortion: Tensor | None = None  # (D,) coefficients in the order that CameraModel names

    def __post_init__(self) -> None:
        for name, shape in (("K", (3, 3)), ("camera_to_world", (4, 4))):
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"Camera: {name}: expected shape {shape}, got {got}; reshape it")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"Camera: width, height: expected at least 1 x 1, got {self.width} x {self.height}")
        count = 0 if self.distortion is None else self.distortion.numel()
        if count not in _COUNTS[self.model]:
            wanted = " or ".join(map(str, _COUNTS[self.model]))
            raise ValueError(
                f"Camera: distortion: expected {wanted} coefficients for {self.model.name}, got {count}; "
                "CameraModel names them"
            )

    @staticmethod
    def perspective(width: int, height: int, fov_x: float, camera_to_world: Tensor) -> Camera:
        """A pinhole with square pixels and a centred principal point; ``fov_x`` in radians."""
        focal = width / (2 * math.tan(fov_x / 2))
        return Camera(intrinsics(focal, focal, width / 2, height / 2, camera_to_world), camera_to_world, width, height)

    @staticmethod
    def equirectangular(width: int, height: int, camera_to_world: Tensor) -> Camera:
        """All directions: the image covers 360 x 180 degrees, its centre looks along +z."""
        K = intrinsics(width / (2 * math.pi), height / math.pi, width / 2, height / 2, camera_to_world)
        return Camera(K, camera_to_world, width, height, CameraModel.EQUIRECTANGULAR)

    @property
    def world_to_camera(self) -> Tensor:
        """(4, 4)."""
        return rigid_inverse(self.camera_to_world)

    @property
    def position(self) -> Tensor:
        """(3,) the centre of projection."""
        return self.camera_to_world[:3, 3]

    @property
    def forward(self) -> Tensor:
        """(3,) unit, along the optical axis."""
        return self.camera_to_world[:3, 2]

    @property
    def up(self) -> Tensor:
        """(3,) unit, towards the image's upper edge."""
        return -self.camera_to_world[:3, 1]

    def pixel_centers(self) -> Tensor:
        """(H * W, 2) x, y of every pixel's centre, row by row."""
        dtype, device = self.camera_to_world.dtype, self.camera_to_world.device
        y = torch.arange(self.height, dtype=dtype, device=device)
        x = torch.arange(self.width, dtype=dtype, device=device)
        y, x = torch.meshgrid(y + 0.5, x + 0.5, indexing="ij")
        return torch.stack([x.reshape(-1), y.reshape(-1)], -1)

    def directions(self, pixels: Tensor | None = None) -> Tensor:
        """Pixel positions (R, 2) -> unit directions (R, 3) in camera space; (0, 0, 1) where the lens sees nothing.

        None stands for all pixel centres, row by row. Computed in float64, returned in the pose's dtype.
        """
        return self._directions(pixels)[0]

    def rays(self, pixels: Tensor | None = None, near: float = 0.0, far: float = math.inf) -> Rays:
        """Rays through pixel positions (R, 2), None = all pixel centres row by row, cut at ``near`` and ``far``.

        Where the lens sees nothing the ray is empty (along the optical axis, far = near). Differentiable with respect
        to the pose, the intrinsics and the lens.
        """
        local, exists = self._directions(pixels)
        world = local @ self.camera_to_world[:3, :3].T
        near_t = torch.full_like(world[:, 0], near).detach()
        far_t = torch.full_like(near_t, far)
        if exists is not None:
            far_t = torch.where(exists, far_t, near_t)
        return Rays(self.position.expand_as(world), world, near_t, far_t)

    def sees(self, pixels: Tensor | None = None) -> Tensor:
        """(R,) bool: whether the lens images any direction there (corners of a fisheye image show none)."""
        exists = self._unproject(self.pixel_centers() if pixels is None else pixels)[3]
        count = self.width * self.height if pixels is None else pixels.shape[0]
        return torch.ones(count, dtype=torch.bool, device=self.K.device) if exists is None else exists

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points (N, 3) -> pixel positions (N, 2) and z_depths (N,).

        A position is NaN where the lens has no image of the point: behind a pinhole, or past the angle where the
        distortion polynomial folds back. It may lie outside [0, width] x [0, height]. z_depths are the plain z in
        camera space, negative behind the camera (a fisheye may see such a point). Gradients are finite everywhere.
        """
        pose = self.camera_to_world
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        u, v, seen = self._lens(*local.unbind(-1))
        K = self.K.to(local.dtype)
        pixels = torch.stack([u * K[0, 0] + K[0, 2], v * K[1, 1] + K[1, 2]], -1)
        return torch.where(seen[:, None], pixels, math.nan), local[:, 2]

    def resized(self, width: int, height: int) -> Camera:
        """The same view at another image size; the intrinsics scale by the exact ratios of the sizes."""
        scale = self.K.new_tensor([[width / self.width], [height / self.height], [1.0]])
        return replace(self, K=self.K * scale, width=width, height=height)

    def downscaled(self, factor: float) -> Camera:
        """``resized`` to the size divided by ``factor``, rounded; at least one pixel."""
        return self.resized(*downscaled_size(self.width, self.height, factor))

    def cropped(self, x: float, y: float, width: int, height: int) -> Camera:
        """The window of the image whose upper left corner is (x, y), pixels; it may reach beyond the image."""
        shift = torch.zeros_like(self.K)
        shift[0, 2], shift[1, 2] = x, y
        return replace(self, K=self.K - shift, width=width, height=height)

    def _directions(self, pixels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, y, z, exists = self._unproject(self.pixel_centers() if pixels is None else pixels)
        local = torch.stack([x, y, z], -1)
        if exists is not None:
            local = torch.where(exists[:, None], local, local.new_tensor([0.0, 0.0, 1.0]))
        return local.to(self.camera_to_world.dtype), exists

    def _unproject(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Pixels (R, 2) -> unit x, y, z in float64 and where they exist (None = everywhere)."""
        K, p = self.K.double(), pixels.double()
        u, v = (p[:, 0] - K[0, 2]) / K[0, 0], (p[:, 1] - K[1, 2]) / K[1, 1]
        exists: Tensor | None = None
        if self.model is CameraModel.EQUIRECTANGULAR:
            return u.sin() * v.cos(), v.sin(), u.cos() * v.cos(), v.abs() <= math.pi / 2 + 1e-9
        if self.model is CameraModel.FISHEYE:
            assert self.distortion is not None
            square = u * u + v * v
            off_axis = square > 1e-24
            radius = torch.where(off_axis, square, 1.0).sqrt()
            theta, exists = lenses.fisheye_undistort(torch.where(off_axis, radius, 0.0), self.distortion)
            sine = torch.where(off_axis, theta.sin() / radius, 1.0)
            return u * sine, v * sine, theta.cos(), exists
        if self.model is CameraModel.OPENCV:
            assert self.distortion is not None
            u, v, exists = lenses.opencv_undistort(u, v, self.distortion)
        z = (u * u + v * v + 1).rsqrt()
        return u * z, v * z, z, exists

    def _lens(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Camera-space points -> positions on the unit plane and where they exist; finite everywhere."""
        if self.model is CameraModel.EQUIRECTANGULAR:
            square = x * x + z * z
            seen = square + y * y > 0
            pole = square <= 1e-30
            flat = torch.where(pole, 1.0, square).sqrt()
            longitude = torch.where(pole, 0.0, torch.atan2(torch.where(pole, 0.0, x), torch.where(pole, 1.0, z)))
            return longitude, torch.atan2(y, torch.where(pole, 0.0, flat) + torch.where(seen, 0.0, 1.0)), seen
        if self.model is CameraModel.FISHEYE:
            assert self.distortion is not None
            square = x * x + y * y
            off_axis = square > 1e-30
            flat = torch.where(off_axis, square, 1.0).sqrt()
            theta = torch.atan2(torch.where(off_axis, flat, 0.0), torch.where(off_axis | (z != 0), z, 1.0))
            radius, _ = lenses.fisheye_radius(theta, [c.to(x.dtype) for c in lenses.coefficients(self.distortion, 4)])
            seen = (theta <= lenses.fisheye_limit(self.distortion)) & (off_axis | (z > 0))
            scale = torch.where(off_axis, radius / flat, 1.0 / torch.where(z > 0, z, 1.0))
            scale = torch.where(seen, scale, 0.0)
            return x * scale, y * scale, seen
        seen = z > 0
        depth = torch.where(seen, z, 1.0)
        u, v = x / depth, y / depth
        if self.model is CameraModel.OPENCV:
            assert self.distortion is not None
            seen = seen & (u * u + v * v <= lenses.opencv_limit(self.distortion) ** 2)
            u, v = torch.where(seen, u, 0.0), torch.where(seen, v, 0.0)
            k = [c.to(x.dtype) for c in lenses.coefficients(self.distortion, 8)]
            u, v, _ = lenses.opencv_distort(u, v, k)
        return u, v, seen


def intrinsics(fx: float, fy: float, cx: float, cy: float, like: Tensor | None = None) -> Tensor:
    """(3, 3) [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]."""
    K = torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return K.float() if like is None else K.to(like)


def downscaled_size(width: int, height: int, factor: float) -> tuple[int, int]:
    """The size divided by ``factor`` and rounded, at least 1 x 1."""
    if not factor > 0:
        raise ValueError(f"downscaled: factor: expected a positive number, got {factor}")
    return max(1, math.floor(width / factor + 0.5)), max(1, math.floor(height / factor + 0.5))
