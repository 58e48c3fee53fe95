"""300 photographs of 4,000 x 3,000: how long starts take, and memory while fitting at a quarter of the size.

The demo scene before a backdrop, drawn small, enlarged, with noise. A start is `fit --steps 1`, from the command to its
end: decoding the first time, from the cache the second.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops
from polyfield.datasets import demo, images
from polyfield.geometry import Camera
from polyfield.geometry.transforms import opengl_to_opencv
from torch import Tensor

from ..fitting import polyfield
from ..measure import Row

COUNT, SIZE, DOWNSCALE, SMALLER = 300, (4000, 3000), 4, 20
FOV, NOISE, SECONDS = 0.9, 32, 60


def run(device: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        begin = time.perf_counter()
        write_photos(root)
        made = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in root.glob("*.jpg")) / 1e9
        what = f"{COUNT} JPEGs of {SIZE[0]}x{SIZE[1]}, --downscale {DOWNSCALE}"
        fit = (str(root), "--downscale", str(DOWNSCALE), "--device", "cpu")
        for which, aim in (("first", 10), ("second", 5)):
            begin = time.perf_counter()
            polyfield("fit", "ngp", *fit, "--steps", "1", "--run", f"{folder}/{which}")
            took = time.perf_counter() - begin
            yield Row(f"{what}: {which} start", None, took, "s", f"{size:.1f} GB, made in {made:.0f} s", f"{aim} s")
        kept = sum(path.stat().st_size for path in root.glob(".polyfield/*")) / 1e9
        for recipe in ("ngp", "splat"):
            said = polyfield("fit", recipe, *fit, "--seconds", str(SECONDS), "--run", f"{folder}/{recipe}")
            peak = re.search(r"peak memory ([\d.]+) GB", said)
            cache = f"{kept:.2f} GB of it the cache's pages, which the system may take back"
            yield Row(f"{what}: peak memory, fit {recipe}", None, float(peak[1]) if peak else None, "GB", cache, "3 GB")


def write_photos(root: Path) -> None:
    """A folder with ``transforms.json``."""
    root.mkdir(parents=True)
    poses = demo.view_poses(COUNT)
    noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, (SIZE[1], SIZE[0]))
    grain = Image.fromarray((128 + noise).astype(np.uint8))
    parts = demo.parts()

    def write(i: int) -> None:
        camera = Camera.perspective(SIZE[0] // SMALLER, SIZE[1] // SMALLER, FOV, poses[i])
        picture = Image.fromarray(draw(parts, camera)).resize(SIZE, Image.Resampling.BICUBIC)
        shifted = [ImageChops.offset(grain, 997 * i + 131 * c, 613 * i + 37 * c) for c in range(3)]
        grainy = ImageChops.add(picture, Image.merge("RGB", shifted), 1, -128)
        grainy.save(root / f"{i:03d}.jpg", quality=85)

    images.in_threads(write, range(COUNT))
    frames = [{"file_path": f"{i:03d}.jpg", "transform_matrix": opengl_to_opencv(poses[i]).tolist()}
              for i in range(COUNT)]  # fmt: skip
    (root / "transforms.json").write_text(json.dumps({"camera_angle_x": FOV, "frames": frames}))


def draw(parts: list[demo.Part], camera: Camera) -> np.ndarray:
    """(H, W, 3) uint8: the scene before a backdrop that depends on the direction alone."""
    colors, alphas, _, _ = demo.render_view(parts, camera)
    waves = 4 * camera.rays().directions.view(camera.height, camera.width, 3)
    backdrop = 128 + 80 * waves.sin() * waves.roll(1, -1).cos()
    share: Tensor = alphas[..., None].float() / 255
    return (colors * share + backdrop * (1 - share)).round().to(torch.uint8).numpy()
