"""Pictures: photographs as they are compared, tensors in [0, 1] to PNG, depth and normals as colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..datasets.scene import Frame
from .checkpoint import write_whole


def photograph(frame: Frame, renderer: Any) -> Tensor:
    """A frame's colours (H, W, 3) in [0, 1] where the renderer works, over its backdrop where the frame has alpha."""
    return frame.over(renderer.backdrop.cpu()).to(renderer.device)


def to_uint8(image: Tensor) -> Tensor:
    """(H, W, 3) or (H, W) in [0, 1] -> uint8 (H, W, 3)."""
    if image.dim() == 2:
        image = image[..., None].expand(-1, -1, 3)
    return (image.detach().cpu().clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def save_png(path: Path, image: Tensor) -> None:
    """Write (H, W, 3) or (H, W) in [0, 1] as a PNG, whole or not at all."""
    from PIL import Image

    picture = Image.fromarray(to_uint8(image).contiguous().numpy())
    write_whole(path, lambda temporary: picture.save(temporary, format="PNG"))


def depth_picture(depths: Tensor, alphas: Tensor) -> Tensor:
    """Depths (H, W) as colours, near warm and far cold; black where nothing is."""
    seen = alphas > 0.5
    if not bool(seen.any()):
        return depths.new_zeros(*depths.shape, 3)
    ends = depths.new_tensor([0.02, 0.98])
    low, high = torch.quantile(depths[seen][:: max(1, int(seen.sum()) // 100_000)], ends)
    x = ((depths - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    # Four control colours, in the spirit of matplotlib's "inferno" reversed.
    stops = depths.new_tensor([[0.99, 0.91, 0.55], [0.93, 0.41, 0.15], [0.55, 0.13, 0.42], [0.08, 0.04, 0.25]])
    position = x * (len(stops) - 1)
    below = position.long().clamp(max=len(stops) - 2)
    blend = (position - below)[..., None]
    return (stops[below] * (1 - blend) + stops[below + 1] * blend) * seen[..., None]


def normal_picture(normals: Tensor, alphas: Tensor) -> Tensor:
    """Unit normals (H, W, 3) as colours (n + 1) / 2; black where nothing is."""
    return (normals * 0.5 + 0.5) * (alphas > 0.5)[..., None]


def error_picture(colors: Tensor, target: Tensor, scale: float = 0.2) -> Tensor:
    """Absolute error (H, W, 3) as grey: white at ``scale``."""
    return ((colors - target).abs().mean(-1) / scale).clamp(0, 1)


class VideoWriter:
    """An H.264 file that pictures (H, W, 3) in [0, 1] are added to; odd sizes lose their last row or column."""

    def __init__(self, path: Path, fps: int) -> None:
        import imageio.v2 as imageio

        self._writer = imageio.get_writer(str(path), fps=fps, codec="libx264", quality=8, macro_block_size=2)

    def add(self, image: Tensor) -> None:
        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        self._writer.append_data(to_uint8(image[:height, :width]).contiguous().numpy())

    def close(self) -> None:
        self._writer.close()
