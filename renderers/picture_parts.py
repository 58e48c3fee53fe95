"""In which parts a picture is drawn, so that fog takes no more memory than a wall.

A ray that ends at a surface has a handful of intervals that are seen; one through fog, which every field is at first, a
thousand. So rays are cut by the intervals that they may meet at most, and what they see by the intervals there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..geometry import Samples
from ..geometry.occupancy import OccupancyGrid


def most_intervals(grid: OccupancyGrid, step: float, cone_angle: float) -> int:
    """Of any ray through the grid, as ``march_grid`` cuts it: one along the diagonal that begins in its corner."""
    longest = max(step, 2 * grid.half_extent * 2 ** (grid.cascades - 1) / grid.resolution)
    way = 2 * math.sqrt(3) * grid.half_extent * 2 ** (grid.cascades - 1)
    if cone_angle <= 0:
        return math.ceil(way / step) + 1
    growing, grown = min(way, step / cone_angle), min(way, longest / cone_angle)
    between = math.log(grown / growing) / math.log1p(cone_angle) if grown > growing else 0.0
    return math.ceil(growing / step + between + (way - max(grown, growing)) / longest) + 3


def parts(samples: Samples, most: int) -> Iterator[tuple[slice, Samples]]:
    """Runs of rays, in order, that have ``most`` intervals together or are a single ray; and those intervals."""
    rays = len(samples.ray_offsets) - 1
    if len(samples) <= most:
        yield slice(0, rays), samples
        return
    offsets = samples.ray_offsets.cpu()
    first = 0
    while first < rays:
        begin = int(offsets[first])
        last = max(first + 1, int((offsets <= begin + most).sum()) - 1)
        yield slice(first, last), _of_rays(samples, first, last, begin, int(offsets[last]))
        first = last


def _of_rays(samples: Samples, first: int, last: int, begin: int, end: int) -> Samples:
    """Those of the rays from ``first`` to before ``last``, which are counted from 0."""
    return Samples(
        samples.t_starts[begin:end],
        samples.t_ends[begin:end],
        samples.ray_indices[begin:end] - first,
        samples.ray_offsets[first : last + 1] - begin,
    )
