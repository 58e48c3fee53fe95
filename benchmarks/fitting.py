"""Whole fits through the command line, each in a process of its own: held-out PSNR, SSIM, wall time, peak memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .measure import Row
from .scenes import data_root


def polyfield(*arguments: str) -> str:
    """Output of one command. Raises CalledProcessError, after printing what it said, if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "polyfield.apps", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout


def fit_rows(scene: str, options: tuple[str, ...], aims: dict[int, float], recipe: str = "ngp") -> Iterator[Row]:
    """Fit a research scene for each number of seconds in ``aims``, whose values are the PSNR aimed at."""
    root = data_root()
    if root is None:
        print(f"fit {scene}: the research scenes are not here; name their folder in POLYFIELD_DATA")
        return
    for seconds, aim in aims.items():
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            said = polyfield(
                "fit",
                recipe,
                str(root / scene),
                "--run",
                str(run),
                "--device",
                "cpu",
                "--seconds",
                str(seconds),
                *options,
            )
            polyfield("evaluate", str(run), "--device", "cpu")
            metrics = json.loads((run / "metrics.json").read_text())
        memory = re.search(r"peak memory ([\d.]+) GB", said)
        name = f"fit {recipe} {scene} {metrics['width']}x{metrics['height']} {' '.join(options)}, {seconds} s"
        yield Row(f"{name}: PSNR", None, metrics["psnr"], "dB", f"{len(metrics['views'])} held-out views", f"{aim} dB")
        yield Row(f"{name}: SSIM", None, metrics["ssim"], "", "")
        yield Row(f"{name}: wall time", None, metrics["fit_seconds"], "s", f"{metrics['fit_steps']} steps")
        if memory:
            yield Row(f"{name}: peak memory", None, float(memory[1]), "GB", "", "2 GB")
