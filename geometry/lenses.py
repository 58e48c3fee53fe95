"""Lens models: how a camera-space direction becomes a position on the plane at unit focal length, and back.

Radial-tangential (Brown 1966, Conrady 1919; OpenCV's order k1 k2 p1 p2 [k3 [k4 k5 k6]]):
u = x g(s) + 2 p1 x y + p2 (s + 2 x^2), v likewise, s = x^2 + y^2,
g = (1 + k1 s + k2 s^2 + k3 s^3) / (1 + k4 s + k5 s^2 + k6 s^3).
Equidistant fisheye (Kannala and Brandt 2006): radius = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8).
Inverses are Newton's method in float64 from a table of the radial curve; they stay inside the region where that curve
rises (beyond it a lens polynomial folds the image back onto itself). The last step carries gradients, which by the
implicit function theorem are those of the solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

TABLE = 512
ITERATIONS = 30
FOLLOWING = 6  # Newton's steps from a solution for another lens, which is nearby


def coefficients(distortion: Tensor, count: int) -> tuple[Tensor, ...]:
    """The (D,) coefficients padded with zeros to ``count``, in float64."""
    padded = torch.nn.functional.pad(distortion.double(), (0, count - distortion.shape[0]))
    return padded.unbind()


def _first_root(polynomial: np.ndarray) -> float:
    """The smallest positive real root of sum_i polynomial[i] s^i, or infinity."""
    trimmed = np.trim_zeros(polynomial, "b")
    if trimmed.size < 2:
        return math.inf
    roots = np.roots(trimmed[::-1])
    real = roots.real[(np.abs(roots.imag) < 1e-9 * np.maximum(1.0, np.abs(roots.real))) & (roots.real > 0)]
    return float(real.min()) if real.size else math.inf


def opencv_limit(distortion: Tensor) -> float:
    """The undistorted radius up to which the radial curve of a radial-tangential lens rises; infinity if always."""
    k1, k2, _, _, k3, k4, k5, k6 = (float(c) for c in coefficients(distortion.detach().cpu(), 8))
    n, d = np.array([1, k1, k2, k3]), np.array([1, k4, k5, k6])
    dn, dd = np.array([0, k1, 2 * k2, 3 * k3]), np.array([0, k4, 2 * k5, 3 * k6])  # s times the derivatives
    slope = np.convolve(n + 2 * dn, d) - 2 * np.convolve(n, dd)
    return math.sqrt(min(_first_root(slope), _first_root(d)))


def fisheye_limit(distortion: Tensor) -> float:
    """The angle from the axis up to which the fisheye curve rises, at most pi."""
    k = [float(c) for c in coefficients(distortion.detach().cpu(), 4)]
    slope = np.array([1.0] + [(2 * i + 3) * c for i, c in enumerate(k)])
    return min(math.sqrt(_first_root(slope)), math.pi)


def opencv_distort(x: Tensor, y: Tensor, k: Sequence[Tensor]) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Undistorted (N,) positions -> distorted u, v and the symmetric Jacobian (du/dx, du/dy = dv/dx, dv/dy)."""
    k1, k2, p1, p2, k3, k4, k5, k6 = k
    s = x * x + y * y
    n, dn = 1 + s * (k1 + s * (k2 + s * k3)), k1 + s * (2 * k2 + s * (3 * k3))
    d, dd = 1 + s * (k4 + s * (k5 + s * k6)), k4 + s * (2 * k5 + s * (3 * k6))
    g = n / d
    slope = 2 * (dn - g * dd) / d
    u = x * g + 2 * p1 * x * y + p2 * (s + 2 * x * x)
    v = y * g + p1 * (s + 2 * y * y) + 2 * p2 * x * y
    mixed = x * y * slope + 2 * (p1 * x + p2 * y)
    return u, v, (g + x * x * slope + 2 * p1 * y + 6 * p2 * x, mixed, g + y * y * slope + 6 * p1 * y + 2 * p2 * x)


