"""Dual contouring of a hash-grid distance and of a solid with edges, against marching cubes on the same blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.signed_distance import SignedDistanceConfig
from polyfield.geometry import Aabb
from polyfield.geometry.dual_contouring import dual_contour
from polyfield.geometry.isosurface import isosurface

from ..measure import Row, pair

RESOLUTION = 256


def run(device: str) -> Iterator[Row]:
    grid = HashGridConfig(levels=8, features=4, log2_size=17)
    field = SignedDistanceConfig(grid=grid, color=None).build(Aabb.cube())  # a sphere, as it begins
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"hash grid": field.distance, "cube": cube}
    for name, function in functions.items():
        triangles = len(dual_contour(function, None, Aabb.cube(), RESOLUTION).faces)
        ours, theirs = pair(
            lambda f=function: dual_contour(f, None, Aabb.cube(), RESOLUTION),
            lambda f=function: isosurface(f, Aabb.cube(), RESOLUTION),
            budget=4.0,
            least=3,
            warmup=1,
        )
        label = f"dual contouring {RESOLUTION}^3, {name}, {triangles / 1e3:.0f}k triangles"
        yield Row(label, theirs / ours, ours * 1e3, "ms", "marching cubes, same blocks")


def cube(points: torch.Tensor) -> torch.Tensor:
    """Distances to a cube of edge 1.2, exact outside its edges too."""
    away = points.abs() - 0.6
    return away.clamp(min=0).norm(dim=-1) + away.amax(-1).clamp(max=0)
