"""One browser window: its controls, and its camera. Each window has its own; only camera path and fit are shared.

Lengths on the page are the scene frame's, in which the region of interest is [-1, 1]^3; the camera path and the mesh
are kept in the user's own units and converted.
"""

from __future__ import annotations

import io
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...geometry import Aabb, Camera, Pixels
from ...renderers.sphere_tracing import SphereTracer
from ..commands.render import Channel, picture
from ..errors import UserError
from ..images import to_uint8
from .cameras import Pose, browser_camera
from .loop import Look, Shown, Window
from .pace import reduced
from .path_panel import PathPanel
from .photo_panel import PhotoPanel
from .splat_painting import Selection, draws_images
from .splat_panel import SplatPanel

if TYPE_CHECKING:
    from .server import Viewer

CHANNELS = {
    "Colour": Channel.COLOR,
    "Depth": Channel.DEPTH,
    "Normals": Channel.NORMAL,
    "Opacity": Channel.ALPHA,
    "Shaded": Channel.SHADED,
    "Nothing": None,
}
SAVE_SIZES = {
    "As the window": None,
    "1280 x 720": (1280, 720),
    "1920 x 1080": (1920, 1080),
    "3840 x 2160": (3840, 2160),
}
DEPTH_STEP = 0.00256  # 256 of the browser's units: the low byte stays the same and compresses to nothing
FARTHEST = 160.0


