"""What a newcomer waits for: `import polyfield` beyond torch's own, and `polyfield --help`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from ..measure import Row


def walls(*commands: tuple[str, ...]) -> list[float]:
    """Medians of seven runs of each, in turn, seconds; the first round is not counted."""
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(8):
        for command, found in zip(commands, times, strict=True):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            found.append(time.perf_counter() - start)
    return [statistics.median(found[1:]) for found in times]


def run(device: str) -> Iterator[Row]:
    names = "import torch, polyfield; polyfield.Camera, polyfield.open_run, polyfield.fit_scene"
    alone, package, public, usage = walls(
        ("-c", "import torch"), ("-c", "import torch, polyfield"), ("-c", names), ("-m", "polyfield.apps", "--help")
    )
    yield Row("import polyfield, beyond torch", None, package - alone, "s", "import torch", "0.2 s")
    yield Row("import of every public name, beyond torch", None, public - alone, "s", "import torch")
    yield Row("polyfield --help", None, usage, "s", "", "1 s")
