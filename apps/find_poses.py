"""Poses of photographs that have none, with progress on the terminal: for ``process``, and for ``fit`` before it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..datasets.sfm.reconstruct import SfmOptions, SfmReport, Tell, reconstruct


def find_poses(
    root: Path, options: SfmOptions | None = None, output: Path | None = None, again: bool = False
) -> tuple[Path, SfmReport]:
    """``reconstruct`` with a progress bar, and its report in words."""
    with _progress() as tell:
        folder, report, known = reconstruct(root, options or SfmOptions(), tell, output, again)
    for name, text in report_lines(folder, report, known):
        print(f"{name:<9} {text}")
    return folder, report


def report_lines(folder: Path, report: SfmReport, known: bool) -> Iterator[tuple[str, str]]:
    """Name and text of each line."""
    yield "poses", f"{report.registered} of {report.photographs} photographs registered"
    for camera in report.cameras:
        yield "camera", camera
    yield "points", f"{report.points}, seen by {report.track_length:.1f} photographs under {report.angle:.1f} degrees"
    yield "error", f"{report.error:.2f} px mean reprojection error"
    yield "pairs", f"{report.pairs} of {report.compared} overlap"
    for warning in report.warnings:
        yield "warning", warning
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    yield "time", times + (" (found before; --again finds them anew)" if known else "")
    yield "written", str(folder)


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar for the stage under way; in a file or pipe, a line when a stage begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    quiet = not sys.stdout.isatty()
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"), MofNCompleteColumn())
    bar = Progress(*columns, console=Console(soft_wrap=True), disable=quiet, transient=True)
    task = bar.add_task("starting", total=1)
    current = ""

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal current
        if stage != current and quiet:
            print(f"{stage} ...", flush=True)
        current = stage
        bar.update(task, description=stage, completed=done, total=total)

    with bar:
        yield tell
