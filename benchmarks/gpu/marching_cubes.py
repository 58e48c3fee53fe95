"""Marching cubes on a dense 512^3 grid with about 5 million triangles. Its sizes are waited for twice."""

from __future__ import annotations

from collections.abc import Iterator

from polyfield.cuda.marching_cubes import marching_cubes

from ..cases.marching_cubes import gyroid
from ..measure import Row, gpu_row, gpu_seconds


def run(device: str) -> Iterator[Row]:
    values = gyroid(512, 2.0).to(device)
    vertices, faces = marching_cubes(values, 0.0)
    time = gpu_seconds([lambda: marching_cubes(values, 0.0)])
    moved = values.nbytes + vertices.nbytes + faces.nbytes
    name = f"marching cubes 512^3, {len(faces) / 1e6:.1f}M triangles"
    yield gpu_row(name, time, values.numel(), "ns/cell", bytes=moved)
