"""One thread paints for all windows: always the most urgent piece of picture, a few hundredths of a second at a time.

    1. a window whose camera moved and has nothing of its new view yet: coarse, fast enough to follow the hand
    2. pictures to be saved, and sharpening what rests; the window that waited longest goes first

A window that moves again drops the sharpening under way: its ``version`` no longer matches.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...geometry import Aabb, Pixels
from ...geometry.cameras import Camera
from ..commands.render import Channel
from .pace import LADDER, Pace, reduced, sharper
from .painting import Painting, Stage
from .splat_painting import Selection, SplatPainting, draws_images
from .turns import SHARE_AT_REST, SHARE_MOVING, Turns

LIVE_SECONDS = 2.0  # between pictures of a resting camera while the field is being fitted


@dataclass(frozen=True)
class Look:
    """What a window wants to see. ``camera`` has the window's full size."""

    camera: Camera
    channel: Channel = Channel.COLOR
    box: Aabb | None = None
    splats: Selection = Selection()  # of Gaussians, if the field has them

    def painting(self, stage: Stage, size: tuple[int, int]) -> Painting | SplatPainting:
        """Its picture, to be painted, at a size in pixels."""
        camera, normals = self.camera.resized(*size), self.channel is Channel.NORMAL
        if draws_images(stage):
            return SplatPainting(stage, camera, normals=normals, box=self.box, selection=self.splats)
        return Painting(stage, camera, normals=normals, box=self.box)


@dataclass(frozen=True)
class Shown:
    """A finished picture."""

    look: Look
    pixels: Pixels
    z_depths: torch.Tensor
    divisor: float
    seconds: float
    sharpest: bool


class Window:
    """One browser window, or one picture to be saved (``once``: straight at full size, then gone)."""

    def __init__(
        self,
        deliver: Callable[[Shown], None],
        failed: Callable[[Exception], None] = lambda _: None,
        *,
        once: bool = False,
    ) -> None:
        self.deliver, self.failed, self.once = deliver, failed, once
        self.look: Look | None = None
        self.version = 0
        self.painting: Painting | SplatPainting | None = None
        self.painting_version = -1
        self.painting_look: Look | None = None
        self.painting_divisor = 1.0
        self.painting_step = -1
        self.shown_version = -1
        self.shown_divisor = LADDER[-1]
        self.shown_step = -1
        self.shown_sharpest = False
        self.served = 0.0

    @property
    def fresh(self) -> bool:
        """Whether nothing of the present view has been shown."""
        return self.shown_version != self.version and not self.once


class Loop:
    """The painting thread."""

    def __init__(
        self, stage: Stage, turns: Turns, step: Callable[[], int] = lambda: 0, pace: Pace | None = None
    ) -> None:
        self.stage, self.turns, self.step, self.pace = stage, turns, step, pace or Pace()
        self._windows: list[Window] = []
        self._condition = threading.Condition()
        self._stopped = False
        self._last_error = ""
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="polyfield-viewer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the piece that it is painting."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def add(self, window: Window) -> None:
        with self._condition:
            self._windows.append(window)
            self._condition.notify_all()

    def remove(self, window: Window) -> None:
        with self._condition:
            if window in self._windows:
                self._windows.remove(window)

    def show(self, window: Window, look: Look | None) -> None:
        """Let ``window`` show this from now on; None shows nothing."""
        with self._condition:
            window.look = look
            window.version += 1
            self._condition.notify_all()

    def wake(self) -> None:
        """Look again at what is to be done: the field changed, or a fit paused or ended."""
        with self._condition:
            self._condition.notify_all()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP's count belongs to a thread
        while True:
            with self._condition:
                window = self._next()
                while window is None and not self._stopped:
                    self._condition.wait(0.05 if self.turns.fitting else 1.0)  # a step of a fit wakes nobody
                    window = self._next()
                if self._stopped:
                    return
            assert window is not None
            try:
                self._serve(window)
            except Exception as error:
                self._fail(window, error)

    def _fail(self, window: Window, error: Exception) -> None:
        """Say what is wrong, once, and wait for another view (or another step of a fit) before trying again."""
        if repr(error) != self._last_error:
            self._last_error = repr(error)
            traceback.print_exc()
        window.painting = None
        window.shown_version, window.shown_divisor, window.shown_step = window.version, 1.0, self.step()
        window.shown_sharpest = True
        if window.once:
            self.remove(window)
        window.failed(error)

    def _next(self) -> Window | None:
        """The most urgent window; called with the lock held."""
        waiting = [w for w in self._windows if w.look is not None and self._divisor(w) is not None]
        return min(waiting, key=lambda w: (not w.fresh, w.served), default=None)

    def _divisor(self, window: Window) -> float | None:
        """How coarse the window's next picture is; None if it shows the best already."""
        if window.look is None:
            return None
        if window.once:
            return 1.0
        pixels = window.look.camera.width * window.look.camera.height
        if window.fresh:
            return self.pace.divisor(pixels)
        live = self.turns.fitting
        best = self.pace.divisor(pixels, LIVE_SECONDS * SHARE_AT_REST) if live else 1.0
        if window.shown_divisor > best:
            return max(sharper(window.shown_divisor), best)
        if window.shown_step != self.step() or not (live or window.shown_sharpest):
            return best
        return None

    def _serve(self, window: Window) -> None:
        """Paint a piece for ``window``; hand it over if that finished it."""
        with self._condition:
            look, version, fresh = window.look, window.version, window.fresh
            divisor = self._divisor(window)
            if look is None or divisor is None:
                return
            window.served = time.perf_counter()
            stale = window.painting_version != version and not self._worth_finishing(window)
            painting = None if stale else window.painting
        if painting is None:
            painting = look.painting(self.stage, reduced(look.camera.width, look.camera.height, divisor))
            window.painting, window.painting_version, window.painting_divisor = painting, version, divisor
            window.painting_look = look
        with self.turns.viewer(SHARE_MOVING if fresh else SHARE_AT_REST):
            if painting.painted == 0:
                window.painting_step = self.step()
            painting.advance(self.pace.chunk())
        if painting.done:
            self._finish(window, painting)

    def _worth_finishing(self, window: Window) -> bool:
        """A coarse first picture is finished though the camera moved on: else a steady motion would show nothing."""
        return window.painting is not None and window.painting_version > window.shown_version

    def _finish(self, window: Window, painting: Painting | SplatPainting) -> None:
        self.pace.learn(painting.total, painting.seconds)
        window.painting = None
        assert window.painting_look is not None
        pixels = painting.pixels()
        sharpest = window.painting_divisor <= 1 and not self.turns.fitting
        window.deliver(
            Shown(
                window.painting_look,
                pixels,
                painting.z_depths(pixels),
                window.painting_divisor,
                painting.seconds,
                sharpest,
            )
        )
        with self._condition:
            window.shown_version, window.shown_divisor = window.painting_version, window.painting_divisor
            window.shown_step, window.shown_sharpest = window.painting_step, sharpest
        if window.once:
            self.remove(window)
