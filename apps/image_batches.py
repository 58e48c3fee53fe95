"""Whole training images, one per step: what a step of a rasterizing fit is made of.

Images come in a random order that shows each once before any comes again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..datasets.scene import Frame
from ..geometry import Camera, Pixels
from .devices import CPU


class ImageBatches:
    """Draws ``(Camera, Pixels (H, W), number)`` of training frames, on ``device``; with the depths and normals that
    are ``needed``, zeros where a frame has none."""

    def __init__(
        self, frames: Sequence[Frame], *, seed: int = 0, device: torch.device = CPU, needed: Collection[str] = ()
    ) -> None:
        if not frames:
            raise ValueError("fit: scene: expected at least one training view, got none; check the split")
        self.frames, self.device, self.storage, self.needed = frames, device, CPU, frozenset(needed)
        self.cameras = [frame.camera.to(device) for frame in frames]
        self.generator = torch.Generator(CPU).manual_seed(seed)
        self.order = torch.zeros(0, dtype=torch.long, device=CPU)

    def draw(self) -> tuple[Camera, Pixels, Tensor]:
        """One image of those that have waited longest."""
        if not len(self.order):
            self.order = torch.randperm(len(self.frames), generator=self.generator, device=CPU)
        number, self.order = self.order[0], self.order[1:]
        pixels = self.frames[int(number)].pixels()
        known: dict[str, Tensor | None] = {name: self._known(pixels, name) for name in self.needed}
        if "depths" in self.needed:
            known["depth_weights"] = pixels.depth_weights
        target = Pixels(pixels.colors, pixels.alphas, masks=pixels.masks, **known)
        if self.device != CPU:
            target = target.send(self.device)
        return self.cameras[int(number)], target, number.to(self.device)

    @staticmethod
    def _known(pixels: Pixels, name: str) -> Tensor:
        assert pixels.colors is not None
        values: Tensor | None = getattr(pixels, name)
        if values is not None:
            return values
        return torch.zeros_like(pixels.colors if name == "normals" else pixels.colors[..., 0])

    def state_dict(self) -> dict[str, Tensor]:
        """Which images are still to come in this round."""
        return {"order": self.order}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.order = state_dict["order"].to(CPU)
