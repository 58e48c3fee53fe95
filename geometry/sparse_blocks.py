"""Blocks of a lattice that a level of a function crosses: the dense lattice never exists.

The lattice is cut into blocks of 8 (above 1024: 16) cells. A coarse look, every half block, drops the blocks that the
surface cannot cross; the others are evaluated, each lattice point once, and forgotten again if nothing crosses them.
Where the surface leaves a block through a face, the neighbour is evaluated too, until it is closed or meets the bounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .types import Aabb

Function = Callable[[Tensor], Tensor]
BATCH = 4096  # blocks evaluated at a time


class OpenSurfaceWarning(UserWarning):
    """The surface meets the bounds, where the mesh is cut open."""


def crossed_blocks(
    function: Function,
    bounds: Aabb,
    resolution: int,
    level: float,
    *,
    occupied: Callable[[Tensor, Tensor], Tensor] | None,
    margin: float,
    chunk: int,
    max_bytes: int,
) -> SparseBlocks:
    """The blocks that the level crosses; arguments and errors are those of ``isosurface``."""
    if resolution < 1:
        raise ValueError(f"isosurface: resolution: expected at least 1 cell, got {resolution}")
    if not bool((bounds.extent > 0).all()):
        raise ValueError(
            f"isosurface: bounds: expected low < high, got {bounds.low.tolist()} and {bounds.high.tolist()}"
        )
    blocks = SparseBlocks(function, bounds, resolution, level, chunk=chunk, max_bytes=max_bytes)
    blocks.find(blocks.candidates(occupied, margin))
    if blocks.count == 0:
        raise ValueError(
            f"isosurface: level: expected a value that the function crosses inside the bounds, got {level:g}; "
            f"values found range from {blocks.least:g} to {blocks.most:g}: choose one between, or other bounds"
        )
    blocks.share()
    return blocks


def block_lattice(bounds: Aabb, resolution: int) -> tuple[int, list[int]]:
    """Cells along the edge of a block, and how many blocks there are along each axis of the bounds."""
    n = 8 if resolution <= 1024 else 16
    extent = bounds.extent.double()
    cell = float(extent.max()) / resolution
    return n, [max(1, math.ceil(e / (n * cell) - 1e-6)) for e in extent.tolist()]


def _region(blocks: Tensor, region: tuple[slice, ...]) -> Any:
    """The index of the same part of some blocks."""
    return (blocks, *region)


class SparseBlocks:
    """A growing set of blocks of (n + 1)^3 values, and what is known about all others."""

    def __init__(self, function: Function, bounds: Aabb, resolution: int, level: float, *, chunk: int, max_bytes: int):
        self.function, self.level, self.chunk, self.max_bytes = function, level, chunk, max_bytes
        self.n, self.shape = n, _ = block_lattice(bounds, resolution)
        self.device = bounds.low.device
        self.low = bounds.low
        size = bounds.extent.double().cpu() / torch.tensor(self.shape, device="cpu")
        self.spacing = (size / n).to(bounds.low)
        self.least, self.most, self.is_open = math.inf, -math.inf, False
        self.count = 0
        self.last = torch.tensor(self.shape, device=self.device) - 1  # block along each axis
        self.slots = torch.full(self.shape, -1, dtype=torch.int32, device=self.device)  # where a kept block is stored
        self.values = torch.empty(0, n + 1, n + 1, n + 1, device=self.device)
        self.coordinates = torch.empty(0, 3, dtype=torch.int64, device=self.device)

    def to_world(self, index: Tensor) -> Tensor:
        """Index coordinates (*, 3) -> world."""
        return torch.addcmul(self.low, index.to(self.low), self.spacing)

    def evaluate(self, points: Tensor) -> Tensor:
        """World points (N, 3) -> (N,) float32, in chunks."""
        out = torch.empty(len(points), device=self.device)
        for begin in range(0, len(points), self.chunk):
            part = points[begin : begin + self.chunk]
            values = self.function(part)
            if values.shape != (len(part),):
                raise ValueError(
                    f"isosurface: function: expected values of shape ({len(part)},) for points of shape "
                    f"{tuple(part.shape)}, got {tuple(values.shape)}; squeeze or index its result"
                )
            out[begin : begin + self.chunk] = values
        if len(out):
            least, most = out.aminmax()
            if least.isnan():
                where = [round(x, 6) for x in points[int(out.isnan().nonzero()[0])].tolist()]
                raise ValueError(
                    f"isosurface: function: expected numbers, got NaN at {where}; check what it was fitted on"
                )
            self.least, self.most = min(self.least, float(least)), max(self.most, float(most))
        return out

    def gradient(self, vertices: Tensor) -> Tensor:
        """Central differences of the function over one cell, (V, 3)."""
        step = torch.diag(self.spacing / 2)
        out = torch.empty_like(vertices)
        for begin in range(0, len(vertices), self.chunk):
            at = vertices[begin : begin + self.chunk]
            for axis in range(3):
                high, low = self.function(at + step[axis]), self.function(at - step[axis])
                out[begin : begin + self.chunk, axis] = (high - low) / self.spacing[axis]
        return out

    # ---- the coarse look -------------------------------------------------------------------------------------------
    def candidates(self, occupied: Callable[[Tensor, Tensor], Tensor] | None, margin: float) -> Tensor:
        """Bool mask over all blocks: those that the surface may cross."""
        mask = torch.ones(self.shape, dtype=torch.bool, device=self.device)
        if occupied is not None:
            half = self.spacing * self.n / 2
            flat = mask.view(-1)
            for begin in range(0, flat.numel(), self.chunk):
                index = torch.arange(begin, min(begin + self.chunk, flat.numel()), device=self.device)
                centers = self.to_world((self.unravel(index, self.shape) + 0.5) * self.n)
                flat[index] = occupied(centers, half)
        if margin == math.inf:
            return mask
        coarse_shape = [2 * b + 1 for b in self.shape]
        needed = torch.zeros(coarse_shape, dtype=torch.bool, device=self.device)
        for window in self.windows():
            needed[window] |= mask
        index = needed.view(-1).nonzero()[:, 0]
        coarse = torch.full(coarse_shape, math.nan, device=self.device).view(-1)
        for part in index.split(self.chunk):
            coarse[part] = self.evaluate(self.to_world(self.unravel(part, coarse_shape) * (self.n / 2)))
        coarse = coarse.view(coarse_shape)
        low, high = (torch.full(self.shape, end, device=self.device) for end in (math.inf, -math.inf))
        for window in self.windows():
            low, high = torch.fmin(low, coarse[window]), torch.fmax(high, coarse[window])
        slack = ((high - low) * margin).nan_to_num(nan=0.0)
        return mask & (low - slack <= self.level) & (high + slack >= self.level)

    def windows(self) -> Iterator[tuple[slice, ...]]:
        """The 27 coarse samples of every block, as views of the coarse lattice."""
        for offset in itertools.product(range(3), repeat=3):
            yield tuple(slice(o, o + 2 * b - 1, 2) for o, b in zip(offset, self.shape, strict=True))

    @staticmethod
    def unravel(index: Tensor, shape: list[int]) -> Tensor:
        """Flat indices (N,) -> (N, 3)."""
        return torch.stack([index // (shape[1] * shape[2]), index // shape[2] % shape[1], index % shape[2]], 1)

    # ---- the fine blocks -------------------------------------------------------------------------------------------
    def find(self, wanted: Tensor) -> None:
        """Evaluate the wanted blocks and whatever blocks the surface leads to from them."""
        seen = torch.zeros_like(wanted)
        while len(new := (wanted & ~seen).nonzero()):
            seen |= wanted
            # From the far end: the first values of a block are the border of the next that is evaluated.
            for part in new.flip(0).contiguous().split(BATCH):
                self.add(part, wanted)

    def add(self, coordinates: Tensor, wanted: Tensor) -> None:
        """Evaluate blocks (M, 3), keep those that the surface crosses, want the neighbours it leads to."""
        n, begin, end = self.n, self.count, self.count + len(coordinates)
        self.reserve(end)
        axis = torch.arange(float(n), device=self.device)
        inner = torch.cartesian_prod(axis, axis, axis)
        for part in range(0, len(coordinates), step := max(1, self.chunk // n**3)):
            index = (coordinates[part : part + step, None] * n).float() + inner
            found = self.evaluate(self.to_world(index.view(-1, 3)))
            self.values[begin + part : begin + part + len(index), :n, :n, :n] = found.view(-1, n, n, n)
        self.slots[tuple(coordinates.T)] = self.numbers(begin, end)
        self.coordinates[begin:end] = coordinates
        self.fill_borders(begin, end)

        above = self.values[begin:end] > self.level
        flat = above.flatten(1)
        keep = flat.any(1) & ~flat.all(1)
        for k, side in itertools.product(range(3), (0, n)):
            face = above.select(k + 1, side).flatten(1)
            leaves = coordinates[face.any(1) & ~face.all(1)]
            leaves = leaves + torch.eye(3, dtype=torch.int64, device=self.device)[k] * (1 if side else -1)
            inside = ((leaves >= 0) & (leaves <= self.last)).all(1)
            wanted[tuple(leaves[inside].T)] = True
            self.is_open |= not bool(inside.all())

        self.slots[tuple(coordinates.T)] = -1
        kept = keep.nonzero()[:, 0] + begin
        self.count = begin + len(kept)
        self.values[begin : self.count] = self.values[kept]
        self.coordinates[begin : self.count] = self.coordinates[kept]
        self.slots[tuple(self.coordinates[begin : self.count].T)] = self.numbers(begin, self.count)
        size = (self.n + 1) ** 3 * 4
        if self.count * size > self.max_bytes:
            raise ValueError(
                f"isosurface: max_bytes: expected the surface's blocks to fit into {self.max_bytes / 2**20:.0f} MiB, "
                f"got over {self.count} blocks of {size} bytes; lower the resolution or raise the cap"
            )

    def reserve(self, count: int) -> None:
        """Room for so many blocks."""
        if count > len(self.values):
            capacity = max(count, 2 * len(self.values))
            values = self.values.new_empty(capacity, *self.values.shape[1:])
            coordinates = self.coordinates.new_empty(capacity, 3)
            values[: self.count], coordinates[: self.count] = self.values[: self.count], self.coordinates[: self.count]
            self.values, self.coordinates = values, coordinates

    def neighbor_slots(self, coordinates: Tensor, offset: tuple[int, ...]) -> Tensor:
        """(M,) slot of the block at ``offset`` from each, -1 where there is none."""
        at = coordinates + coordinates.new_tensor(offset)
        inside = ((at >= 0) & (at <= self.last)).all(1)
        return torch.where(inside, self.slots[tuple(at.clamp_min(0).minimum(self.last).T)].long(), -1)

    def numbers(self, begin: int, end: int) -> Tensor:
        """Slots from ``begin`` to ``end``."""
        return torch.arange(begin, end, dtype=torch.int32, device=self.device)

    def fill_borders(self, begin: int, end: int) -> None:
        """Each block's last values along the axes: the first ones of its next neighbours, or evaluated."""
        n, coordinates = self.n, self.coordinates[begin:end]
        missing = []
        for offset in list(itertools.product((0, 1), repeat=3))[1:]:
            neighbors = self.neighbor_slots(coordinates, offset)
            here = tuple(slice(n, n + 1) if o else slice(0, n) for o in offset)
            there = tuple(slice(0, 1) if o else slice(0, n) for o in offset)
            has = neighbors >= 0
            self.values[_region(begin + has.nonzero()[:, 0], here)] = self.values[_region(neighbors[has], there)]
            local = torch.cartesian_prod(*(torch.arange(s.start, s.stop, device=self.device) for s in here))
            lacking = (~has).nonzero()[:, 0]
            block = (begin + lacking).repeat_interleave(len(local))
            missing.append(torch.cat([block[:, None], local.repeat(len(lacking), 1)], 1))
        for index in torch.cat(missing).split(self.chunk):
            block, local = index[:, 0], index[:, 1:]
            self.values[(block, *local.T)] = self.evaluate(self.to_world(self.coordinates[block] * n + local))

    def share(self) -> None:
        """Make shared values equal to the bit, whoever evaluated them when: the last block in order prevails."""
        coordinates = self.coordinates[: self.count]
        place = {-1: (slice(0, 1), slice(self.n, None)), 0: (slice(None),) * 2, 1: (slice(self.n, None), slice(0, 1))}
        for offset in sorted(o for o in itertools.product((-1, 0, 1), repeat=3) if o > (0, 0, 0)):
            neighbors = self.neighbor_slots(coordinates, offset)
            has = neighbors >= 0
            here, there = (tuple(place[o][side] for o in offset) for side in (0, 1))
            self.values[_region(has.nonzero()[:, 0], here)] = self.values[_region(neighbors[has], there)]
