"""What a textured mesh keeps of a field: PSNR of both at the demo's held-out views, and what making it costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from polyfield.apps.commands.extract import extract_mesh
from polyfield.apps.images import photograph
from polyfield.apps.run import open_run
from polyfield.apps.texture_source import TextureSource
from polyfield.apps.texturing import texture_mesh
from polyfield.geometry import Camera
from polyfield.geometry.raster import see_mesh
from polyfield.geometry.textured_mesh import TexturedMesh
from polyfield.geometry.transforms import similarity_inverse, transform_points
from polyfield.renderers.metrics import psnr
from torch import Tensor

from ..fitting import polyfield
from ..measure import Row

SECONDS = 60
RECIPES = ("ngp", "neus")
TEXELS, FACES, RESOLUTION = 2048, 60_000, 256
FINER = 3  # samples of the mesh along each side of a pixel


def draw(textured: TexturedMesh, camera: Camera, background: Tensor) -> Tensor:
    """(H, W, 3): the texture as it is, unlit; FINER x FINER samples per pixel."""
    seen = see_mesh(textured.mesh, camera.resized(camera.width * FINER, camera.height * FINER))
    picture = background.expand(*seen.faces.shape, 3).clone()
    solid = seen.faces >= 0
    picture[solid] = textured.colors_at(seen.faces[solid], seen.weights[solid])
    return picture.view(camera.height, FINER, camera.width, FINER, 3).mean((1, 3))


def measured(run: Any, recipe: str) -> Iterator[Row]:
    """Rows of one finished run."""
    frames = run.scene().test
    name = f"{recipe} demo, {SECONDS} s"
    own = [psnr(run.renderer.render(run.field, f.camera).pixels.colors, photograph(f, run.renderer)) for f in frames]
    yield Row(f"{name}: PSNR of the field", None, sum(own) / len(own), "dB", f"{len(frames)} held-out views")
    mesh = extract_mesh(run, resolution=RESOLUTION, components=0, target_faces=FACES)
    to_scene = similarity_inverse(run.asked.facts.matrix.double()).float()
    for source in TextureSource:
        start = time.perf_counter()
        textured = texture_mesh(run, mesh, TEXELS, source)
        seconds = time.perf_counter() - start
        textured = replace(textured, vertices=transform_points(to_scene, textured.vertices))
        pictures = [draw(textured, frame.camera, run.renderer.backdrop) for frame in frames]
        scores = [psnr(p, photograph(f, run.renderer)) for p, f in zip(pictures, frames, strict=True)]
        label = f"{name}: mesh of {len(mesh.faces)} triangles, {TEXELS}^2 texels from the {source.value}"
        aim = f"{sum(own) / len(own) - 2.5:.1f} dB"
        yield Row(f"{label}: PSNR", None, sum(scores) / len(scores), "dB", "the field's less 2.5 dB", aim)
        yield Row(f"{label}: layout and baking", None, seconds, "s", "")


def run(device: str) -> Iterator[Row]:
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "run")
            polyfield("fit", recipe, "demo", "--run", path, "--device", "cpu", "--seconds", str(SECONDS))
            with torch.no_grad():
                yield from measured(open_run(path, "cpu"), recipe)
