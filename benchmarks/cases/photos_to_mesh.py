"""Sceaux (11 photographs of 1600 x 1202, no poses) to a splat scene and a mesh: time of each step, and how good."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..fitting import polyfield
from ..measure import Row
from ..scenes import data_root

FIT_SECONDS, DOWNSCALE = 200, 2


def run(device: str) -> Iterator[Row]:
    root = data_root()
    if root is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        photos, run = Path(folder) / "photos", Path(folder) / "run"
        photos.mkdir()
        for photo in (root / "sceaux_sfm" / "images").iterdir():
            shutil.copyfile(photo, photos / photo.name)
        start = time.perf_counter()
        fit = ("--seconds", str(FIT_SECONDS), "--downscale", str(DOWNSCALE), "--exposure", "gain", "--device", "cpu")
        polyfield("fit", "splat", str(photos), "--run", str(run), *fit)
        polyfield("extract", str(run), "--output", str(run / "mesh.glb"))
        total = time.perf_counter() - start
        report = json.loads((photos / "polyfield" / "report.json").read_text())["report"]
        polyfield("evaluate", str(run))
        metrics = json.loads((run / "metrics.json").read_text())
        polyfield("evaluate", str(run), "--half-fit")
        half_fit = json.loads((run / "metrics.json").read_text())
    found = f"{report['points']} points, {report['error']:.2f} px"
    yield Row("sceaux: photographs registered", None, report["registered"], f"of {report['photographs']}", found, "11")
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["seconds"].items())
    yield Row("sceaux: photographs to poses, splats and a mesh", None, total, "s", stages, "480 s")
    size = f"{metrics['width']}x{metrics['height']}, {len(metrics['views'])} views"
    yield Row(f"fit splat sceaux, {FIT_SECONDS} s", None, metrics["psnr"], "dB", size, "22 dB")
    name = f"fit splat sceaux, {FIT_SECONDS} s, exposures fitted to left halves, right halves measured"
    yield Row(name, None, half_fit["psnr"], "dB", size, "22 dB")
