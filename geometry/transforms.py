"""Rigid motions, similarities, rotations and camera paths. Every matrix is named ``a_to_b`` and acts on columns:
x_b = a_to_b @ x_a. Quaternions are (w, x, y, z) with w first; angles are radians.

exp of a twist (rho, phi): R = I + a [phi]x + b [phi]x^2, t = (I + b [phi]x + c [phi]x^2) rho with a = sin t / t,
b = (1 - cos t) / t^2, c = (t - sin t) / t^3, and their series near 0 so that gradients stay finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize


def rigid_inverse(a_to_b: Tensor) -> Tensor:
    """(*, 4, 4) rigid -> its inverse, by transposing."""
    inverse = torch.zeros_like(a_to_b)
    rotation = a_to_b[..., :3, :3].mT
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -(rotation @ a_to_b[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """(*, 3, 3) and (*, 3) -> (*, 4, 4)."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], -2)


def opengl_to_opencv(camera_to_world: Tensor) -> Tensor:
    """Poses (*, 4, 4) of cameras with +y up, -z forward -> the same with +y down, +z forward; its own inverse."""
    return camera_to_world * camera_to_world.new_tensor([1.0, -1.0, -1.0, 1.0])


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Camera-to-world (*, 4, 4), OpenCV axes: from ``eye`` to ``target`` (*, 3) with ``up`` upwards in the image."""
    forward = normalize(target - eye, dim=-1)
    up = up.expand_as(forward)
    right = torch.linalg.cross(forward, up)
    # Looking straight up or down leaves the image's rotation open: take any axis across.
    other = torch.linalg.cross(forward, torch.roll(forward, 1, -1) * forward.new_tensor([1.0, 1.0, -1.0]))
    straight = right.norm(dim=-1, keepdim=True) < 1e-6 * up.norm(dim=-1, keepdim=True)
    right = normalize(torch.where(straight, other, right), dim=-1)
    return rigid(torch.stack([right, torch.linalg.cross(forward, right), forward], -1), eye)


def quaternion_to_matrix(quats: Tensor) -> Tensor:
    """(*, 4) w x y z, any length but 0 -> (*, 3, 3)."""
    w, x, y, z = normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def matrix_to_quaternion(rotation: Tensor) -> Tensor:
    """(*, 3, 3) -> (*, 4) unit, w >= 0. Of the four candidates (one per component) the best conditioned is taken."""
    m = rotation
    a, b, c = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squares = torch.stack([1 + a + b + c, 1 + a - b - c, 1 - a + b - c, 1 - a - b + c], -1)  # 4 w^2, 4 x^2, ...
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 2, 0] + m[..., 0, 2], m[..., 2, 1] + m[..., 1, 2]
    s = squares.unbind(-1)
    rows = torch.stack([s[0], wx, wy, wz, wx, s[1], xy, xz, wy, xy, s[2], yz, wz, xz, yz, s[3]], -1).unflatten(
        -1, (4, 4)
    )
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    quats = normalize(rows.gather(-2, best)[..., 0, :], dim=-1)
    return torch.where(quats[..., :1] < 0, -quats, quats)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Unit quaternions (*, 4), (*, 4) and t (*) in [0, 1] -> (*, 4) along the shorter arc at constant speed."""
    dot = (a * b).sum(-1, keepdim=True)
    b = torch.where(dot < 0, -b, b)
    angle = torch.atan2((b - a).norm(dim=-1, keepdim=True), (b + a).norm(dim=-1, keepdim=True)) * 2
    t = t[..., None]
    near = angle < 1e-6
    sine = torch.where(near, 1.0, angle.sin())
    low = torch.where(near, 1 - t, ((1 - t) * angle).sin() / sine)
    high = torch.where(near, t, (t * angle).sin() / sine)
    return normalize(low * a + high * b, dim=-1)


def interpolate_poses(poses: Tensor, times: Tensor) -> Tensor:
    """Key poses (V, 4, 4) at times 0, 1, ..., V - 1 -> poses (N, 4, 4) at ``times`` (N,): slerp and straight lines."""
    index = times.floor().long().clamp(0, max(poses.shape[0] - 2, 0))
    after = (index + 1).clamp_max(poses.shape[0] - 1)
    fraction = (times - index).clamp(0, 1).to(poses.dtype)
    quats = matrix_to_quaternion(poses[:, :3, :3])
    position = torch.lerp(poses[index, :3, 3], poses[after, :3, 3], fraction[:, None])
    return rigid(quaternion_to_matrix(slerp(quats[index], quats[after], fraction)), position)


