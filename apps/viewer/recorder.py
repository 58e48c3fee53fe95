"""The camera path that all windows record together, kept in the scene's frame and saved in the user's world units."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...geometry.transforms import similarity_inverse
from ..camera_path import CameraPath, Key, read_camera_path, save_camera_path
from ..errors import UserError
from .cameras import Pose, browser_camera, pose_of


class Recorder:
    """Keys that can be added to, read and saved from any thread. ``changed`` is called after each change."""

    def __init__(self, file: Path | None, scene_to_world: Tensor) -> None:
        self.file, self.scene_to_world = file, scene_to_world.double()
        self.changed: list[Callable[[], None]] = []
        self.path = CameraPath()
        self.trouble: str | None = None
        self._lock = threading.Lock()
        if file is not None and file.is_file():
            try:
                self.path = read_camera_path(file).transformed(similarity_inverse(self.scene_to_world))
            except UserError as error:
                self.trouble = str(error)

    def add(self, pose: Pose, width: int, height: int) -> None:
        """A key where a window's camera is."""
        matrix = browser_camera(pose.wxyz, pose.position, pose.fov, width, height).camera_to_world.double()
        with self._lock:
            keys = (*self.path.keys, Key(matrix, pose.fov))
            self.path = replace(self.path, keys=keys, width=width, height=height)
        self._tell()

    def remove(self, index: int) -> None:
        with self._lock:
            self.path = replace(self.path, keys=self.path.keys[:index] + self.path.keys[index + 1 :])
        self._tell()

    def clear(self) -> None:
        with self._lock:
            self.path = replace(self.path, keys=())
        self._tell()

    def configure(self, **changes: float | bool) -> None:
        """Set ``seconds`` or ``closed``."""
        with self._lock:
            before, self.path = self.path, replace(self.path, **changes)  # type: ignore[arg-type]
        if any(getattr(before, name) != value for name, value in changes.items()):
            self._tell()  # only then: a window that is told sets its own controls, which call this again

    def save(self) -> Path:
        """Write the file. Raises UserError if there is no run folder or nothing to save."""
        if self.file is None:
            raise UserError("view: camera path: expected a run folder to save to, got none; open the viewer on a run")
        if not self.path.keys:
            raise UserError("view: camera path: expected at least one key, got none; add one first")
        save_camera_path(self.file, self.path.transformed(self.scene_to_world))
        return self.file

    def key_pose(self, index: int) -> Pose:
        """A key in the browser's words."""
        key = self.path.keys[index]
        return pose_of(key.camera_to_world, key.fov_y)

    def frames(self, per_second: float) -> list[Pose]:
        """The browser's camera at each frame of a preview."""
        path = self.path
        poses, fovs = path.poses(max(2, round(path.seconds * per_second)))
        return [pose_of(pose, fov) for pose, fov in zip(poses, fovs.tolist(), strict=True)]

    def curve(self, points_per_key: int = 16) -> Tensor:
        """(N, 3) points along the path, for drawing."""
        count = len(self.path.keys)
        if count < 2:
            return torch.zeros(0, 3)
        points = self.path.poses(points_per_key * count)[0][:, :3, 3]
        return torch.cat([points, points[:1]]) if self.path.closed and count > 2 else points

    def _tell(self) -> None:
        for call in list(self.changed):
            call()
