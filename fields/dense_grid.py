"""A dense grid: one entry per vertex, nothing is hashed (Sun et al., "Direct Voxel Grid Optimization", CVPR 2022).

Cells never share entries, at the price of memory that grows with the cube of the resolution. It is the hash grid's
kernel with tables large enough.
"""

from __future__ import annotations

from dataclasses import dataclass

from .encodings import HashGrid, HashGridConfig

MOST = 405  # cells along an edge: 2^26 vertices


@dataclass(frozen=True)
class DenseGridConfig:
    """Size of the grid."""

    resolution: int = 128
    """Cells along an edge of the bounds."""
    features: int = 4
    """Per level: 1, 2, 4 or 8."""
    levels: int = 3
    """Grids, each half as fine as the next."""

    def build(self) -> HashGrid:
        if not 1 <= self.resolution <= MOST:
            raise ValueError(
                f"DenseGrid: resolution: expected 1 to {MOST}, got {self.resolution}; use the hash grid for finer ones"
            )
        coarsest = max(1, self.resolution >> (self.levels - 1))
        return HashGrid(HashGridConfig(self.levels, self.features, 26, coarsest, self.resolution))
