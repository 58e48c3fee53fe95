"""Inputs that benchmarks share: points along rays, a grid of shells, and the research scenes where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import torch
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
