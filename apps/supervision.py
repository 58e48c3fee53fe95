"""What losses need of photographs beside their colours, and whether a scene has it."""

from __future__ import annotations

from collections.abc import Mapping

from ..datasets.scene import Scene
from ..renderers.protocols import Loss
from .errors import UserError

SOURCES = {"depths": "depth_file_path", "normals": "normal_file_path"}  # in transforms.json


def needed(losses: Mapping[str, Loss], scene: Scene) -> frozenset[str]:
    """The names of the ``Pixels`` that these losses compare (their ``needs``).

    Raises UserError if a loss compares what no training view has.
    """
    names = {name: loss.needs for name, loss in losses.items() if hasattr(loss, "needs")}
    for option, what in names.items():
        if all(getattr(frame, what) is None for frame in scene.train):
            raise UserError(
                f"fit: --{option}.weight: expected {what} in a training view at least, {scene.name} has none; name "
                f"them by {SOURCES[what]} in transforms.json, or leave the option out"
            )
    return frozenset(names.values())
