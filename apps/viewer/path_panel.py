"""The camera path in one window: its keys, its curve, its preview."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:
    from .panel import Panel
    from .recorder import Recorder

PREVIEW_FPS = 15.0
PINK = (220, 60, 160)


class PathPanel:
    """The folder "Camera path" and what it draws. All windows edit the same path."""

    def __init__(self, panel: Panel, recorder: Recorder) -> None:
        self.panel, self.recorder = panel, recorder
        self._lock = threading.Lock()
        self._playing = threading.Event()
        gui, path = panel.client.gui, recorder.path
        with gui.add_folder("Camera path", expand_by_default=False):
            self._keys = gui.add_markdown("")
            self._add = gui.add_button("Add a key here", icon="plus")
            self._index = gui.add_number("Key", 1, min=1, max=1, step=1)
            self._edit = gui.add_button_group("The key", ("look", "remove"))
            self._seconds = gui.add_number("Seconds", float(path.seconds), min=0.5, max=600.0, step=0.5)
            self._closed = gui.add_checkbox("Closed", path.closed, hint="End where it began; takes three keys")
            self._play = gui.add_button("Play", icon="player-play")
            hint = "to RUN/camera_path.json, for polyfield render RUN --path FILE"
            self._save = gui.add_button("Save", icon="device-floppy", hint=hint)
            self._clear = gui.add_button("Clear", icon="trash")
        self._add.on_click(lambda _: recorder.add(panel.pose, *panel.size))
        self._edit.on_click(lambda event: self._edit_key(event.target.value))
        self._seconds.on_update(lambda _: recorder.configure(seconds=float(self._seconds.value)))
        self._closed.on_update(lambda _: recorder.configure(closed=bool(self._closed.value)))
        self._play.on_click(lambda _: self._toggle_play())
        self._save.on_click(lambda _: self._write())
        self._clear.on_click(lambda _: recorder.clear())
        recorder.changed.append(self._changed)
        self._changed()

    @property
    def shown(self) -> bool:
        """Whether there is a curve to be hidden by the scene."""
        return bool(self.recorder.path.keys)

    def close(self) -> None:
        """The browser is gone."""
        self._playing.clear()
        if self._changed in self.recorder.changed:
            self.recorder.changed.remove(self._changed)

    def _edit_key(self, what: str) -> None:
        index = int(self._index.value) - 1
        if index >= len(self.recorder.path.keys):
            return
        if what == "remove":
            self.recorder.remove(index)
        else:
            self.panel.move(self.recorder.key_pose(index))

    def _changed(self) -> None:
        if self.panel.closed:
            return
        with self._lock:
            path = self.recorder.path
            self._keys.content = self._text()
            self._index.max = max(len(path.keys), 1)
            for handle, value in ((self._seconds, float(path.seconds)), (self._closed, path.closed)):
                if handle.value != value:
                    handle.value = value
            self.panel.client.scene.remove_by_name("/path")
            self._draw()

    def _text(self) -> str:
        keys = self.recorder.path.keys
        if self.recorder.trouble is not None and not keys:
            return f"not read: {self.recorder.trouble}"
        rows = []
        for i, key in enumerate(keys):
            at = ", ".join(f"{x:.2f}" for x in key.camera_to_world[:3, 3].tolist())
            rows.append(f"{i + 1}. at ({at}), {math.degrees(key.fov_y):.0f}°")
        if len(rows) > 12:
            rows = [*rows[:5], f"({len(rows) - 10} more)", *rows[-5:]]
        return "\n\n".join(rows) or "no keys yet"

    def _draw(self) -> None:
        path, scene = self.recorder.path, self.panel.client.scene
        for i in range(len(path.keys)):
            pose = self.recorder.key_pose(i)
            scene.add_camera_frustum(
                f"/path/key{i:04d}",
                fov=pose.fov,
                aspect=path.width / path.height,
                scale=0.06,
                thickness=1.5,
                thickness_units="screen",
                color=PINK,
                wxyz=pose.wxyz,
                position=pose.position,
            ).on_click(lambda _, pose=pose: self.panel.move(pose))
        curve = self.recorder.curve().numpy()
        if len(curve) > 1:
            segments = np.stack([curve[:-1], curve[1:]], 1)
            scene.add_line_segments("/path/curve", segments, PINK, thickness=2.0, thickness_units="screen")

    def _toggle_play(self) -> None:
        if self._playing.is_set():
            self._playing.clear()
            return
        if len(self.recorder.path.keys) < 2:
            self.panel.tell("Nothing to play", "A path needs two keys or more.", wrong=True)
            return
        self._playing.set()
        self._play.label, self._play.icon = "Stop", "player-stop"
        self.panel.client.scene.remove_by_name("/path")  # not in the picture
        frames, started = self.recorder.frames(PREVIEW_FPS), time.perf_counter()
        while self._playing.is_set() and (at := int((time.perf_counter() - started) * PREVIEW_FPS)) < len(frames):
            self.panel.move(frames[at])
            time.sleep(1 / PREVIEW_FPS)
        self._playing.clear()
        if not self.panel.closed:
            self._changed()
            self._play.label, self._play.icon = "Play", "player-play"

    def _write(self) -> None:
        try:
            file = self.recorder.save()
        except UserError as error:
            self.panel.tell("The path was not saved", str(error), wrong=True)
            return
        self.panel.tell("Camera path saved", f"polyfield render {file.parent} --path {file}")
