"""The built-in scene, whose truth is known: PSNR after 60 s, and how far its mesh is from the true surface."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from polyfield.datasets.scene import open_scene
from polyfield.geometry.mesh_io import load_mesh
from polyfield.geometry.metrics import chamfer
from polyfield.geometry.transforms import transform_points
from polyfield.geometry.types import Mesh

from ..fitting import polyfield
from ..measure import Row

SECONDS = 60


def run(device: str) -> Iterator[Row]:
    scene = open_scene("demo")
    assert scene.mesh is not None
    truth = Mesh(transform_points(scene.scene_to_world.float(), scene.mesh.vertices), scene.mesh.faces)
    diagonal = float((truth.vertices.amax(0) - truth.vertices.amin(0)).norm())
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        polyfield("fit", "ngp", "demo", "--run", run, "--device", "cpu", "--seconds", str(SECONDS))
        polyfield("evaluate", run)
        metrics = json.loads((Path(run) / "metrics.json").read_text())
        polyfield("extract", run, "--output", str(Path(run) / "mesh.ply"))
        mesh = load_mesh(Path(run) / "mesh.ply")
    name = f"fit ngp demo, {SECONDS} s"
    yield Row(f"{name}: PSNR", None, metrics["psnr"], "dB", f"{len(metrics['views'])} held-out views")
    distance = 100 * chamfer(mesh, truth) / diagonal
    yield Row(f"{name}: Chamfer distance of the mesh", None, distance, "% of the diagonal", "true surface, both ways")
