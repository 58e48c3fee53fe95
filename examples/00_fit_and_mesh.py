"""Fit the built-in scene, look at one held-out view, and write a coloured mesh.

    python examples/00_fit_and_mesh.py [DATA] [SECONDS]

DATA is a folder with a posed capture (transforms.json), or ``demo``.
"""

import sys
from pathlib import Path

from polyfield.apps.images import save_png

import polyfield


def main(data: str = "demo", seconds: float = 30) -> None:
    folder = Path("runs/example")
    run = polyfield.fit_scene(data, run=folder, seconds=float(seconds), overwrite=True)
    pixels = run.renderer.render(run.field, run.scene().test[0].camera).pixels
    save_png(folder / "view.png", pixels.colors)
    mesh = polyfield.extract_mesh(run, resolution=256)
    polyfield.save_mesh(mesh, folder / "mesh.glb")
    print(f"{folder}/view.png and {folder}/mesh.glb ({len(mesh.faces)} triangles)")


if __name__ == "__main__":
    main(*sys.argv[1:])