def fisheye_radius(theta: Tensor, k: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Angle from the axis (N,) -> radius on the unit plane and its derivative."""
    k1, k2, k3, k4 = k
    s = theta * theta
    radius = theta * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
    return radius, 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4)))


def _guess(curve: Callable[[Tensor], Tensor], wanted: Tensor, limit: float) -> Tensor:
    """A first guess at the inverse of a rising curve, from a table; the limit where ``wanted`` is beyond the curve."""
    top = float(wanted.max()) if wanted.numel() else 0.0
    high = min(limit, max(top, 1e-6))
    for _ in range(60):
        at_high = float(curve(wanted.new_tensor(high)))
        if high >= limit or at_high >= top:
            break
        high = min(2 * high, limit)
    knots = torch.linspace(0, high, TABLE, dtype=torch.float64, device=wanted.device)
    values = curve(knots).cummax(0).values
    right = torch.searchsorted(values, wanted).clamp(1, TABLE - 1)
    low, up = values[right - 1], values[right]
    fraction = ((wanted - low) / (up - low).clamp_min(1e-300)).clamp(0, 1)
    return knots[right - 1] + fraction * (knots[1] - knots[0])


def opencv_undistort(u: Tensor, v: Tensor, distortion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distorted (N,) float64 positions -> undistorted x, y and where they exist (N,) bool."""
    k = coefficients(distortion, 8)
    limit = opencv_limit(distortion)
    with torch.no_grad():
        radius = torch.hypot(u, v)
        zero = torch.zeros((), dtype=torch.float64, device=u.device)
        radial = tuple(c if i not in (2, 3) else zero for i, c in enumerate(k))
        guess = _guess(lambda r: opencv_distort(r, torch.zeros_like(r), radial)[0], radius, limit)
        scale = torch.where(radius > 0, guess / radius.clamp_min(1e-300), 1.0)
        x, y = u * scale, v * scale
        for _ in range(ITERATIONS):
            step_x, step_y, error = _newton_step(x, y, u, v, k)
            x, y = x - step_x, y - step_y
            if not bool((error > 1e-13).any()):
                break
        got_u, got_v, (a, b, d) = opencv_distort(x, y, k)
        residual = torch.hypot(got_u - u, got_v - v)
        exists = (residual < 1e-10 * (1 + radius)) & (x * x + y * y <= limit * limit) & (a * d - b * b > 0)
        x, y = torch.where(exists, x, 0.0), torch.where(exists, y, 0.0)
    if torch.is_grad_enabled():
        step_x, step_y, _ = _newton_step(x, y, u, v, k)
        x = torch.where(exists, x - step_x, 0.0)
        y = torch.where(exists, y - step_y, 0.0)
    return x, y, exists


def _newton_step(x: Tensor, y: Tensor, u: Tensor, v: Tensor, k: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """J^-1 (distort(x, y) - (u, v)), with J held constant, at most half a unit long; and the residual."""
    got_u, got_v, jacobian = opencv_distort(x, y, k)
    a, b, d = (j.detach() for j in jacobian)
    du, dv = got_u - u, got_v - v
    det = a * d - b * b
    det = torch.where(det.abs() > 1e-12, det, 1e-12)
    step_x, step_y = (d * du - b * dv) / det, (a * dv - b * du) / det
    length = torch.hypot(step_x.detach(), step_y.detach())
    shrink = torch.where(length > 0.5, 0.5 / length.clamp_min(1e-300), 1.0)
    return step_x * shrink, step_y * shrink, torch.hypot(du.detach(), dv.detach())


def fisheye_undistort(radius: Tensor, distortion: Tensor) -> tuple[Tensor, Tensor]:
    """Radius on the unit plane (N,) float64 -> angle from the axis and where it exists (N,) bool."""
    k = coefficients(distortion, 4)
    limit = fisheye_limit(distortion)
    with torch.no_grad():
        theta = _guess(lambda t: fisheye_radius(t, k)[0], radius, limit)
        for _ in range(ITERATIONS):
            got, slope = fisheye_radius(theta, k)
            error = got - radius
            theta = (theta - error / slope.clamp_min(1e-9)).clamp(0, limit)
            if not bool((error.abs() > 1e-14).any()):
                break
        exists = (fisheye_radius(theta, k)[0] - radius).abs() < 1e-10 * (1 + radius)
    if torch.is_grad_enabled():
        got, slope = fisheye_radius(theta, k)
        theta = torch.where(exists, theta - (got - radius) / slope.detach().clamp_min(1e-9), theta)
    return theta, exists


def follow_opencv(start: Tensor, u: Tensor, v: Tensor, k: Sequence[Tensor]) -> Tensor:
    """Unit directions (R, 3) that a radial-tangential lens with its own coefficients k (8 of (R,)) images at u, v (R,).

    From ``start`` (R, 3), directions nearby, and differentiable in u, v and k: for lenses that change little at a time.
    Where nothing nearby is imaged there, ``start`` itself.
    """
    with torch.no_grad():
        depth = start[:, 2].clamp_min(1e-6)
        x, y = start[:, 0] / depth, start[:, 1] / depth
        for _ in range(FOLLOWING):
            step_x, step_y, _ = _newton_step(x, y, u, v, k)
            x, y = x - step_x, y - step_y
        got_u, got_v, (a, b, d) = opencv_distort(x, y, k)
        near = (got_u - u).hypot(got_v - v) < 1e-6
        near &= (a * d - b * b > 0) & (start[:, 2] > 1e-6)
    step_x, step_y, _ = _newton_step(x, y, u, v, k)
    x, y = torch.where(near, x - step_x, 0.0), torch.where(near, y - step_y, 0.0)
    z = (x * x + y * y + 1).rsqrt()
    return torch.where(near[:, None], torch.stack([x * z, y * z, z], -1), start)


def follow_fisheye(start: Tensor, u: Tensor, v: Tensor, k: Sequence[Tensor]) -> Tensor:
    """``follow_opencv`` of an equidistant fisheye with its own coefficients k (4 of (R,))."""
    square = u * u + v * v
    off_axis = square > 1e-24
    radius = torch.where(off_axis, square, 1.0).sqrt()
    with torch.no_grad():
        theta = torch.atan2(start[:, :2].norm(dim=-1), start[:, 2])
        for _ in range(FOLLOWING):
            got, slope = fisheye_radius(theta, k)
            theta = (theta - ((got - radius) / slope.clamp_min(1e-9)).clamp(-0.5, 0.5)).clamp(0, math.pi)
        near = ((fisheye_radius(theta, k)[0] - radius).abs() < 1e-6) & off_axis
    got, slope = fisheye_radius(theta, k)
    theta = torch.where(near, theta - (got - radius) / slope.detach().clamp_min(1e-9), 0.0)
    sine = theta.sin() / radius
    return torch.where(near[:, None], torch.stack([u * sine, v * sine, theta.cos()], -1), start)
