"""Marching through a 128^3 grid, under 10 % occupied, against a scalar walk of the same lattice in C++."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.cuda.marching import march_grid, march_grid_scalar
from polyfield.geometry.occupancy import OccupancyGrid

from ..measure import Row, pair
from ..scenes import generator

RAYS = 16384


def run(device: str) -> Iterator[Row]:
    g = generator()
    grid = OccupancyGrid(128, 1, 1.0)
    grid.update(lambda p: 100.0 * ((p.norm(dim=-1) - 0.6).abs() < 0.04).float(), step=0.01, all_cells=True, generator=g)
    share = float(grid.occupied(torch.rand(200_000, 3, generator=g) * 2 - 1).float().mean())
    origins = torch.nn.functional.normalize(torch.randn(RAYS, 3, generator=g), dim=-1) * 2.5
    directions = torch.nn.functional.normalize((torch.rand(RAYS, 3, generator=g) - 0.5) * 1.2 - origins, dim=-1)
    near, far = torch.zeros(RAYS), torch.full((RAYS,), float("inf"))
    jitter = torch.rand(RAYS, generator=g)
    arguments = (origins, directions, near, far, grid.bits)
    options = {"resolution": 128, "half": 1.0, "step": 2 * 3**0.5 / 1024, "jitter": jitter}
    samples = len(march_grid(*arguments, **options)[0])
    ours, scalar = pair(lambda: march_grid(*arguments, **options), lambda: march_grid_scalar(*arguments, **options))
    what = f"march 128^3 grid, {share:.1%} occupied, {samples / RAYS:.0f} samples per ray"
    yield Row(what, scalar / ours, ours / samples * 1e9, "ns/sample", "scalar walk", "10x, 4 ns")
    yield Row("march, per ray", None, ours / RAYS * 1e9, "ns/ray", "")
