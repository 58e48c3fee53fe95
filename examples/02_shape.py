"""Fit a signed distance to a shape, mesh it with its sharp edges, and draw it by sphere tracing.

    python examples/02_shape.py [FILE] [SECONDS]

FILE is a closed mesh (.obj, .ply, .glb, .stl) or points with normals (.ply, .xyz), or ``washer``: a ring with edges.
"""

import sys
from pathlib import Path

import torch
import trimesh
from polyfield.apps.images import save_png
from polyfield.apps.mesh_options import Method
from polyfield.apps.recipes import shape
from polyfield.apps.tracing import drawn, orbit_around
from polyfield.renderers.shading import Lighting

import polyfield


def main(data: str = "washer", seconds: float = 60) -> None:
    folder = Path("runs/shape")
    if data == "washer":
        data = "runs/washer.stl"
        Path(data).parent.mkdir(exist_ok=True)
        trimesh.creation.annulus(r_min=0.5, r_max=1.0, height=0.6).export(data)
    run = polyfield.fit_scene(data, shape.Config(), run=folder, seconds=float(seconds), overwrite=True)
    mesh = polyfield.extract_mesh(run, method=Method.DUAL, resolution=128)
    polyfield.save_mesh(mesh, folder / "mesh.glb")
    shown = drawn(run, lighting=Lighting(shadows=True, occlusion=True))
    camera = orbit_around(torch.tensor(run.asked.facts.up), frames=8, side=600)[1]
    save_png(folder / "traced.png", shown.renderer.render(shown.field, camera).pixels.colors)
    print(f"{folder}/mesh.glb ({len(mesh.faces)} triangles) and {folder}/traced.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
