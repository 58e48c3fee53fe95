"""The armadillo (100,000 triangles) as a signed distance: how far its mesh is from the shape after 60 and 180 s."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..fitting import polyfield
from ..measure import Row
from ..scenes import data_root

AIMS = {60: "0.1 %", 180: "0.05 %"}


def run(device: str) -> Iterator[Row]:
    root = data_root()
    if root is None:
        return
    for seconds, aim in AIMS.items():
        with tempfile.TemporaryDirectory() as folder:
            run, shape = str(Path(folder) / "run"), str(root / "meshes" / "armadillo.obj")
            polyfield("fit", "shape", shape, "--run", run, "--device", "cpu", "--seconds", str(seconds))
            polyfield("evaluate", run)
            metrics = json.loads((Path(run) / "metrics.json").read_text())
        name = f"fit shape armadillo, {seconds} s: Chamfer distance"
        yield Row(name, None, metrics["chamfer_percent"], "% of the diagonal", f"{metrics['fit_steps']} steps", aim)
