"""Signed distances fitted to photographs, whole commands: a rose whose surface is known by points, DTU's skull by its
photographs alone, and an open bowl, which a signed distance closes and an unsigned one does not."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyfield.geometry.hole_filling import boundary_loops
from polyfield.geometry.mesh_io import load_mesh
from polyfield.geometry.mesh_ops import largest_components
from polyfield.geometry.types import Mesh

from ..fitting import demo_surface, polyfield
from ..measure import Row
from ..scenes import data_root

SECONDS, RESOLUTION = 600, 384


def measured(scene: str, options: tuple[str, ...], truth: Path | None = None) -> tuple[dict[str, Any], Mesh]:
    """metrics.json of a fit, and its mesh."""
    root = data_root()
    assert root is not None
    with tempfile.TemporaryDirectory() as folder:
        run, mesh = str(Path(folder) / "run"), Path(folder) / "run" / "mesh.ply"
        limit = ("--seconds", str(SECONDS), "--preview-every", "0", "--device", "cpu")
        polyfield("fit", "neus", str(root / scene), "--run", run, *limit, *options)
        polyfield("extract", run, "--output", str(mesh), "--resolution", str(RESOLUTION), "--components", "0")
        polyfield("evaluate", run, *(() if truth is None else ("--mesh", str(truth))))
        return json.loads((Path(run) / "metrics.json").read_text()), load_mesh(mesh)


def rows(name: str, metrics: dict[str, Any], mesh: Mesh, psnr: str = "") -> Iterator[Row]:
    """Pictures, and whether the mesh is one piece without holes."""
    yield Row(f"{name}: PSNR", None, metrics["psnr"], "dB", f"{len(metrics['views'])} held-out views", psnr)
    share = len(largest_components(mesh).faces) / len(mesh.faces)
    yield Row(f"{name}: triangles in the largest piece", None, 100 * share, "%", f"{len(mesh.faces)} in all")
    yield Row(f"{name}: holes", None, len(boundary_loops(mesh.faces)), "", "loops of open edges")


def run(device: str) -> Iterator[Row]:
    root = data_root()
    if root is not None:
        name = f"fit neus rose_gt, {SECONDS} s"
        metrics, mesh = measured("rose_gt", (), root / "rose_gt" / "gt_points.ply")
        found = metrics["mesh"]
        yield Row(f"{name}: F-score at 1 %", None, found["f_score_1_percent"], "", "points of the surface", "0.8")
        yield Row(f"{name}: Chamfer distance", None, found["chamfer_percent"], "% of the diagonal", "")
        yield from rows(name, metrics, mesh)
        # over black, as NeuS does it: the masks' rims show a pixel of the dark table
        metrics, mesh = measured("dtu_scan65", ("--masks", "alpha", "--background", "black"))
        yield from rows(f"fit neus dtu_scan65, {SECONDS} s", metrics, mesh, "28 dB")
    for recipe in ("udf", "neus"):
        metrics = demo_surface(recipe, {"seconds": SECONDS // 2}, resolution=256, scene="demo_bowl")
        name, found = f"fit {recipe} demo_bowl, {SECONDS // 2} s", metrics["mesh"]
        yield Row(f"{name}: PSNR", None, metrics["psnr"], "dB", "")
        yield Row(f"{name}: Chamfer distance", None, found["chamfer_percent"], "% of the diagonal", "true surface")
