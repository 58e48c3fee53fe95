"""Whose turn it is: a fit and the viewer share one field and one machine, and never run at the same time.

The fit owns the turn while it steps. After a step it gives way to a waiting viewer, as long as the viewer's part of the
last seconds is below the share asked for,  viewer <= share / (1 - share) * fit:  a fifth while the camera rests, more
while somebody moves it. Both clocks are halved every few seconds, so that no credit is saved up. While the fit is
paused, the viewer never waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

SHARE_AT_REST = 0.2
SHARE_MOVING = 0.6
MEMORY_SECONDS = 3.0


class Owner(Enum):
    NOBODY = 0
    FIT = 1
    VIEWER = 2


class Turns:
    """Shared by the thread that fits and the thread that paints. ``fitting=False``: no fit, the viewer never waits."""

    def __init__(self, *, fitting: bool) -> None:
        self._condition = threading.Condition()
        self._owner = Owner.FIT if fitting else Owner.NOBODY
        self._since = time.perf_counter()
        self._fit_seconds = self._viewer_seconds = 0.0
        self._waiting: list[float] = []  # what those who wait for the viewer's turn may take
        self._fitting, self._paused = fitting, False

    @property
    def fitting(self) -> bool:
        """Whether the field is changing: a fit is under way and not paused."""
        return self._fitting and not self._paused

    @property
    def paused(self) -> bool:
        return self._paused

    def pause(self, paused: bool) -> None:
        """Ask the fit to wait after its step, or to go on."""
        with self._condition:
            self._paused = paused
            self._condition.notify_all()

    def after_step(self, stop: Callable[[], bool] = lambda: False) -> float:
        """Called by the fit's thread: lets the viewer in if it is due; returns the seconds spent paused."""
        with self._condition:
            self._spend(Owner.FIT)
            self._owner = Owner.NOBODY
            self._condition.notify_all()
            paused = 0.0
            while (self._paused and not stop()) or self._owner is Owner.VIEWER or self._due():
                waited_from, was_paused = time.perf_counter(), self._paused
                self._condition.wait(0.2)
                paused += (time.perf_counter() - waited_from) if was_paused else 0.0
            self._owner, self._since = Owner.FIT, time.perf_counter()
            return paused

    def finish(self) -> None:
        """The fit is over: the viewer has the field to itself."""
        with self._condition:
            self._fitting = self._paused = False
            if self._owner is Owner.FIT:
                self._owner = Owner.NOBODY
            self._condition.notify_all()

    @contextmanager
    def viewer(self, share: float = SHARE_AT_REST) -> Iterator[None]:
        """Hold the turn for a few hundredths of a second of painting; waits until it is due."""
        with self._condition:
            self._waiting.append(share)
            self._condition.wait_for(lambda: self._owner is Owner.NOBODY and (not self.fitting or self._due()))
            self._waiting.remove(share)
            self._owner, self._since = Owner.VIEWER, time.perf_counter()
        try:
            yield
        finally:
            with self._condition:
                self._spend(Owner.VIEWER)
                self._owner = Owner.NOBODY
                self._condition.notify_all()

    def _due(self) -> bool:
        """Whether the viewer waits and has not had its share."""
        if not self._waiting:
            return False
        share = max(self._waiting)
        return self._viewer_seconds <= share / (1 - share) * self._fit_seconds

    def _spend(self, owner: Owner) -> None:
        seconds = time.perf_counter() - self._since
        if owner is Owner.FIT:
            self._fit_seconds += seconds
        elif self.fitting:
            self._viewer_seconds += seconds
        while self._fit_seconds + self._viewer_seconds > MEMORY_SECONDS:
            self._fit_seconds /= 2
            self._viewer_seconds /= 2
