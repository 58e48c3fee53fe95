"""The photographs as thumbnails with poses, read in the background: a run whose photographs are gone still opens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...geometry.cameras import Camera
from .cameras import half_angles

if TYPE_CHECKING:
    from ...datasets.scene import Frame, Scene

LONGEST_SIDE = 160  # pixels of a thumbnail


@dataclass(frozen=True)
class Photo:
    """What the page needs of a photograph."""

    name: str
    split: str
    camera: Camera
    thumbnail: np.ndarray  # (h, w, 3) uint8

    @property
    def fov_and_aspect(self) -> tuple[float, float]:
        """Vertical field of view in radians, and width over height, of the frustum that is drawn."""
        across, down = half_angles(self.camera)
        return 2 * float(np.arctan(down)), across / down


def thumbnail(colors: Tensor, alphas: Tensor | None = None) -> np.ndarray:
    """(H, W, 3) uint8 [and (H, W) alphas, laid over white] -> (h, w, 3) uint8, averaged over blocks of pixels."""
    step = max(1, -(-max(colors.shape[:2]) // LONGEST_SIDE))
    height, width = max(colors.shape[0] // step, 1), max(colors.shape[1] // step, 1)
    image = colors.permute(2, 0, 1)[None].float()
    if alphas is not None:
        opaque = alphas[None, None].float() / 255
        image = image * opaque + 255 * (1 - opaque)
    small = torch.nn.functional.adaptive_avg_pool2d(image, (height, width))[0]
    return (small.permute(1, 2, 0) + 0.5).to(torch.uint8).numpy()


def photo_of(frame: Frame) -> Photo:
    """A scene's frame as the page needs it."""
    return Photo(frame.name, frame.split.value, frame.camera, thumbnail(frame.colors, frame.alphas))


class Photos:
    """Photographs that arrive in the background; ``failure`` says why there are none."""

    def __init__(self, open_scene: Callable[[], Scene]) -> None:
        self.photos: list[Photo] = []
        self.failure: str | None = None
        self.arrived = threading.Event()
        self._open_scene = open_scene
        self._ready: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._load, name="polyfield-photos", daemon=True).start()

    def when_ready(self, call: Callable[[], None]) -> None:
        """Call once they are there, or known not to come; at once if that is so already."""
        with self._lock:
            if not self.arrived.is_set():
                self._ready.append(call)
                return
        call()

    def _load(self) -> None:
        try:
            self.photos = [photo_of(frame) for frame in self._open_scene().frames]
        except Exception as error:  # whatever is wrong with the data: the fitted scene is there all the same
            self.failure = str(error) or type(error).__name__
        with self._lock:
            self.arrived.set()
            waiting, self._ready = self._ready, []
        for call in waiting:
            call()
