"""Where something may be: a grid of occupied cells in nested cubes, kept up to date while a field is fitted.

Cascade c covers [-half 2^c, half 2^c]^3 with resolution^3 cells. A cell holds a running maximum of the density met in
it, d <- max(decay d, density(x)) at random x, and is occupied while an interval of length ``step`` there would have at
least the opacity ``threshold`` (Müller et al., "Instant Neural Graphics Primitives", 2022, appendix C).

Few cells are visited at a time, and a cell fades only when it is visited, so that thin things are not forgotten in
between. Cells that no camera sees are -1 for good: nothing would ever empty them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..cuda.marching import march_grid
from ..cuda.occupancy import (
    brick_states,
    cell_points,
    locate_cells,
    mean_density,
    occupied_cells,
    pack_bits,
    pack_densities,
    raise_densities,
)
from .types import Rays, Samples

CHUNK = 1 << 18  # points at a time


class OccupancyGrid(nn.Module):
    """Which cells of nested cubes a ray has to look at. Everything is occupied at first.

    Args:
        resolution: cells along an edge: a multiple of 4; of 16 with several cascades.
        cascades: number of cubes, each of twice the size of the one before.
        half: half the edge of the innermost.
    """

    densities: Tensor  # (cascades, resolution^3) float32, z fastest; -1 = never occupied
    bits: Tensor  # (cascades, (resolution / 4)^3) int64, one word per brick: see cuda.occupancy

    def __init__(self, resolution: int = 128, cascades: int = 1, half: float = 1.0) -> None:
        super().__init__()
        unit = 4 if cascades == 1 else 16
        if resolution % unit or not unit <= resolution <= 1024:
            raise ValueError(
                f"OccupancyGrid: resolution: expected a multiple of {unit} up to 1024 with {cascades} cascades, "
                f"got {resolution}"
            )
        if not 1 <= cascades <= 16 or cascades * resolution**3 >= 2**31:
            raise ValueError(f"OccupancyGrid: cascades: expected 1 to 16 and fewer than 2^31 cells, got {cascades}")
        if not (half > 0 and math.isfinite(half)):
            raise ValueError(f"OccupancyGrid: half: expected a positive number, got {half}")
        self.resolution, self.cascades, self.half_extent = resolution, cascades, float(half)
        self.register_buffer("densities", torch.zeros(cascades, resolution**3))
        self.register_buffer("bits", torch.full((cascades, (resolution // 4) ** 3), -1, dtype=torch.int64))
        self._states: Tensor | None = None  # of bits
        self._seen: Tensor | None = None  # cells that are not -1

    def __repr__(self) -> str:
        return f"OccupancyGrid(resolution={self.resolution}, cascades={self.cascades}, half={self.half_extent})"

    @property
    def share(self) -> float:
        """Part of all cells that are occupied."""
        return len(occupied_cells(self.bits, self.resolution)) / self.densities.numel()

    @property
    def states(self) -> Tensor:
        """``cuda.occupancy.brick_states`` of the bits: what marching jumps by."""
        if self._states is None:
            self._states = brick_states(self.bits, self.resolution)
        return self._states

    def march(
        self,
        rays: Rays,
        *,
        step: float,
        cone_angle: float = 0.0,
        jitter: Tensor | None = None,
        max_samples: int = 0,
    ) -> Samples:
        """The intervals of rays that lie in occupied cells; see ``cuda.marching.march_grid``."""
        packed = march_grid(
            rays.origins,
            rays.directions,
            rays.near,
            rays.far,
            self.bits,
            resolution=self.resolution,
            half=self.half_extent,
            step=step,
            cone_angle=cone_angle,
            jitter=jitter,
            max_samples=max_samples,
            states=self.states,
        )
        return Samples(*packed)

    def _locate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """points (N, 3) -> number of the brick (N,) in the finest cascade around the point; bit (N,) of its word."""
        cell = self._cells(points).long()
        n, bricks = self.resolution, self.resolution // 4
        x, y, z = cell // (n * n), cell // n % n, cell % n  # x counts through the cascades
        return (x // 4 * bricks + y // 4) * bricks + z // 4, x % 4 * 16 + y % 4 * 4 + z % 4

    def _cells(self, points: Tensor) -> Tensor:
        return locate_cells(points, self.resolution, self.cascades, self.half_extent)

    def occupied(self, points: Tensor) -> Tensor:
        """points (N, 3) -> (N,) bool: whether the finest cascade that contains a point is occupied there."""
        brick, bit = self._locate(points)
        inside = points.abs().amax(-1) / self.half_extent <= 2.0 ** (self.cascades - 1)
        return ((self.bits.view(-1)[brick] >> bit) & 1).bool() & inside

    @torch.no_grad()
    def mark_unseen(self, sees: Callable[[Tensor], Tensor], *, cameras: int = 1) -> None:
        """Empty, for good, the cells that fewer than ``cameras`` cameras see.

        ``sees`` takes points (N, 3) and returns, as (N,) integers, how many cameras see each. Bricks are asked first,
        at their corners and centre, then the cells of bricks that are neither seen nor unseen as a whole or have such a
        neighbour; a cell beside a seen one counts as seen.
        """
        for cascade in range(self.cascades):
            seen = self._seen_cells(sees, cameras, self.half_extent * 2**cascade)
            densities = self.densities[cascade]
            densities[~seen] = -1
            densities[seen & (densities < 0)] = 0
        keep = pack_bits(self.densities >= 0, self.resolution)
        self._changed(self.bits & keep)
        self._seen = None

    def _seen_cells(self, sees: Callable[[Tensor], Tensor], cameras: int, half: float) -> Tensor:
        def ask(points: Tensor) -> Tensor:
            parts = [sees(p) >= cameras for p in points.split(CHUNK)]
            return torch.cat(parts) if parts else points.new_zeros(0, dtype=torch.bool)

        n, bricks, device = self.resolution, self.resolution // 4, self.densities.device
        corners = _lattice(torch.linspace(-half, half, bricks + 1, device=device))
        centres = _lattice((torch.arange(bricks, device=device) + 0.5) * (2 * half / bricks) - half)
        corner = ask(corners).view(1, 1, *[bricks + 1] * 3).float()
        centre = ask(centres).view(1, 1, *[bricks] * 3).float()
        some = torch.maximum(nn.functional.max_pool3d(corner, 2, 1), centre)
        every = torch.minimum(-nn.functional.max_pool3d(-corner, 2, 1), centre)
        near = nn.functional.max_pool3d(some, 3, 1, 1)  # beside a seen brick
        doubt = ((near > 0) & (every == 0))[0, 0].nonzero()  # (M, 3) bricks
        seen = (every > 0).float()
        for axis in (2, 3, 4):
            seen = seen.repeat_interleave(4, axis)
        cells = (doubt[:, None] * 4 + _lattice(torch.arange(4, device=device))[None]).reshape(-1, 3)
        points = (cells + 0.5) * (2 * half / n) - half
        seen[0, 0, cells[:, 0], cells[:, 1], cells[:, 2]] = ask(points).float()
        return (nn.functional.max_pool3d(seen, 3, 1, 1) > 0).view(-1)

    @torch.no_grad()
    def update(
        self,
        density: Callable[[Tensor], Tensor],
        *,
        step: float,
        threshold: float = 0.01,
        decay: float = 0.95,
        all_cells: bool = False,
        part: float = 1 / 16,
        generator: torch.Generator | None = None,
    ) -> None:
        """Look at some cells again and find out which are occupied.

        Args:
            density: points (N, 3) -> (N,) densities per unit length.
            step: length of a marching interval.
            threshold: opacity of such an interval from which on a cell is occupied; less while the mean density is
                lower, so that a field that is thin everywhere does not vanish.
            decay: what a visited cell keeps of its maximum.
            all_cells: visit each cell once, as while warming up, instead of a part of them.
            part: of all cells to visit otherwise: half of them anywhere, half among the occupied ones.
            generator: of the random cells and places, on the grid's device.
        """
        if not 0 < threshold < 1:
            raise ValueError(f"OccupancyGrid.update: threshold: expected an opacity between 0 and 1, got {threshold}")
        if not step > 0:
            raise ValueError(f"OccupancyGrid.update: step: expected a positive length, got {step}")
        cells = self._seen_list() if all_cells else self._some_cells(part, generator)
        for chunk in cells.split(CHUNK):
            offsets = torch.rand(len(chunk), 3, generator=generator, device=chunk.device)
            points = cell_points(chunk, offsets, self.resolution, self.half_extent)
            values = density(points).reshape(-1).float()
            if len(values) != len(chunk):
                raise ValueError(
                    f"OccupancyGrid.update: density: expected ({len(chunk)},) values, got {len(values)}; "
                    "return one per point"
                )
            raise_densities(self.densities, chunk, torch.nan_to_num(values), decay)
        least = min(-math.log1p(-threshold) / step, 0.5 * mean_density(self.densities))
        self._changed(pack_densities(self.densities, max(least, 1e-30), self.resolution))

    @torch.no_grad()
    def observe(self, points: Tensor, densities: Tensor, *, decay: float = 0.95) -> None:
        """Take note of densities (N,) that were met at points (N, 3), as marching does at every step.

        They cost nothing and lie where it counts: a cell that rays keep crossing without meeting anything fades with
        every crossing. ``bits`` change with the next ``update``.
        """
        raise_densities(self.densities, self._cells(points), torch.nan_to_num(densities), decay)

    def _seen_list(self) -> Tensor:
        if self._seen is None:
            self._seen = occupied_cells(pack_bits(self.densities >= 0, self.resolution), self.resolution)
        return self._seen

    def _some_cells(self, part: float, generator: torch.Generator | None) -> Tensor:
        count = max(1, int(self.densities.numel() * part / 2))
        lists = [self._seen_list(), occupied_cells(self.bits, self.resolution)]
        picks = []
        for cells in lists:
            if count >= len(cells):
                picks.append(cells)
            else:
                picks.append(cells[torch.randint(len(cells), (count,), generator=generator, device=cells.device)])
        return torch.cat(picks)

    def _changed(self, bits: Tensor) -> None:
        self.bits.copy_(bits)
        self._states = None

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._states = self._seen = None


def _lattice(axis: Tensor) -> Tensor:
    """(n,) -> (n^3, 3), the last coordinate fastest."""
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
