"""Ctrl-C and SIGTERM ask the fit to stop after the step under way; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading


class StopOnInterrupt:
    """A context manager that is callable: whether a stop was asked for."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._before: dict[int, object] = {}

    def __call__(self) -> bool:
        return self._stop.is_set()

    def __enter__(self) -> StopOnInterrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: object) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._stop.set()
