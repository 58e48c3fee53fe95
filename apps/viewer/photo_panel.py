"""The photographs in one window: frusta in the scene; a click on one looks through it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from .cameras import to_browser

if TYPE_CHECKING:
    from .panel import Panel
    from .photos import Photo, Photos

FITTED, HELD_OUT = (90, 150, 230), (240, 150, 40)


class PhotoPanel:
    """The folder "Photos" and what it draws."""

    def __init__(self, panel: Panel, photos: Photos) -> None:
        self.panel, self.source = panel, photos
        self._frusta: list[Any] = []
        self._at = -1
        self._lock = threading.Lock()
        gui = panel.client.gui
        with gui.add_folder("Photos", expand_by_default=False):
            self._show = gui.add_checkbox("Show", False, disabled=True, hint="Click one to look through it")
            self._size = gui.add_slider("Size", 0.02, 0.5, 0.01, 0.08, disabled=True)
            self._go = gui.add_button_group("Go to", ("first", "previous", "next"), visible=False)
            self._note = gui.add_markdown("reading the photographs ...")
        self._show.on_update(lambda _: self._draw())
        self._size.on_update(lambda _: self._resize())
        self._go.on_click(lambda event: self._step(event.target.value))
        photos.when_ready(self._arrived)

    @property
    def shown(self) -> bool:
        """Whether there are frusta to be hidden by the scene."""
        return bool(self._show.value)

    def _arrived(self) -> None:
        if self.panel.closed:
            return
        photos, failure = self.source.photos, self.source.failure
        if failure is not None:
            self._note.content = f"No photographs: {failure}"
            return
        held_out = any(photo.split != "train" for photo in photos)
        self._note.content = f"{len(photos)} photographs" + ("; held-out ones are orange" if held_out else "")
        self._show.disabled = self._size.disabled = not photos
        self._go.visible = bool(photos)

    def _draw(self) -> None:
        with self._lock:
            if self._show.value and not self._frusta:
                self._frusta = [self._frustum(i, photo) for i, photo in enumerate(self.source.photos)]
        self.update()
        self.panel.refresh()

    def update(self) -> None:
        """Show the frusta, except those around the camera: their photographs would cover the window."""
        shown = bool(self._show.value)
        eye, near = np.array(self.panel.pose.position), 2 * float(self._size.value)
        with self._lock:
            for photo, handle in zip(self.source.photos, self._frusta, strict=False):
                visible = shown and float(np.linalg.norm(photo.camera.position.numpy() - eye)) > near
                if handle.visible != visible:
                    handle.visible = visible

    def _frustum(self, index: int, photo: Photo) -> Any:
        fov, aspect = photo.fov_and_aspect
        pose = to_browser(photo.camera, aspect)
        handle = self.panel.client.scene.add_camera_frustum(
            f"/photos/{index:05d}",
            fov=fov,
            aspect=aspect,
            scale=float(self._size.value),
            thickness=1.5,
            thickness_units="screen",
            color=FITTED if photo.split == "train" else HELD_OUT,
            image=photo.thumbnail,
            wxyz=pose.wxyz,
            position=pose.position,
            cast_shadow=False,
            receive_shadow=False,
        )
        handle.on_click(lambda _: self._look_through(index))
        return handle

    def _resize(self) -> None:
        with self._lock:
            for handle in self._frusta:
                handle.scale = float(self._size.value)

    def _look_through(self, index: int) -> None:
        photo = self.source.photos[index]
        self._at = index
        self.panel.move(to_browser(photo.camera, self.panel.client.camera.aspect))
        self._note.content = f"{index + 1} of {len(self.source.photos)}: {photo.name} ({photo.split})"

    def _step(self, where: str) -> None:
        last = len(self.source.photos) - 1
        wanted = {"first": 0, "previous": self._at - 1, "next": self._at + 1}[where]
        self._look_through(last if wanted < 0 else 0 if wanted > last else wanted)
