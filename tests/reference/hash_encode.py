"""Multiresolution hash encoding in torch: all corners at once, gathered by index, differentiated by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)


def corner_entries(cells: Tensor, resolution: int, size: int, hashed: bool) -> Tensor:
    """Vertices (*, D) int64 -> rows (*) within the level."""
    rows = torch.zeros_like(cells[..., 0])
    for axis in range(cells.shape[-1]):
        part = cells[..., axis]
        rows = rows ^ (part * PRIMES[axis]) if hashed else rows + part * (resolution + 1) ** axis
    return rows % size if hashed else rows


def hash_encode(points: Tensor, table: Tensor, layout) -> Tensor:
    """points (N, D), table (entries, F) -> (N, L F)."""
    clamped = points.clamp(0, 1)
    ends = torch.cartesian_prod(*[torch.tensor([0, 1])] * layout.dimensions)  # (corners, D)
    features = []
    for resolution, offset, size, hashed in zip(
        layout.resolutions, layout.offsets, layout.sizes, layout.hashed, strict=True
    ):
        position = clamped * resolution
        cell = position.detach().floor().clamp(0, resolution - 1)
        fraction = position - cell
        rows = corner_entries(cell.long()[:, None] + ends, resolution, size, hashed)
        weights = torch.where(ends.bool(), fraction[:, None], 1 - fraction[:, None]).prod(-1)
        features.append((table[offset + rows] * weights[..., None]).sum(1))
    return torch.cat(features, -1)


def hash_encode_with_gradient(points: Tensor, table: Tensor, layout) -> tuple[Tensor, Tensor]:
    """(N, L F) and its derivative (N, L F, D), by one backward per channel; differentiable again."""
    points = points if points.requires_grad else points.detach().requires_grad_()
    features = hash_encode(points, table, layout)
    rows = [torch.autograd.grad(features[:, c].sum(), points, create_graph=True)[0] for c in range(features.shape[1])]
    return features, torch.stack(rows, 1)
