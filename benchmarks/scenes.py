"""Inputs that benchmarks share: points along rays, a grid of shells, and the research scenes where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from polyfield.geometry.morton import morton_order
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    """A fresh generator: equal seeds, equal inputs."""
    return torch.Generator().manual_seed(seed)


def points_along_rays(rays: int, samples: int, seed: int = 0) -> Tensor:
    """(rays * samples, 3) in the unit cube: short steps along random chords, as a marcher gives them."""
    g = generator(seed)
    a, b = torch.rand(rays, 1, 3, generator=g), torch.rand(rays, 1, 3, generator=g)
    length = torch.nn.functional.normalize(b - a, dim=-1) * (samples / 1024)
    t = (torch.arange(samples) + 0.5)[None, :, None] / samples
    return (a + t * length).clamp(0, 1).reshape(-1, 3).contiguous()


def data_root() -> Path | None:
    """The folder of research scenes: POLYFIELD_DATA, or ../shared/data beside the checkout."""
    named = os.environ.get("POLYFIELD_DATA")
    root = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return root if root.is_dir() else None


def splats(
    count: int, width: int, height: int, low: float = 2.0, high: float = 8.0, seed: int = 0
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gaussians (means, quats, log_scales, logit_opacities, sh of degree 3) that fill an image's view, whose radius in
    pixels lies between low and high, in Morton order as a fit keeps them; K; world_to_camera."""
    g = generator(seed)
    focal = 1.2 * max(width, height)
    z = 2 + 4 * torch.rand(count, generator=g)
    xy = (torch.rand(count, 2, generator=g) - 0.5) * torch.tensor([width, height]) / focal * z[:, None]
    means = torch.cat([xy, z[:, None]], 1)
    means = means[morton_order(means)]
    z = means[:, 2]
    radius = low + (high - low) * torch.rand(count, generator=g)
    scales = (radius / 3 * z / focal)[:, None] * (0.3 + 0.7 * torch.rand(count, 3, generator=g))
    quats, logits = torch.randn(count, 4, generator=g), torch.randn(count, generator=g)
    sh = 0.3 * torch.randn(count, 16, 3, generator=g)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return [means, quats, scales.log(), logits, sh], K, torch.eye(4)
