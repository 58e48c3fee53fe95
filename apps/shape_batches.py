"""Points around a shape, with exact distances: what a step of a fit to a shape is made of.

Exact distances cost microseconds each, a fit's step uses tens of thousands: so points are kept in a pool, from which
steps draw, and which grows while the fit goes on until the oldest are replaced. A part of the pool is drawn from
generators seeded by its number: equal seeds give equal parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.types import Pixels, Points
from .devices import CPU


@dataclass(frozen=True)
class SamplesConfig:
    """Where a shape is looked at."""

    batch: int | None = None
    """Points per step; None = 2^14 on a CPU, 2^18 on a GPU."""
    on: float = 0.3
    """Share of the points that lie on the surface."""
    near: float = 0.5
    """Share of them that lie near it; the others lie anywhere."""
    spreads: tuple[float, ...] = (0.003, 0.02, 0.2)
    """How far from it points near it are, in scene units: a third of them by each."""
    first: int = 1 << 17
    """Points with which a fit begins."""
    most: int = 1 << 20
    """Points that are kept; more replace the oldest."""
    part: int = 1 << 13
    """Points made at once."""
    every: int = 32
    """Steps between parts."""


Truth = Callable[[Tensor], Points]  # positions (N, 3) -> with distances and normals
Surface = Callable[[int, torch.Generator], Points]  # so many points of the surface itself, normals known


class ShapeBatches:
    """Draws points of the pool, on ``device``."""

    def __init__(
        self,
        surface: Surface,
        truth: Truth,
        config: SamplesConfig,
        *,
        seed: int = 0,
        device: torch.device = CPU,
    ) -> None:
        self.surface, self.truth, self.config, self.seed, self.device = surface, truth, config, seed, device
        self.batch = config.batch or 1 << (14 if device.type == "cpu" else 18)
        self.storage = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.made = self.drawn = 0  # parts, steps
        self.pool = torch.zeros(0, 7, device=device)  # position, distance, normal

    def draw(self) -> tuple[Points, Pixels, None]:
        """So many points of the pool, any of them more than once."""
        c = self.config
        while self.made * c.part < c.first:
            self._make()
        if self.drawn and self.drawn % c.every == 0:
            self._make()
        self.drawn += 1
        index = torch.randint(len(self.pool), (self.batch,), generator=self.generator, device=self.device)
        rows = self.pool.index_select(0, index)
        return Points(rows[:, :3].contiguous(), rows[:, 3], rows[:, 4:]), Pixels(), None

    def _make(self) -> None:
        """Another part: added, or in the place of the oldest."""
        c = self.config
        generator = torch.Generator(CPU).manual_seed(self.seed * 1_000_003 + self.made)
        rows = self._rows(generator).to(self.device)
        parts = max(1, c.most // c.part)
        if self.made < parts:
            self.pool = torch.cat([self.pool, rows])
        else:
            slot = self.made % parts
            self.pool[slot * c.part : (slot + 1) * c.part] = rows
        self.made += 1

    def _rows(self, generator: torch.Generator) -> Tensor:
        c = self.config
        on, near = round(c.part * c.on), round(c.part * c.near)
        surface = self.surface(on + near, generator)
        spread = torch.tensor(c.spreads, device=CPU)
        spread = spread[torch.randint(len(spread), (near,), generator=generator, device=CPU)]
        around = surface.positions[on:] + spread[:, None] * torch.randn(near, 3, generator=generator, device=CPU)
        anywhere = 2 * torch.rand(max(0, c.part - on - near), 3, generator=generator, device=CPU) - 1
        known = self.truth(torch.cat([around.clamp(-1, 1), anywhere]))
        return torch.cat([_row(surface[:on]), _row(known)])

    def state_dict(self) -> dict[str, Tensor]:
        """The pool, and how far it is."""
        return {"pool": self.pool, "counts": torch.tensor([self.made, self.drawn], device=CPU)}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.pool = state_dict["pool"].to(self.device)
        self.made, self.drawn = (int(n) for n in state_dict["counts"])


def _row(points: Points) -> Tensor:
    assert points.distances is not None and points.normals is not None
    return torch.cat([points.positions, points.distances[:, None], points.normals], 1)
