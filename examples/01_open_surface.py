"""Fit an open surface from photographs, mesh it without closing it, and say how far it is from the truth.

    python examples/01_open_surface.py [DATA] [SECONDS]

DATA is a folder with a posed capture whose photographs have alpha, or ``demo_bowl`` or ``demo_cloth``.
"""

import sys
from pathlib import Path

from polyfield.apps.recipes import udf
from polyfield.geometry.mesh_ops import boundary_length, transform
from polyfield.geometry.metrics import compare

import polyfield


def main(data: str = "demo_bowl", seconds: float = 60) -> None:
    folder = Path("runs/open-surface")
    run = polyfield.fit_scene(data, udf.Config(), run=folder, seconds=float(seconds), overwrite=True)
    mesh = polyfield.extract_mesh(run, resolution=192)
    polyfield.save_mesh(mesh, folder / "mesh.glb")
    print(f"{folder}/mesh.glb ({len(mesh.faces)} triangles, boundary {boundary_length(mesh):.2f} long)")
    truth = run.scene().mesh
    if truth is not None:
        scores = compare(mesh, transform(truth, run.asked.facts.matrix))
        print(f"Chamfer distance {100 * scores.chamfer:.2f} % of the diagonal")


if __name__ == "__main__":
    main(*sys.argv[1:])
