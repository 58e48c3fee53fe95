"""The controls of one window that only Gaussians have: who draws them, which are shown, deletion, and a .ply to keep.

The browser draws them from the same numbers, but in its own way: colours from straight ahead only (the first band),
sorted when it finds the time. What is deleted is deleted for all windows; the run's files are not touched.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...geometry import Gaussians
from ...geometry.gaussian_transforms import transform
from ...geometry.gaussians import SH_C0
from ...geometry.splat_io import save_gaussians
from ...geometry.transforms import quaternion_to_matrix
from .splat_painting import Selection

if TYPE_CHECKING:
    from .panel import Panel

SMALLEST, LARGEST = -4.0, 2.0  # log10 of the longest standard deviation, scene units


def for_browser(gaussians: Gaussians) -> dict[str, Any]:
    """The arguments of viser's ``add_gaussian_splats``."""
    axes = quaternion_to_matrix(gaussians.quats) * gaussians.scales[:, None]
    return {
        "centers": gaussians.means.cpu().numpy(),
        "covariances": (axes @ axes.transpose(1, 2)).cpu().numpy(),
        "rgbs": (gaussians.sh[:, 0] * SH_C0 + 0.5).clamp(0, 1).cpu().numpy(),
        "opacities": gaussians.opacities[:, None].cpu().numpy(),
    }


class SplatPanel:
    """A folder of controls."""

    def __init__(self, panel: Panel) -> None:
        self.panel, self.stage, self.viewer = panel, panel.viewer.stage, panel.viewer
        self._drawn: Any = None
        gui = panel.client.gui
        with gui.add_folder("Gaussians"):
            self._count = gui.add_markdown("")
            hint = "Faster to move, less exact. During a fit they stay as they were when this was switched on."
            self._browser = gui.add_checkbox("Let the browser draw", False, hint=hint)
            self._opacity = gui.add_slider("Least opacity", 0.0, 1.0, 0.01, 0.0)
            hint = "Logarithm of the longest standard deviation, base 10, scene units"
            self._size = gui.add_slider("Largest size", SMALLEST, LARGEST, 0.05, LARGEST, hint=hint)
            hint = "Gaussians in the crop box that are shown"
            self._delete = gui.add_button("Delete what is in the box", icon="trash", hint=hint)
            self._restore = gui.add_button("Bring all back", icon="arrow-back-up")
            hint = "Without those deleted, filtered or cropped, in the scene's own units"
            self._save = gui.add_button("Save what is shown (.ply)", icon="download", hint=hint)
        for handle in (self._browser, self._opacity, self._size):
            handle.on_update(lambda _: self._set())
        self._delete.on_click(lambda _: self.delete())
        self._restore.on_click(lambda _: self.restore())
        self._save.on_click(lambda _: self.save())
        self.count()

    @property
    def in_browser(self) -> bool:
        """Whether the browser draws them."""
        return bool(self._browser.value)

    @property
    def selection(self) -> Selection:
        """What the sliders ask for."""
        size = float(self._size.value)
        return Selection(float(self._opacity.value), math.inf if size >= LARGEST else 10**size)

    def count(self) -> None:
        """Say how many there are."""
        total, deleted = len(self.stage.field.gaussians()), self.stage.deleted
        text = f"**{total:,}** in the scene"
        if deleted is not None and bool(deleted.any()):
            text += f", **{int(deleted.sum()):,}** of them deleted"
        if self._count.content != text:
            self._count.content = text

    def _set(self) -> None:
        self.changed()
        self.panel.refresh()

    def changed(self) -> None:
        """What is shown changed: draw the browser's copy anew, if there is one."""
        self.count()
        if self._drawn is not None:
            self._drawn.remove()
            self._drawn = None
        if self.in_browser:
            splats = for_browser(self._shown())
            if len(splats["centers"]):
                self._drawn = self.panel.client.scene.add_gaussian_splats("/gaussians", **splats)

    def _shown(self) -> Gaussians:
        with self.viewer.turns.viewer():  # a fit may be about to change them
            return self.selection.of(self.stage, self.panel.box)

    def delete(self) -> None:
        """Take away what the box shows."""
        if self.viewer.turns.fitting or self.viewer.turns.paused:
            self.panel.tell("Nothing was deleted", "The fit still moves Gaussians; wait until it is over.", wrong=True)
            return
        if self.panel.box is None:
            self.panel.tell("Nothing was deleted", "Crop to a box first: what is in it is deleted.", wrong=True)
            return
        chosen = self.selection.mask(self.stage, self.panel.box)
        self.stage.deleted = chosen if self.stage.deleted is None else self.stage.deleted | chosen
        self.panel.tell("Deleted", f"{int(chosen.sum()):,} Gaussians; switch the crop off to see what is left.")
        self.viewer.refresh()

    def restore(self) -> None:
        """Bring back all that was deleted."""
        self.stage.deleted = None
        self.viewer.refresh()

    def save(self) -> None:
        """Hand the browser a .ply of what is shown."""
        shown = self._shown().to("cpu")
        if not len(shown):
            self.panel.tell("Nothing to save", "No Gaussian passes the box and the filters.", wrong=True)
            return
        name = f"{self.viewer.name}.ply"
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            file = Path(folder) / name
            save_gaussians(file, transform(shown, self.viewer.scene_to_world))
            self.panel.client.send_file_download(name, file.read_bytes(), save_immediately=True)
        self.panel.tell("Saved", f"{len(shown):,} Gaussians")