def depth_for_browser(z_depths: torch.Tensor, longest: int = 480) -> np.ndarray:
    """(h, w) depths that the browser compares with what it draws itself; coarser than the picture, and quantised."""
    step = max(1, -(-max(z_depths.shape) // longest))
    coarse = z_depths[step // 2 :: step, step // 2 :: step].clamp(0, FARTHEST)
    return ((coarse / DEPTH_STEP).floor() * DEPTH_STEP + DEPTH_STEP / 2).numpy()


def png_bytes(pixels: Pixels, channel: Channel) -> bytes:
    """A picture as a PNG file's content."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_uint8(picture(pixels, channel)).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


class Panel:
    """The controls of one window (a viser client)."""

    def __init__(self, viewer: Viewer, client: Any) -> None:
        self.viewer, self.client = viewer, client
        self.window = Window(self._deliver, self._failed)
        self.closed = False
        self._lock = threading.Lock()
        self._mesh: Any = None
        self._saved = 0
        self._build()
        self.photos = PhotoPanel(self, viewer.photos)
        self._build_rest()
        self.splats = SplatPanel(self) if draws_images(viewer.stage) else None
        self.path = PathPanel(self, viewer.recorder)
        client.camera.on_update(lambda _: self._moved())
        viewer.loop.add(self.window)
        self.refresh()

    def close(self) -> None:
        """The browser is gone."""
        self.closed = True
        self.path.close()
        self.viewer.loop.remove(self.window)

    def _build(self) -> None:
        gui = self.client.gui
        with gui.add_folder("View"):
            traced = isinstance(self.viewer.stage.renderer, SphereTracer)
            shown = tuple(name for name in CHANNELS if traced or name != "Shaded")
            self._channel = gui.add_dropdown("Show", shown, initial_value="Colour")
            hint = "Longest side of the sharpest picture, pixels"
            self._detail = gui.add_slider("Detail", 128, 2048, 64, 1280, hint=hint)
            hint = "Turn the scene's upward direction to the top again"
            self._upright = gui.add_button("Level the camera", icon="arrow-bar-to-up", hint=hint)
            self._status = gui.add_markdown("")
        for handle in (self._channel, self._detail):
            handle.on_update(lambda _: self.refresh())
        self._upright.on_click(lambda _: self._level())

    def _build_rest(self) -> None:
        gui = self.client.gui
        with gui.add_folder("Mesh", expand_by_default=False):
            self._show_mesh = gui.add_checkbox("Show", False, disabled=self.viewer.mesh is None)
            gui.add_markdown(self._mesh_note())
        with gui.add_folder("Crop", expand_by_default=False):
            self._crop = gui.add_checkbox("Crop to a box", False)
            bounds = self.viewer.bounds
            low, high = (round(float(x), 2) for x in (bounds.low.min(), bounds.high.max()))
            step, start = round((high - low) / 200, 4), (max(low, -1.0), min(high, 1.0))
            self._axes = [gui.add_multi_slider(axis, low, high, step, start, min_range=step) for axis in "xyz"]
        with gui.add_folder("Picture", expand_by_default=False):
            self._save_size = gui.add_dropdown("Size", tuple(SAVE_SIZES), initial_value="As the window")
            self._save = gui.add_button("Save a PNG", icon="camera")
        self._show_mesh.on_update(lambda _: self._draw_mesh())
        for handle in (self._crop, *self._axes):
            handle.on_update(lambda _: self._crop_changed())
        self._save.on_click(lambda _: self._save_picture())

    def tell(self, title: str, body: str, *, wrong: bool = False) -> None:
        """A note in the window's corner."""
        seconds, color = (12.0, "red") if wrong else (5.0, None)
        self.client.add_notification(title, body, auto_close_seconds=seconds, color=color)

    # The picture.

    @property
    def channel(self) -> Channel | None:
        """What is shown; None for nothing but what the browser draws."""
        return CHANNELS[self._channel.value]

    @property
    def box(self) -> Aabb | None:
        """The crop box, scene frame; None if nothing is cropped."""
        if not self._crop.value:
            return None
        ends = torch.tensor([list(axis.value) for axis in self._axes], dtype=torch.float32)
        return Aabb(ends[:, 0].contiguous(), ends[:, 1].contiguous())

    @property
    def size(self) -> tuple[int, int]:
        """Of the window, pixels."""
        return max(self.client.camera.image_width, 1), max(self.client.camera.image_height, 1)

    @property
    def pose(self) -> Pose:
        """Where the window's camera is."""
        camera = self.client.camera
        return Pose(tuple(camera.wxyz.tolist()), tuple(camera.position.tolist()), float(camera.fov))

    def _camera(self, size: tuple[int, int]) -> Camera:
        pose = self.pose
        return browser_camera(pose.wxyz, pose.position, pose.fov, *size)

    def _moved(self) -> None:
        self.refresh()
        if self.photos.shown and not self.closed:
            self.photos.update()

    def refresh(self) -> None:
        """Something about the view changed."""
        if self.closed:
            return
        channel = self.channel
        with self._lock:
            if channel is None or (self.splats is not None and self.splats.in_browser):
                self.viewer.loop.show(self.window, None)
                self.client.scene.set_background_image(None)
                self._status.content = ""
                return
            shrink = max(1.0, max(self.size) / int(self._detail.value))
            self.viewer.loop.show(self.window, self._look(reduced(*self.size, shrink), channel))

    def _look(self, size: tuple[int, int], channel: Channel) -> Look:
        return Look(
            self._camera(size), channel, self.box, Selection() if self.splats is None else self.splats.selection
        )

    def _browser_draws(self) -> bool:
        """Whether the browser draws anything that the scene can hide."""
        return bool(self._crop.value or self._show_mesh.value or self.photos.shown or self.path.shown)

    def _deliver(self, shown: Shown) -> None:
        if self.closed or self.channel is not shown.look.channel:
            return
        image = to_uint8(picture(shown.pixels, shown.look.channel)).contiguous().numpy()
        depth = depth_for_browser(shown.z_depths) if self._browser_draws() else None
        quality = 92 if shown.sharpest else 75
        self.client.scene.set_background_image(image, format="jpeg", jpeg_quality=quality, depth=depth)
        height, width = image.shape[:2]
        state = "sharp" if shown.sharpest else f"1/{shown.divisor:g}"
        self._status.content = f"{width} x {height} · {state} · {shown.seconds * 1e3:.0f} ms"
        if self.splats is not None:
            self.splats.count()
        self.client.flush()

    def _failed(self, error: Exception) -> None:
        self._status.content = f"cannot be painted: {error}"

    def _save_picture(self) -> None:
        channel = self.channel
        if channel is None:
            self.tell("Nothing to save", "Choose what to show first.", wrong=True)
            return
        note = self.client.add_notification("Painting the picture", "It is downloaded when it is done.", loading=True)

        def deliver(shown: Shown) -> None:
            self._saved += 1
            name = f"{self.viewer.name}_{channel.value}_{self._saved:03d}.png"
            self.client.send_file_download(name, png_bytes(shown.pixels, channel), save_immediately=True)
            note.remove()
            self.tell("Picture saved", name)

        def failed(error: Exception) -> None:
            note.remove()
            self.tell("The picture was not saved", str(error), wrong=True)

        once = Window(deliver, failed, once=True)
        self.viewer.loop.add(once)
        size = SAVE_SIZES[self._save_size.value] or self.size
        self.viewer.loop.show(once, self._look(size, channel))

    # The camera.

    def move(self, pose: Pose) -> None:
        """Put this window's camera somewhere."""
        with self.client.atomic():
            self.client.camera.position = np.array(pose.position)
            self.client.camera.wxyz = np.array(pose.wxyz)
            self.client.camera.fov = pose.fov
        self.client.flush()

    def _level(self) -> None:
        self.client.camera.up_direction = np.array(self.viewer.up)

    # Mesh and crop box, drawn by the browser.

    def _mesh_note(self) -> str:
        if self.viewer.mesh is None:
            return "none yet: `polyfield extract RUN`, or `polyfield view RUN --mesh FILE`"
        return f"{self.viewer.mesh.name}. To see it alone, show _Nothing_ above."

    def _draw_mesh(self) -> None:
        with self._lock:
            if self._show_mesh.value and self._mesh is None:
                try:
                    data, colored = self.viewer.mesh_glb()
                except UserError as error:
                    self.tell("The mesh cannot be shown", str(error), wrong=True)
                    return
                if colored:
                    self._light_evenly()
                self._mesh = self.client.scene.add_glb("/mesh", data, cast_shadow=False, receive_shadow=False)
            if self._mesh is not None:
                self._mesh.visible = bool(self._show_mesh.value)
        self.refresh()

    def _light_evenly(self) -> None:
        """A fitted mesh's colours hold the scene's own light already: the browser shows them as they are."""
        self.client.scene.configure_environment_map(None)
        self.client.scene.configure_default_lights(False)
        self.client.scene.add_light_ambient("/light", intensity=math.pi)

    def _crop_changed(self) -> None:
        box = self.box
        if box is None:
            self.client.scene.remove_by_name("/crop")
        else:
            corners = torch.cartesian_prod(*torch.stack([box.low, box.high], 1)).numpy()
            edges = [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4)]
            lines = np.stack([corners[list(edge)] for edge in edges])
            color = (250, 200, 40)
            self.client.scene.add_line_segments("/crop", lines, color, thickness=1.5, thickness_units="screen")
        if self.splats is not None:
            self.splats.changed()
        self.refresh()
