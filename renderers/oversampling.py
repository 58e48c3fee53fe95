"""Pictures whose pixels are means over several rays: a photograph's pixel is the light of an area, not of a point."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..geometry import Camera, Pixels


@torch.no_grad()
def oversampled(renderer: Any, field: Any, camera: Camera, side: int | None = None, **options: Any) -> Pixels:
    """The image (H, W) of ``side`` x ``side`` rays per pixel, by default as many as the renderer says.

    It is drawn so many times, each time shifted by a part of a pixel. Depths and normals count as much as a ray meets
    of the surface. ``options`` are the renderer's own. Raises ValueError for a side below 1.
    """
    side = renderer.oversampling if side is None else side
    if side < 1:
        raise ValueError(f"oversampled: side: expected at least 1 ray along a pixel, got {side}")
    if side == 1:
        return renderer.render(field, camera, **options).pixels
    sums: dict[str, Tensor] = {}
    for k in range(side * side):
        x, y = ((i + 0.5) / side - 0.5 for i in (k % side, k // side))
        pixels = renderer.render(field, camera.cropped(x, y, camera.width, camera.height), **options).pixels
        for name, values in _parts(pixels).items():
            sums[name] = sums[name] + values if k else values
    met = sums["alphas"].clamp(min=1e-6)
    means = {name: values / (met if name == "depths" else side * side) for name, values in sums.items()}
    if "normals" in means:
        means["normals"] = functional.normalize(means["normals"], dim=-1)
    return Pixels(**means)


def _parts(pixels: Pixels) -> dict[str, Tensor]:
    """What a ray adds to its pixel, by name."""
    assert pixels.alphas is not None
    values = {f.name: getattr(pixels, f.name) for f in fields(Pixels) if getattr(pixels, f.name) is not None}
    if "depths" in values:
        values["depths"] = torch.where(pixels.alphas > 0, values["depths"] * pixels.alphas, 0.0)
    if "normals" in values:
        values["normals"] = torch.where(pixels.alphas[..., None] > 0, values["normals"] * pixels.alphas[..., None], 0.0)
    return values
