"""Curves on the page of a fit under way: PSNR, the number of Gaussians, and memory, over the time spent fitting."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import numpy as np

from ..fit_reports import peak_memory_bytes

if TYPE_CHECKING:
    from ..fit import Report

POINTS = 400  # of a curve; beyond it, every second one is dropped
BLUE, HEIGHT = "#2f6fde", 150


class History:
    """A folder of curves, drawn anew every second or so; the points of long fits grow sparse, not many."""

    def __init__(self, server: Any) -> None:
        self.rows: list[tuple[float, ...]] = []  # seconds, then one number per curve
        self._every, self._next = 1.0, 0.0
        self._charts: list[Any] = []
        self._gui = server.gui
        self._folder = server.gui.add_folder("History", order=-9, expand_by_default=False)

    def add(self, report: Report, psnr: float | None) -> None:
        """Take a point if it is time: of PSNR, or of the loss where there is none."""
        job = report.job
        if job.elapsed < self._next and report.spent < 1:
            return
        quality = {"loss": sum(report.terms.values())} if psnr is None else {"PSNR, dB": psnr}
        curves = {**quality, "memory, GB": peak_memory_bytes() / 2**30}
        if isinstance(job.field, Sized):
            curves["Gaussians, thousands"] = len(job.field) / 1e3
        self.rows.append((job.elapsed, *curves.values()))
        if len(self.rows) > POINTS:
            self.rows, self._every = self.rows[::2], 2 * self._every
        self._next = self.rows[-1][0] + self._every
        self._draw(list(curves))

    def _draw(self, names: list[str]) -> None:
        if len(self.rows) < 2:
            return
        seconds, *values = (np.asarray(column, dtype=np.float64) for column in zip(*self.rows, strict=True))
        if not self._charts:
            with self._folder:
                self._charts = [
                    self._gui.add_uplot(
                        (seconds, column),
                        ({"label": "s"}, {"label": name, "stroke": BLUE, "width": 2}),
                        title=name,
                        scales={"x": {"time": False}},
                        legend={"show": False},
                        height=HEIGHT,
                    )
                    for name, column in zip(names, values, strict=True)
                ]
            return
        for chart, column in zip(self._charts, values, strict=True):
            chart.data = (seconds, column)
