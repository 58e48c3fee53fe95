"""Where a fit of a distance begins: at the surfaces that a quick hash-grid fit shows, rather than at a sphere.

A radiance field finds a scene's surfaces within seconds; a signed distance alone needs thousands of steps to carve them
out of a sphere. So: fit the hash grid, look at it from the training views, take away the space that views look through
(space carving, Kutulakos and Seitz 2000), and teach the field the distance to what is left. Views vote: one depth that
is wrong shall not cut a wire, nor shall a wire's neighbourhood, in which no ray ends, stay solid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..datasets.scene import Scene
from ..fields.grid_distance import GridDistance
from ..fields.optimizer import Adam
from ..geometry.cameras import Camera
from ..geometry.types import Aabb, Pixels, Points
from ..renderers.losses.eikonal import eikonal
from ..renderers.robust import NOTHING_MOVES, RobustConfig
from .devices import CPU
from .fit import Budget, Job
from .quick_fit import quick_fit

MARGIN = 1.0  # by how much less than its depth a view looks through space: per cells along the cube
STAYS = 2  # views that look through a cell, for each in which one of its rays ends there, that leave it solid
CHUNK = 1 << 18  # points at a time


@dataclass(frozen=True)
class FirstDistance:
    """How a fit of a distance begins."""

    grid_share: float = 0.15
    """Of the budget, what the hash-grid fit takes; 0 = begin as a sphere."""
    grid_seconds: float = 40.0
    """The most that it takes, where the budget is in seconds."""
    grid_steps: int = 1000
    """The most that it takes, where the budget is in steps."""
    resolution: int = 160
    """Cells along the cube that is carved."""
    views: int = 60
    """Training views that carve, at most."""
    view_size: int = 320
    """Longest side of these, pixels."""
    steps: int = 250
    """Of teaching the field."""
    points: int = 16384
    """Points per step of teaching."""

    def teach(
        self, model: GridDistance, scene: Scene, seed: int, budget: Budget, robust: RobustConfig = NOTHING_MOVES
    ) -> Points | None:
        """Fit a hash grid for its share of the budget, and teach ``model`` its surfaces, which nothing holds then."""
        part = budget.part(self.grid_share, self.grid_seconds, self.grid_steps)
        job = quick_fit(scene, seed, model.bounds_low.device, part, robust)
        distances = solid_distances(self._carve(job, scene))
        if distances is not None:
            self._learn(model, distances.to(model.bounds_low.device), seed)
        return None

    @torch.no_grad()
    def _carve(self, job: Job, scene: Scene) -> Tensor:
        """(R, R, R) bool by z, y, x: cells of [-1, 1]^3 that some view has in its picture, solid by vote."""
        count = min(self.views, len(scene.train))
        points = lattice(Aabb.cube(1.0), self.resolution)
        seen, votes = torch.zeros(len(points), dtype=torch.bool), torch.zeros(len(points), dtype=torch.int16)
        for frame in (scene.train[i * len(scene.train) // count] for i in range(count)):
            camera = frame.camera.downscaled(max(1.0, max(frame.camera.width, frame.camera.height) / self.view_size))
            pixels = job.renderer.render(job.field, camera).pixels.to(CPU)
            inside, empty = looked_at(camera.to(CPU), pixels, points, MARGIN / self.resolution)
            seen |= inside
            votes -= empty.short()
            votes[cells_met(camera.to(CPU), pixels, self.resolution)] += STAYS
        return (seen & (votes >= 0)).view(self.resolution, self.resolution, self.resolution)

    def _learn(self, model: GridDistance, distances: Tensor, seed: int) -> None:
        """Steps on random points of the cube, half of them near the surface."""
        device = distances.device
        random = torch.Generator(device).manual_seed(seed)
        groups = [model.encoding.group(), {"params": list(model.network.parameters())}]
        optimizer = Adam(groups, lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
        near = lattice(Aabb.cube(1.0), self.resolution).to(device)[distances.abs().flatten() < 0.06]
        cell = 2 / self.resolution
        for step in range(self.steps):
            chosen = torch.randint(len(near), (self.points // 2,), generator=random, device=device)
            around = near[chosen] + cell * (torch.rand(len(chosen), 3, generator=random, device=device) - 0.5)
            points = torch.cat([around, 2 * torch.rand(self.points // 2, 3, generator=random, device=device) - 1])
            wanted = functional.grid_sample(
                distances[None, None], points.view(1, -1, 1, 1, 3), padding_mode="border", align_corners=False
            ).flatten()
            output = model.query(points, gradients=True)
            assert output.gradients is not None
            loss = (output.values - wanted).abs().mean() + 0.02 * eikonal(output.gradients)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * 0.05 ** (step / self.steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def lattice(bounds: Aabb, resolution: int) -> Tensor:
    """(R^3, 3) centres of the cells of ``bounds``, x fastest."""
    axis = (torch.arange(resolution) + 0.5) / resolution
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return bounds.low + bounds.extent * torch.stack([x, y, z], -1).reshape(-1, 3)


def depths_of(pixels: Pixels) -> Tensor:
    """(H, W) along the rays; infinite where less than half of the light ends."""
    assert pixels.depths is not None and pixels.alphas is not None
    return torch.where(pixels.alphas > 0.5, pixels.depths, torch.inf)


def looked_at(camera: Camera, pixels: Pixels, points: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Which of points (N, 3) the view has in its picture, and which it looks through, a margin before its depth."""
    depths, inside, empty = depths_of(pixels), [], []
    for part in points.split(CHUNK):
        places, z = camera.project(part)
        column, row = places.nan_to_num(-1.0).floor().long().unbind(-1)
        shown = (z > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
        depth = depths[row.clamp(0, camera.height - 1), column.clamp(0, camera.width - 1)]
        distance = (part - camera.position.to(part)).norm(dim=-1)
        inside.append(shown)
        empty.append(shown & (distance < depth - margin))
    return torch.cat(inside), torch.cat(empty)


def cells_met(camera: Camera, pixels: Pixels, resolution: int) -> Tensor:
    """(N,) numbers of the cells of [-1, 1]^3 in which rays of the view end, each once; x fastest."""
    depths, rays = depths_of(pixels).flatten(), camera.rays()
    met = depths.isfinite()
    cells = ((rays.at(depths)[met] + 1) / 2 * resolution).floor().long()
    x, y, z = cells[((cells >= 0) & (cells < resolution)).all(-1)].unbind(-1)
    return ((z * resolution + y) * resolution + x).unique()


def solid_distances(solid: Tensor) -> Tensor | None:
    """(R, R, R) signed distances of the cells of [-1, 1]^3 to where solid and empty meet; None if all are one."""
    from scipy.ndimage import distance_transform_edt

    if not bool(solid.any()) or bool(solid.all()):
        return None
    mask, cell = solid.numpy(), 2 / solid.shape[0]
    signed = distance_transform_edt(~mask) - distance_transform_edt(mask)
    return torch.from_numpy(np.where(signed > 0, signed - 0.5, signed + 0.5).astype(np.float32)) * cell
