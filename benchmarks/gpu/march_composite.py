"""Marching 2^16 rays through a 128^3 grid and compositing what they meet, forward, against nerfacc."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.cuda.compositing import composite
from polyfield.cuda.marching import march_grid
from polyfield.geometry.occupancy import OccupancyGrid

from ..measure import Row, absent, gpu_row, gpu_seconds, peer

RAYS, SETS, STEP = 1 << 16, 3, 2 * 3**0.5 / 1024
NAME = f"march + composite, {RAYS} rays"


def _rays(device: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator(device).manual_seed(seed)
    new = dict(generator=g, device=device)
    origins = torch.nn.functional.normalize(torch.randn(RAYS, 3, **new), dim=-1) * 2.5
    return origins, torch.nn.functional.normalize((torch.rand(RAYS, 3, **new) - 0.5) * 1.2 - origins, dim=-1)


def run(device: str) -> Iterator[Row]:
    grid = OccupancyGrid(128, 1, 1.0).to(device)
    shell = lambda p: 100.0 * ((p.norm(dim=-1) - 0.6).abs() < 0.04).float()  # noqa: E731
    grid.update(shell, step=0.01, all_cells=True, generator=torch.Generator(device).manual_seed(0))
    near, far = torch.zeros(RAYS, device=device), torch.full((RAYS,), float("inf"), device=device)
    sets = [_rays(device, seed) for seed in range(SETS)]

    def ours(origins, directions):
        options = dict(resolution=128, half=1.0, step=STEP)
        starts, ends, _, offsets = march_grid(origins, directions, near, far, grid.bits, **options)
        alphas = -torch.expm1(-10.0 * (ends - starts))
        return composite(alphas, [starts[:, None].expand(-1, 3)], offsets)[0]

    samples = len(ours(*sets[0]))
    time = gpu_seconds([lambda s=s: ours(*s) for s in sets])
    moved = samples * (2 * 4 + 4 + 4 + 4 + 12) + RAYS * (8 + 4 + 6) * 4
    name = f"{NAME}, {samples / RAYS:.0f} samples per ray"
    yield gpu_row(name, time, RAYS, "ns/ray", bytes=moved, aim="2x nerfacc")
    if (nerfacc := peer("nerfacc")) is None:
        yield absent(NAME, "nerfacc", "ns/ray")
        return
    estimator = nerfacc.OccGridEstimator([-1.0, -1, -1, 1, 1, 1], resolution=128, levels=1).to(device)
    axis = (torch.arange(128, device=device) + 0.5) / 64 - 1
    centres = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    estimator.binaries = grid.occupied(centres.reshape(-1, 3)).view(1, 128, 128, 128)

    def theirs(origins, directions):
        rays, starts, ends = estimator.sampling(origins, directions, render_step_size=STEP)
        densities = torch.full_like(starts, 10.0)
        weights, _, _ = nerfacc.render_weight_from_density(starts, ends, densities, ray_indices=rays, n_rays=RAYS)
        return nerfacc.accumulate_along_rays(weights, starts[:, None].expand(-1, 3), rays, RAYS)

    other = gpu_seconds([lambda s=s: theirs(*s) for s in sets])
    yield Row(f"{NAME}: nerfacc", other / time, other / RAYS * 1e9, "ns/ray", "ours", "2x")
