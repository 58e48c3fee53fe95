"""A scene: posed photographs and what is known about them, in a frame where the region of interest is [-1, 1]^3.

Colours stay uint8 as decoded, with straight (not premultiplied) alpha; poses and depths are in the scene's frame, and
``scene_to_world`` (a similarity) leads back to the user's own units. A data set format is one module in this folder
with ``matches(root) -> bool`` and ``load(root, options) -> Scene``; the folder's listing is the registry.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..geometry.cameras import Camera
from ..geometry.types import Aabb, Mesh, Pixels
from .normalize import up_direction

if TYPE_CHECKING:
    from .seen_points import SeenPoints

GIB = 1 << 30


class SceneError(ValueError):
    """A data set that cannot be used as it is; the message names the file and the remedy."""


class Split(Enum):
    """What a frame is for."""

    TRAIN = "train"
    TEST = "test"
    VAL = "val"


class MaskUse(Enum):
    """What the masks that come with a data set mean."""

    IGNORE = "ignore"
    """Black pixels do not count, neither in fitting nor in metrics (nerfstudio's convention)."""
    ALPHA = "alpha"
    """Black pixels are empty: the mask is the object's silhouette (NeuS's convention)."""
    IGNORE_WHITE = "ignore-white"
    """White pixels do not count (the convention of instant-ngp's dynamic masks)."""
    NONE = "none"
    """Masks are not read."""


@dataclass(frozen=True)
class LoadOptions:
    """How a data set is opened, whatever its format."""

    downscale: int = 1
    """Images are averaged over blocks of this many pixels a side."""
    masks: MaskUse = MaskUse.IGNORE
    max_memory: int = 4 * GIB
    """Bytes that decoded images may take; more is an error that says which downscale would fit."""
    hold_out: int = 8
    """Every so many-th image in sorted order is a test view, unless the data set names its own split; 0 = none."""


@dataclass(frozen=True)
class Frame:
    """One photograph with its camera, H x W = camera.height x camera.width."""

    name: str
    camera: Camera  # camera_to_world leads to the scene's frame
    colors: Tensor  # (H, W, 3) uint8, straight alpha
    split: Split = Split.TRAIN
    alphas: Tensor | None = None  # (H, W) uint8
    mask: Tensor | None = None  # (H, W) bool, False = ignored by every loss and metric
    depths: Tensor | None = None  # (H, W) float32 along the ray, scene units; 0 = unknown
    normals: Tensor | None = None  # (H, W, 3) float16, scene frame, unit; 0 = unknown
    image_path: Path | None = None
    seen: SeenPoints | None = None  # scene frame: points of structure from motion
    depth_weights: Tensor | None = None  # (H, W) float32 in [0, 1], how far depths are to be trusted; None = alike

    @property
    def memory_bytes(self) -> int:
        """What its images hold."""
        tensors = (self.colors, self.alphas, self.mask, self.depths, self.normals, self.depth_weights)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def pixels(self) -> Pixels:
        """The photograph as float Pixels (H, W): straight colours in [0, 1], and what else is known of it."""
        return Pixels(
            colors=self.colors.float() / 255,
            alphas=None if self.alphas is None else self.alphas.float() / 255,
            depths=self.depths,
            normals=None if self.normals is None else self.normals.float(),
            masks=self.mask,
            depth_weights=self.depth_weights,
        )

    def over(self, background: Tensor | tuple[float, float, float]) -> Tensor:
        """(H, W, 3) float colours in [0, 1], composited over a background colour (3,) where there is alpha."""
        colors = self.colors.float() / 255
        if self.alphas is None:
            return colors
        alphas = self.alphas.float()[..., None] / 255
        return colors * alphas + torch.as_tensor(background, dtype=torch.float32) * (1 - alphas)


@dataclass(frozen=True)
class Scene:
    """Everything a fit needs to know about its data."""

    name: str
    frames: tuple[Frame, ...]  # in sorted order of their names within a split
    scene_to_world: Tensor  # (4, 4) float64 similarity: scene frame -> the units of the data set
    bounds: Aabb  # scene frame: what may hold content
    cascades: int = 1  # nested cubes of half 1, 2, 4, ...; 1 = nothing outside [-1, 1]^3
    near: float = 0.0  # scene units; nothing is nearer to a camera
    background: Tensor | None = None  # (3,) in [0, 1]: the plain colour that opaque images were cut out of
    points: Tensor | None = None  # (N, 3) scene frame, e.g. from structure from motion
    point_colors: Tensor | None = None  # (N, 3) in [0, 1]
    point_normals: Tensor | None = None  # (N, 3) unit, scene frame, of points that lie on a surface
    mesh: Mesh | None = None  # ground truth, scene frame; of a scene without photographs: what is fitted
    source: Path | None = None
    notes: tuple[str, ...] = ()  # what was changed in it, for people
    upwards: tuple[float, float, float] = (0.0, 0.0, 1.0)  # unit; of a scene without photographs

    @property
    def unbounded(self) -> bool:
        """Whether there is content outside [-1, 1]^3."""
        return self.cascades > 1

    @property
    def train(self) -> tuple[Frame, ...]:
        """Frames to fit."""
        return self.of(Split.TRAIN)

    @property
    def test(self) -> tuple[Frame, ...]:
        """Frames held out for measuring."""
        return self.of(Split.TEST)

    def of(self, split: Split) -> tuple[Frame, ...]:
        """Frames of one split."""
        return tuple(f for f in self.frames if f.split is split)

    @property
    def has_alpha(self) -> bool:
        """Whether any image has alpha."""
        return any(f.alphas is not None for f in self.frames)

    @property
    def memory_bytes(self) -> int:
        """What all images hold."""
        return sum(f.memory_bytes for f in self.frames)

    @property
    def up(self) -> Tensor:
        """(3,) unit: upwards in the photographs (``normalize.up_direction``); ``upwards`` where there are none."""
        if not self.frames:
            return torch.tensor(self.upwards)
        return up_direction(torch.stack([f.camera.camera_to_world for f in self.frames])).float()

    def cameras_seeing(self, points: Tensor, *, enough: int | None = None) -> Tensor:
        """Points (N, 3) in the scene's frame -> (N,) int64: how many training images they project into.

        With ``enough``, whoever has been seen by so many is not asked for again: the counts end there.
        """
        count = torch.zeros(points.shape[0], dtype=torch.long, device=points.device)
        asked = torch.arange(len(points), device=points.device)
        for frame in self.train:
            camera = frame.camera.to(points.device)
            pixels, _ = camera.project(points[asked])
            size = pixels.new_tensor([camera.width, camera.height])
            count[asked] += ((pixels >= 0) & (pixels <= size)).all(-1)  # NaN compares False
            if enough is not None:
                asked = asked[count[asked] < enough]
        return count

    def with_frames(self, frames: tuple[Frame, ...]) -> Scene:
        """The same scene with other frames."""
        return replace(self, frames=frames)


def open_scene(path: str | Path, options: LoadOptions | None = None, **changes: object) -> Scene:
    """Open a data set of any known format; ``demo`` is the built-in scene unless a folder has that name.

    ``changes`` are fields of ``LoadOptions``: ``open_scene("fox", downscale=2)``. Raises SceneError.
    """
    options = replace(options or LoadOptions(), **changes)  # type: ignore[arg-type]
    if options.downscale < 1:
        raise SceneError(f"open_scene: downscale: expected 1 or more, got {options.downscale}")
    root = Path(path)
    return find_format(root).load(root, options)


def find_format(root: Path) -> ModuleType:
    """The module that reads this data set. Raises SceneError if there is none."""
    formats = [importlib.import_module(f"{__package__}.{m.name}") for m in pkgutil.iter_modules(_folder())]
    formats = [m for m in formats if hasattr(m, "matches")]
    # A file of finished poses beats what would have to be computed or guessed from the same folder.
    formats.sort(key=lambda m: (-getattr(m, "PREFERENCE", 0), m.__name__))
    for module in formats:
        if module.matches(root):
            return module
    if not root.exists():
        raise SceneError(
            f"{root}: expected a folder with a data set, found nothing there; check the path, or use `demo`"
        )
    if root.is_dir() and not any(root.iterdir()):
        raise SceneError(f"{root}: expected a data set, found an empty folder; put images and transforms.json there")
    known = ", ".join(m.__name__.rsplit(".", 1)[-1] for m in formats)
    raise SceneError(
        f"{root}: expected a data set of a known format ({known}), found none; are its cameras missing "
        "(transforms.json, or sparse/0 of COLMAP)? docs/data.md says where each format has them"
    )


def _folder() -> list[str]:
    return list(importlib.import_module(__package__).__path__)
