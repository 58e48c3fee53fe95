"""Bilateral grids: for each photograph an affine map of colours that varies smoothly over the image and the luminance.

    c' = A(x, y, l) [c, 1],   A (3 x 4) trilinear in a grid of 16 x 16 x 8 vertices,   l = the luminance of c

It takes what a camera's own processing did to one photograph (exposure, white balance, local tone mapping, vignetting)
out of the scene. All begin as the identity, and what all photographs' maps have in common is taken out now and then
(``center``), so that the scene keeps its own colours: held-out views are rendered without a grid.

Source: Wang et al., "Bilateral Guided Radiance Field Processing", SIGGRAPH 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..geometry import Camera, Rays
from .protocols import Step

LUMINANCE = (0.299, 0.587, 0.114)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # (3, 4) row by row
SMOOTHED = 8  # grids whose variation is looked at in a step of rays from all images


@dataclass(frozen=True)
class BilateralConfig:
    """Size and smoothness of bilateral grids."""

    size: int = 16
    """Vertices along the image's width and height."""
    luminances: int = 8
    """Vertices from black to white."""
    learning_rate: float = 2e-3
    final_fraction: float = 0.1
    """Of the learning rate, at the end of the budget."""
    smoothness: float = 10.0
    """Weight of the squared differences between neighbouring vertices."""
    center_every: int = 16
    """Steps between those that take out what grids have in common."""

    def group(self, grids: BilateralGrids) -> dict[str, Any]:
        """What an optimizer is told."""
        rate = {"lr": self.learning_rate, "final_fraction": self.final_fraction}
        return {"params": list(grids.parameters()), "sparse": False, "weight_decay": 0.0, **rate}


class BilateralGrids(nn.Module):
    """One grid (12, L, N, N) per image, each a parameter: a step of one image touches one of them."""

    def __init__(self, images: int, config: BilateralConfig = BilateralConfig()) -> None:
        super().__init__()
        self.config = config
        shape = (12, config.luminances, config.size, config.size)
        first = torch.tensor(IDENTITY)[:, None, None, None]
        self.grids = nn.ParameterList(nn.Parameter(first.expand(shape).clone()) for _ in range(images))

    def forward(self, colors: Tensor, images: Tensor, view: Camera | Rays) -> Tensor:
        """colours (R, 3) of images (R,), their rays with ``image_points``; or (H, W, 3) of one image, () its number."""
        light = (colors * colors.new_tensor(LUMINANCE)).sum(-1).clamp(0, 1)
        if isinstance(view, Camera):
            at = torch.stack([*_image_points(view, colors), light], -1).view(-1, 3)
            maps = _slice(self.grids[int(images)][None], 2 * at - 1, _blocks(len(at), colors))
        else:
            if view.image_points is None:
                raise ValueError("BilateralGrids: view: expected rays with image_points, got none; draw them")
            # All grids are one, stacked along the luminance: between the last vertex of one and the first of the next
            # lies no luminance.
            depth, count = self.config.luminances, len(self.grids)
            place = (images * depth + light * (depth - 1)) * (2 / (count * depth - 1)) - 1
            at = torch.cat([2 * view.image_points - 1, place[:, None]], -1)
            maps = _slice(torch.cat(list(self.grids), 1)[None], at, 1)
        maps = maps.view(*colors.shape[:-1], 3, 4)
        return (maps[..., :3] * colors[..., None, :]).sum(-1) + maps[..., 3]

    def prior(self, step: Step) -> Tensor:
        """A loss: neighbouring vertices are alike (squared differences), in the step's image or in some in turn."""
        frames, count = step.frames, len(self.grids)
        assert frames is not None
        if frames.dim() == 0:
            chosen = [int(frames)]
        else:
            chosen = [(step.index * SMOOTHED + i) % count for i in range(min(SMOOTHED, count))]
        stacked = torch.stack([self.grids[i] for i in chosen])
        total = stacked.new_zeros(())
        for axis in (2, 3, 4):
            if stacked.shape[axis] > 1:
                total = total + stacked.diff(dim=axis).square().mean()
        return self.config.smoothness * total

    @torch.no_grad()
    def center(self) -> None:
        """Make the mean over images and their places the identity, at each luminance."""
        mean = torch.stack([grid.mean((2, 3)) for grid in self.grids]).mean(0)
        shift = mean.new_tensor(IDENTITY)[:, None] - mean
        for grid in self.grids:
            grid.add_(shift[:, :, None, None])


def _image_points(camera: Camera, like: Tensor) -> tuple[Tensor, Tensor]:
    """x and y (H, W) of the pixels' centres in [0, 1]."""
    x = (torch.arange(camera.width, device=like.device, dtype=like.dtype) + 0.5) / camera.width
    y = (torch.arange(camera.height, device=like.device, dtype=like.dtype) + 0.5) / camera.height
    size = (camera.height, camera.width)
    return x[None].expand(size), y[:, None].expand(size)


def _blocks(points: int, like: Tensor) -> int:
    """Parts of equal size, at most one per thread: torch's operator works on each with one."""
    if like.device.type != "cpu":
        return 1
    return next(n for n in range(torch.get_num_threads(), 0, -1) if points % n == 0)


def _slice(grid: Tensor, at: Tensor, blocks: int) -> Tensor:
    """grid (1, 12, L, N, N) at places (P, 3) x, y, l in [-1, 1] -> (P, 12), trilinear."""
    places = at.view(blocks, -1, 1, 1, 3)
    shape = (blocks, *grid.shape[1:])
    found = functional.grid_sample(grid.expand(shape), places, padding_mode="border", align_corners=True)
    return found[..., 0, 0].transpose(1, 2).reshape(len(at), 12)
