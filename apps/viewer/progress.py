"""What the page shows of a fit under way, and its pause button. Called after every step; writes now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .history import History
from .turns import Turns

if TYPE_CHECKING:
    from ..fit import Report

EVERY_SECONDS = 0.4


def clock(seconds: float) -> str:
    """1:05 or 1:01:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class FitProgress:
    """A folder on the page, shared by all windows."""

    def __init__(self, server: Any, turns: Turns) -> None:
        self.turns, self.last = turns, 0.0
        self.step = 0
        self._psnr: float | None = None
        with server.gui.add_folder("Fit", order=-10):
            self._bar = server.gui.add_progress_bar(0.0, animated=True)
            self._text = server.gui.add_markdown("starting ...")
            self._pause = server.gui.add_button("Pause", icon="player-pause", hint="The fit waits; the clock stops")
        self.history = History(server)
        self._pause.on_click(lambda _: self.pause(not turns.paused))

    def pause(self, paused: bool) -> None:
        """Let the fit wait, or go on."""
        self.turns.pause(paused)
        self._pause.label = "Resume" if paused else "Pause"
        self._pause.icon = "player-play" if paused else "player-pause"
        self._bar.animated = not paused

    def __call__(self, report: Report) -> None:
        self.step = report.job.step
        now = time.perf_counter()
        if now - self.last < EVERY_SECONDS and report.spent < 1:
            return
        self.last = now
        from ..fit_reports import batch_psnr

        psnr = batch_psnr(report)
        if psnr is not None:  # as of fits to photographs
            self._psnr = psnr if self._psnr is None else 0.8 * self._psnr + 0.2 * psnr
        self.history.add(report, self._psnr)
        elapsed = report.job.elapsed
        left = elapsed * (1 / max(report.spent, 1e-6) - 1)
        self._bar.value = min(100.0 * report.spent, 100.0)
        self._text.content = f"step **{self.step}**{self._quality()} · {clock(elapsed)} spent, **{clock(left)} left**"

    def finish(self, outcome: str) -> None:
        """Say how it ended."""
        self._bar.value, self._bar.animated = 100.0, False
        self._pause.disabled = True
        self._text.content = f"{outcome} at step **{self.step}**{self._quality()}"

    def _quality(self) -> str:
        return "" if self._psnr is None else f" · PSNR **{self._psnr:.2f} dB**"
