"""Fit a scene, make a mesh of few triangles, and give it a texture blended from the photographs.

    python examples/03_textured_mesh.py [DATA] [SECONDS]

DATA is a folder with a posed capture, or ``demo``.
"""

import sys
from pathlib import Path

from polyfield.apps.texture_source import TextureSource
from polyfield.apps.texturing import texture_mesh
from polyfield.geometry.textured_mesh import save_textured

import polyfield


def main(data: str = "demo", seconds: float = 60) -> None:
    folder = Path("runs/textured")
    run = polyfield.fit_scene(data, run=folder, seconds=float(seconds), overwrite=True)
    mesh = polyfield.extract_mesh(run, resolution=128, fill_holes=100, smooth=3, target_faces=8000)
    textured = texture_mesh(run, mesh, 1024, TextureSource.PHOTOGRAPHS)
    for name in ("mesh.glb", "mesh.obj"):  # the .obj with .mtl and .png beside it
        files = save_textured(textured, folder / name)
        print(f"{len(mesh.faces)} triangles: {', '.join(map(str, files))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
