"""Gaussians in torch, tile by tile: each line as in the formula. Shapes and units as in ``cuda/gaussians.py``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

TILE = 16
OUTSIDE = 0.15  # of the image's size: so far beyond its border the projection is linearised where it lies


def rotations(quats: Tensor) -> Tensor:
    """(G, 4) w, x, y, z of any length -> (G, 3, 3); a zero quaternion is no rotation."""
    norm = quats.norm(dim=-1, keepdim=True)
    zero = norm == 0
    unit = quats / torch.where(zero, 1.0, norm) + zero * quats.new_tensor([1.0, 0.0, 0.0, 0.0])
    w, x, y, z = unit.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _sh_basis(d: Tensor, count: int) -> Tensor:
    from polyfield.cuda.sh_basis import sh_basis

    return sh_basis(d, math.isqrt(count) - 1)


def project(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    logit_opacities: Tensor,
    sh: Tensor | None,
    K: Tensor,
    world_to_camera: Tensor,
    width: int,
    height: int,
    near: float = 0.01,
    blur: float = 0.3,
    antialias: bool = False,
    lens: int = 0,
    min_alpha: float = 1 / 255,
) -> tuple[Tensor, ...]:
    """-> means2d (G, 2), conics (G, 3), opacities (G,), z_depths (G,), colors (G, 3), extents (G, 2); 0 = not seen."""
    R, t = world_to_camera[:3, :3], world_to_camera[:3, 3]
    local = means @ R.T + t
    x, y, z = local.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    distance = local.norm(dim=-1)
    front = (distance > near) & (z > -0.8 * distance) if lens == 2 else z > near
    x, y, z = (torch.where(front, v, f) for v, f in ((x, 0.0), (y, 0.0), (z, 1.0)))
    zero, focal = torch.zeros_like(z), torch.stack([fx, fy])
    if lens == 2:
        means2d, J = _fisheye(torch.stack([x, y, z], -1))
        means2d, J = means2d * focal + K[:2, 2], J * focal[:, None]
        z = torch.where(front, distance, 1.0)
    elif lens == 1:
        means2d = torch.stack([fx * x + cx, fy * y + cy], -1)
        J = torch.stack([fx + zero, zero, zero, zero, fy + zero, zero], -1).view(-1, 2, 3)
    else:
        means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
        u = torch.clamp(x / z, (-OUTSIDE * width - cx) / fx, ((1 + OUTSIDE) * width - cx) / fx)
        v = torch.clamp(y / z, (-OUTSIDE * height - cy) / fy, ((1 + OUTSIDE) * height - cy) / fy)
        J = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], -1).view(-1, 2, 3)
    half = J @ R @ rotations(quats) * log_scales.exp()[:, None, :]
    sharp = half @ half.transpose(1, 2)
    a, b, c = sharp[:, 0, 0] + blur, sharp[:, 0, 1], sharp[:, 1, 1] + blur
    det = a * c - b * b
    ok = front & (det > 0)
    safe = torch.where(ok, det, 1.0)
    conics = torch.stack([c / safe, -b / safe, a / safe], -1)
    opacities = logit_opacities.sigmoid()
    if antialias:
        sharp_det = (a - blur) * (c - blur) - b * b
        opacities = opacities * torch.sqrt(torch.clamp(sharp_det / safe, min=2.5e-5))
    reach = 2 * torch.log(torch.clamp(opacities / min_alpha, min=1.0))
    extents = torch.stack([torch.sqrt(reach * a), torch.sqrt(reach * c)], -1).detach()
    low, high = means2d - extents, means2d + extents
    size = means2d.new_tensor([width, height])
    ok = ok & (reach > 0) & (high > 0).all(-1) & (low < size).all(-1)
    if sh is None:
        colors = means.new_zeros(len(means), 3)
    else:
        if lens == 1:
            d = (R[2] / R[2].norm()).expand_as(means)
        else:
            d = means + R.T @ t
            d = d / torch.clamp(d.norm(dim=-1, keepdim=True), min=1e-12)
        colors = torch.clamp((_sh_basis(d, sh.shape[1])[:, :, None] * sh).sum(1) + 0.5, min=0.0)
    seen = ok[:, None]
    return (
        torch.where(seen, means2d, 0.0),
        torch.where(seen, conics, 0.0),
        torch.where(ok, opacities, 0.0),
        torch.where(ok, z, 0.0),
        torch.where(seen, colors, 0.0),
        torch.where(seen, extents, 0.0),
    )


def _fisheye(p: Tensor) -> tuple[Tensor, Tensor]:
    """(G, 3) -> equidistant images (G, 2) and their Jacobians (G, 2, 3), by autograd."""

    def image(point: Tensor) -> Tensor:
        rho = point[:2].norm()
        return point[:2] * torch.atan2(rho, point[2]) / rho

    return torch.vmap(image)(p), torch.vmap(torch.func.jacrev(image))(p)


def render(gaussians, K, pose, width, height, features=None, background=None, smooth=False, degree=None, **view):
    """-> colors, alphas, z_depths, median depths, features."""
    *shape, sh = gaussians
    sh = None if sh is None else sh[:, : ((degree + 1) ** 2 if degree is not None else None)]
    means2d, conics, opacities, z, colors, extents = project(*shape, sh, K, pose, width, height, **view)
    channels = torch.cat([colors, z[:, None], *([] if features is None else [features])], 1)
    out, T, median = blend(means2d, conics, opacities, z, channels, extents, width, height, smooth=smooth)
    rgb = out[..., :3] if background is None else out[..., :3] + T[..., None] * background
    return rgb, 1 - T, out[..., 3], median, None if features is None else out[..., 4:]


def blend(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    z_depths: Tensor,
    channels: Tensor,
    extents: Tensor,
    width: int,
    height: int,
    min_alpha: float = 1 / 255,
    max_alpha: float = 0.999,
    min_transmittance: float = 1e-4,
    smooth: bool = False,
    falloff: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """channels (G, C) -> sums (H, W, C), transmittances (H, W), median z_depths (H, W).

    falloff: of which, xs (P, 1), ys (P, 1) -> (P, n), if not the conics'.
    """
    C = channels.shape[1]
    out, last, median = (
        channels.new_zeros(height, width, C),
        channels.new_ones(height, width),
        channels.new_zeros(height, width),
    )
    order = torch.argsort(z_depths.detach(), stable=True)
    order = order[extents[order, 0] > 0]
    low, high = (means2d - extents).detach(), (means2d + extents).detach()
    rows = []
    for y0 in range(0, height, TILE):
        y1 = min(y0 + TILE, height)
        in_row = order[(high[order, 1] > y0) & (low[order, 1] < y1)]
        row = []
        for x0 in range(0, width, TILE):
            x1 = min(x0 + TILE, width)
            g = in_row[(high[in_row, 0] > x0) & (low[in_row, 0] < x1)]
            ys, xs = torch.meshgrid(
                torch.arange(y0, y1, dtype=out.dtype) + 0.5, torch.arange(x0, x1, dtype=out.dtype) + 0.5, indexing="ij"
            )
            dx, dy = xs.reshape(-1, 1) - means2d[g, 0], ys.reshape(-1, 1) - means2d[g, 1]
            if falloff is None:
                a, b, c = conics[g].unbind(-1)
                alpha = opacities[g] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
            else:
                alpha = opacities[g] * falloff(g, xs.reshape(-1, 1), ys.reshape(-1, 1))
            counts = alpha >= min_alpha
            if smooth:
                alpha = (alpha - min_alpha) ** 2 / alpha
            alpha = torch.where(counts, torch.clamp(alpha, max=max_alpha), 0.0)
            after = torch.cumprod(1 - alpha, 1)
            before = torch.cat([torch.ones_like(after[:, :1]), after], 1)[:, :-1]
            live = before >= min_transmittance
            w = alpha * before * live
            T = torch.where(live, after, 2.0).amin(1) if g.numel() else torch.ones(len(dx), dtype=out.dtype)
            half = (torch.cumsum(w, 1) >= 0.5).int()
            at = half.argmax(1) if g.numel() else None
            m = torch.where(half.any(1), z_depths[g][at], 0.0) if g.numel() else torch.zeros_like(T)
            shape = (y1 - y0, x1 - x0)
            row.append(torch.cat([w @ channels[g], T[:, None], m[:, None]], 1).view(*shape, C + 2))
        rows.append(torch.cat(row, 1))
    image = torch.cat(rows, 0) if rows else torch.cat([out, last[..., None], median[..., None]], -1)
    return image[..., :C], image[..., C], image[..., C + 1]
