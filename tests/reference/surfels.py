"""Surfels in torch, all pixels and surfels at once: each line as in the formula.

Shapes and units as in ``cuda/surfels.py``. Rays meet discs by the two planes of a pixel in homogeneous coordinates, as
Huang et al. (2024) put it; the kernels do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gaussians import _sh_basis, blend, rotations


def meet(means, quats, log_scales, K, pose, xs: Tensor, ys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (P,) and surfels (G,) -> (P, G) squared distance in standard deviations, z there, of discs in front."""
    R, t = pose[:3, :3], pose[:3, 3]
    axes = R @ rotations(quats) * log_scales.exp()[:, None, :]
    to_screen = K @ torch.stack([axes[..., 0], axes[..., 1], means @ R.T + t], -1)  # of (u, v, 1), (G, 3, 3)
    across = xs[:, None, None] * to_screen[:, 2] - to_screen[:, 0]  # the planes of a pixel's column and row, (P, G, 3)
    down = ys[:, None, None] * to_screen[:, 2] - to_screen[:, 1]
    met = torch.linalg.cross(across, down)
    uv = met[..., :2] / met[..., 2:]
    z = (to_screen[:, 2, :2] * uv).sum(-1) + to_screen[:, 2, 2]
    return uv.square().sum(-1), z, z > 0


def tiled(surfels, K: Tensor, pose: Tensor, width: int, height: int, extents: Tensor) -> Tensor:
    """Colours (H, W, 3), tile by tile: for many surfels, all in front. extents (G, 2): half sizes that they fit in."""
    means, quats, log_scales, logit_opacities, sh = surfels
    local = means @ pose[:3, :3].T + pose[:3, 3]
    image = (local / local[:, 2:] @ K.T)[:, :2]
    d = means + pose[:3, :3].T @ pose[:3, 3]
    basis = _sh_basis(d / d.norm(dim=-1, keepdim=True), sh.shape[1])
    colors = torch.clamp((basis[:, :, None] * sh).sum(1) + 0.5, min=0.0)

    def falloff(g: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
        disc, _, front = meet(means[g], quats[g], log_scales[g], K, pose, xs[:, 0], ys[:, 0])
        pixel = 2 * ((xs - image[g, 0]) ** 2 + (ys - image[g, 1]) ** 2)
        return torch.exp(-0.5 * torch.where(front & (disc <= pixel), disc, pixel))

    opacities = logit_opacities.sigmoid()
    return blend(image, image, opacities, local[:, 2], colors, extents, width, height, falloff=falloff)[0]


def render(
    surfels,
    K: Tensor,
    pose: Tensor,
    width: int,
    height: int,
    features: Tensor | None = None,
    background: Tensor | None = None,
    *,
    smooth: bool = False,
    near: float = 0.01,
    planes: tuple[float, float] = (0.2, 100.0),
    min_alpha: float = 1 / 255,
) -> tuple[Tensor, ...]:
    """-> colors, alphas, z_depths, median depths, distortions, features."""
    means, quats, log_scales, logit_opacities, sh = surfels
    R, t = pose[:3, :3], pose[:3, 3]
    local = means @ R.T + t
    ok = local[:, 2] > near
    safe = torch.where(ok[:, None], local, torch.tensor([0.0, 0.0, 1.0], dtype=local.dtype))
    image = safe / safe[:, 2:] @ K.T
    d = means + R.T @ t
    d = d / d.norm(dim=-1, keepdim=True)
    colors = torch.clamp((_sh_basis(d, sh.shape[1])[:, :, None] * sh).sum(1) + 0.5, min=0.0)
    order = torch.argsort(local[:, 2].detach(), stable=True)
    order = order[ok[order]]
    ys, xs = (
        v.reshape(-1).to(means) + 0.5 for v in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    disc, z, front = meet(means[order], quats[order], log_scales[order], K, pose, xs, ys)
    pixel = 2 * ((xs[:, None] - image[order, 0]) ** 2 + (ys[:, None] - image[order, 1]) ** 2)
    exact = front & (z > near) & (disc <= pixel)
    z = torch.where(exact, z, local[order, 2])
    alpha = logit_opacities[order].sigmoid() * torch.exp(-0.5 * torch.where(exact, disc, pixel))
    counts = alpha >= min_alpha
    if smooth:
        alpha = (alpha - min_alpha) ** 2 / alpha
    alpha = torch.where(counts, torch.clamp(alpha, max=0.999), 0.0)
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after], 1)[:, :-1]
    w = alpha * before * (before >= 1e-4)
    T = 1 - w.sum(1)
    half = (torch.cumsum(w, 1) >= 0.5).int()
    at = half.argmax(1, keepdim=True)
    median = torch.where(half.any(1), z.gather(1, at)[:, 0], 0.0)
    low, high = planes
    m = high * (z - low) / (z * (high - low))
    pairs = (m[:, :, None] - m[:, None, :]).square() * w[:, :, None] * w[:, None, :]
    channels = torch.cat([colors, *([] if features is None else [features])], 1)[order]
    drawn = w @ channels
    rgb = drawn[:, :3] if background is None else drawn[:, :3] + T[:, None] * background
    flat = (rgb, 1 - T, (w * z).sum(1), median, pairs.sum((1, 2)) / 2, None if features is None else drawn[:, 3:])
    return tuple(None if x is None else x.view(height, width, *x.shape[1:]) for x in flat)
