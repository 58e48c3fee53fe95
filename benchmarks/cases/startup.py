"""What a newcomer waits for: `import polyfield` beyond torch's own, and `polyfield --help`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from ..measure import Row


def wall(*command: str) -> float:
    """Median of seven runs, seconds."""
    times = []
    for _ in range(8):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def run(device: str) -> Iterator[Row]:
    alone = wall("-c", "import torch")
    names = "import torch, polyfield; polyfield.Camera, polyfield.open_run, polyfield.fit_scene"
    yield Row(
        "import polyfield, beyond torch",
        None,
        wall("-c", "import torch, polyfield") - alone,
        "s",
        "import torch",
        "0.2 s",
    )
    yield Row("import of every public name, beyond torch", None, wall("-c", names) - alone, "s", "import torch")
    yield Row("polyfield --help", None, wall("-m", "polyfield.apps", "--help"), "s", "", "1 s")