def skew(vectors: Tensor) -> Tensor:
    """(*, 3) -> (*, 3, 3), the matrix of the cross product."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def se3_exp(twists: Tensor) -> Tensor:
    """Twists (*, 6) = (translation part rho, rotation vector phi) -> rigid motions (*, 4, 4)."""
    rho, phi = twists[..., :3], twists[..., 3:]
    square = (phi * phi).sum(-1)[..., None, None]
    small = square < (1e-3 if twists.dtype == torch.float64 else 1e-2)
    safe = torch.where(small, 1.0, square)
    angle = safe.sqrt()
    a = torch.where(
        small, 1 - square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72))), angle.sin() / angle
    )
    b = torch.where(small, 0.5 * (1 - square / 12 * (1 - square / 30 * (1 - square / 56))), (1 - angle.cos()) / safe)
    c = torch.where(small, (1 - square / 20 * (1 - square / 42 * (1 - square / 72))) / 6, (1 - a) / safe)
    cross = skew(phi)
    eye = torch.eye(3, dtype=twists.dtype, device=twists.device)
    rotation = eye + a * cross + b * (cross @ cross)
    return rigid(rotation, ((eye + b * cross + c * (cross @ cross)) @ rho[..., None])[..., 0])


def similarity(scale: float | Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """x -> scale R x + t as a (4, 4) matrix."""
    return rigid(rotation * scale, translation)


def similarity_scale(a_to_b: Tensor) -> Tensor:
    """() the factor by which a similarity (4, 4) stretches lengths."""
    return torch.linalg.det(a_to_b[:3, :3].double()).abs().pow(1 / 3).to(a_to_b.dtype)


def similarity_inverse(a_to_b: Tensor) -> Tensor:
    """(4, 4) similarity -> its inverse: R^T / s and -R^T t / s."""
    inner = a_to_b[:3, :3].mT / similarity_scale(a_to_b) ** 2
    return rigid(inner, -(inner @ a_to_b[:3, 3]))


def transform_points(a_to_b: Tensor, points: Tensor) -> Tensor:
    """(4, 4) and points (*, 3) -> (*, 3)."""
    return points @ a_to_b[:3, :3].mT + a_to_b[:3, 3]


def transform_directions(a_to_b: Tensor, directions: Tensor) -> Tensor:
    """(4, 4) similarity and unit directions (*, 3) -> unit directions (*, 3)."""
    return directions @ (a_to_b[:3, :3] / similarity_scale(a_to_b)).mT


def transform_poses(a_to_b: Tensor, camera_to_a: Tensor) -> Tensor:
    """A similarity (4, 4) applied to rigid poses (*, 4, 4): positions move and scale, rotations stay rotations."""
    rotation = (a_to_b[:3, :3] / similarity_scale(a_to_b)) @ camera_to_a[..., :3, :3]
    return rigid(rotation, transform_points(a_to_b, camera_to_a[..., :3, 3]))


def frame_around(up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two unit vectors that complete ``up`` to a right-handed frame (x, y, up)."""
    up = normalize(up, dim=-1)
    axis = torch.zeros_like(up)
    axis[..., int(up.abs().argmin())] = 1
    x = normalize(axis - (axis * up).sum() * up, dim=-1)
    return x, torch.linalg.cross(up, x), up


def orbit(center: Tensor, radius: float, count: int, elevation: float, up: Tensor) -> Tensor:
    """(count, 4, 4) camera-to-world once around ``center`` (3,) at ``elevation`` above the plane across ``up``."""
    x, y, z = frame_around(up)
    azimuth = torch.arange(count, dtype=center.dtype, device=center.device)[:, None] * (2 * math.pi / max(count, 1))
    flat = x * azimuth.cos() + y * azimuth.sin()
    eye = center + radius * (math.cos(elevation) * flat + math.sin(elevation) * z)
    return look_at(eye, center.expand_as(eye), z)


def spiral(pose: Tensor, focus: float, radii: Tensor, count: int, turns: float = 2.0) -> Tensor:
    """(count, 4, 4) poses that circle ``pose`` (4, 4) within ``radii`` (3,) right, down, forward.

    All look at the point at depth ``focus`` before it: the path that shows forward-facing captures (Mildenhall et al.
    2019).
    """
    phase = torch.arange(count, dtype=pose.dtype, device=pose.device) * (2 * math.pi * turns / max(count, 1))
    local = torch.stack([phase.cos(), phase.sin(), (phase * 0.5).sin()], -1) * radii
    eye = transform_points(pose, local)
    target = pose[:3, 3] + pose[:3, 2] * focus
    return look_at(eye, target.expand_as(eye), -pose[:3, 1])
