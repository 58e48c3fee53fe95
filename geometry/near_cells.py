"""Cells of a lattice that an unsigned distance's zero set may cross, and the edges of them that it does cross.

Cells are found as in an octree: from a coarse lattice downwards, only those are halved whose centre is nearer to the
surface than their corners are to it. The dense lattice never exists: memory and evaluations grow with the surface.

An unsigned distance has no change of sign to tell an edge's crossing by. Here its gradient turns round between the ends
(g_a . g_b < 0, as in Guillard et al., "MeshUDF", 2022), and the distance at the place between them that both predict is
small: so neither the middle between two sheets, where gradients turn too, nor the continuation of a surface beyond its
boundary counts. What single edges get wrong is mended by what surfaces are: around a face of the lattice the number of
crossed edges is even but where the surface ends, so edges are changed where that makes its boundary shorter (iterated
conditional modes, Besag 1986), the less willingly the clearer the edge's own evidence is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .types import Aabb

Function = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (N, 3) -> distances (N,), gradients (N, 3)
COARSEST = 32  # cells along the longest edge at the beginning, at most
SLACK = 0.3  # by how much distances may be too large before a cell is lost
NEAR = 0.3  # cells: the farthest that the surface may seem to be from a place where it is crossed
SQUARE = 0.1  # cosine: gradients of two sides of a sharp edge are at right angles, and cross nothing
VALLEY = 0.3  # cells: by how much less the nearest points of an edge's ends may lie apart along it than the ends do
TURN = 0.15  # cells: nearer to the surface than this, gradients say less and less
CLEAR = 0.6  # evidence that needs no closer look
PIECES = 5  # of an edge that is looked at more closely
STUBBORN = 4.0  # faces whose number of crossings becomes even that change the clearest edge
SHIFT = (0.382, 0.271, 0.146)  # cells: so that planes of even numbers go through no corners
ROUNDS = 30
CELL_BYTES = 2200  # what a cell costs until it is meshed, as measured
MAX_BYTES = 2**33
_BITS = 20  # of a coordinate in a key


@dataclass(frozen=True)
class Lattice:
    """Cubic cells of size ``cell`` from ``low`` on; function asks ``chunk`` points at a time."""

    function: Function
    low: Tensor  # (3,)
    cell: float
    chunk: int

    def world(self, index: Tensor) -> Tensor:
        """Index coordinates (N, 3) -> world."""
        return self.low + index.to(self.low) * self.cell

    def ask(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """points (N, 3) -> distances (N,), and unit gradients (N, 3), 0 where there is none."""
        values, gradients = [points.new_empty(0)], [points.new_empty(0, 3)]
        for part in points.split(self.chunk) if len(points) else ():
            found, slopes = self.function(part)
            if found.shape != (len(part),) or slopes.shape != part.shape:
                raise ValueError(
                    f"near_cells: function: expected distances ({len(part)},) and gradients ({len(part)}, 3), got "
                    f"{tuple(found.shape)} and {tuple(slopes.shape)}; return both"
                )
            values.append(found)
            gradients.append(torch.nn.functional.normalize(slopes, dim=1, eps=1e-20))
        distances = torch.cat(values)
        if not bool(distances.isfinite().all()):
            raise ValueError("near_cells: function: expected numbers, got NaN or infinity; check what it was fitted on")
        return distances, torch.cat(gradients)


def key_of(index: Tensor) -> Tensor:
    """(N, 3) integers within +-2^19 -> (N,) int64, one for each place."""
    shifted = index.long() + (1 << (_BITS - 1))
    return (shifted[..., 0] << 2 * _BITS) | (shifted[..., 1] << _BITS) | shifted[..., 2]


def place_of(key: Tensor) -> Tensor:
    """What ``key_of`` was given."""
    mask = (1 << _BITS) - 1
    return torch.stack([key >> 2 * _BITS, (key >> _BITS) & mask, key & mask], -1) - (1 << (_BITS - 1))


def find(sorted_keys: Tensor, wanted: Tensor) -> Tensor:
    """Where ``wanted`` (*) stand in ``sorted_keys`` (N,); -1 where they do not."""
    if len(sorted_keys) == 0:
        return torch.full_like(wanted, -1)
    at = torch.searchsorted(sorted_keys, wanted).clamp(max=len(sorted_keys) - 1)
    return torch.where(sorted_keys[at] == wanted, at, -1)


def corners(device: torch.device) -> Tensor:
    """(8, 3) offsets of a cell's corners."""
    both = torch.arange(2, device=device)
    return torch.cartesian_prod(both, both, both)


def near_cells(
    function: Function, bounds: Aabb, resolution: int, chunk: int = 2**18, max_bytes: int = MAX_BYTES
) -> tuple[Lattice, Tensor]:
    """The cells that the zero set of an unsigned distance may cross.

    Args:
        function: points (N, 3) -> distances (N,) and gradients (N, 3).
        bounds: where to look.
        resolution: cells along their longest edge; rounded up to a multiple of a power of two.
        chunk: points per call.
        max_bytes: cap on the memory of the cells, all that is done with them later included.

    Returns:
        The lattice, and the sorted keys (N,) of the cells.

    Raises:
        ValueError: no cells, or more than fit into ``max_bytes``; NaN or other shapes than expected; the function is
            near zero nowhere.
    """
    if not 1 <= resolution <= 1 << (_BITS - 2):
        raise ValueError(f"near_cells: resolution: expected 1 to {1 << (_BITS - 2)} cells, got {resolution}")
    extent = bounds.extent.double()
    if not bool((extent > 0).all()):
        raise ValueError(
            f"near_cells: bounds: expected low < high, got {bounds.low.tolist()} and {bounds.high.tolist()}"
        )
    levels = max(0, math.ceil(math.log2(resolution / COARSEST)))
    coarse = math.ceil(resolution / 2**levels)
    cell = float(extent.max()) / coarse
    axes = [torch.arange(max(1, math.ceil(e / cell - 1e-6)) + 1, device=bounds.low.device) for e in extent.tolist()]
    low = bounds.low - bounds.low.new_tensor(SHIFT) * cell / 2**levels
    cells, least = torch.cartesian_prod(*axes), math.inf
    children = corners(bounds.low.device)
    for level in range(levels + 1):
        lattice = Lattice(function, low, cell / 2**level, chunk)
        if level:
            cells = (2 * cells[:, None] + children).view(-1, 3)
        distances, _ = lattice.ask(lattice.world(cells + 0.5))
        least = float(distances.min())
        cells = cells[distances <= math.sqrt(3) / 2 * (1 + SLACK) * lattice.cell]
        if len(cells) == 0:
            raise ValueError(
                f"near_cells: function: expected distances that come down to zero inside the bounds, got {least:g} at "
                "least; choose other bounds or a lower resolution"
            )
        if len(cells) * CELL_BYTES > max_bytes:
            limit, needed, along = max_bytes / 2**30, len(cells) * CELL_BYTES / 2**30, resolution >> (levels - level)
            raise ValueError(
                f"near_cells: max_bytes: expected cells that fit into {limit:.3g} GiB, got {needed:.3g} GiB of them "
                f"near zero with {along} along an edge: distances that are zero in a thick slab, or a large surface; "
                "lower the resolution, or choose smaller bounds"
            )
    return lattice, key_of(cells).sort().values


@dataclass(frozen=True)
class Crossings:
    """Edges that the surface crosses, each from the corner ``start`` along ``axis``."""

    starts: Tensor  # (E, 3) integers
    axes: Tensor  # (E,) 0, 1 or 2
    points: Tensor  # (E, 3) world: where
    normals: Tensor  # (E, 3) unit: the gradient beyond, from start to end


class _Edges:
    """All edges of some cells, sorted by key, and what speaks for their being crossed."""

    def __init__(self, lattice: Lattice, cells: Tensor, corner_keys: Tensor, values: Tensor, slopes: Tensor) -> None:
        self.lattice = lattice
        places = place_of(cells)
        eye = torch.eye(3, dtype=torch.long, device=cells.device)
        keys = []
        for axis in range(3):
            around = [o for o in corners(cells.device) if not o[axis]]
            keys.append(torch.cat([key_of(places + o) for o in around]).unique() + (axis << 3 * _BITS))
        self.keys = torch.cat(keys)
        self.axes, self.starts = self.keys >> 3 * _BITS, place_of(self.keys & ((1 << 3 * _BITS) - 1))
        a = find(corner_keys, key_of(self.starts))
        b = find(corner_keys, key_of(self.starts + eye[self.axes]))
        self.beyond = slopes[b]
        begin, along = lattice.world(self.starts), eye[self.axes] * lattice.cell
        values, slopes = torch.stack([values[a], values[b]], 1), torch.stack([slopes[a], slopes[b]], 1)
        evidence, share = judged(lattice, begin, along, values, slopes)
        doubt = ((evidence.abs() < CLEAR) & (values.amax(1) < (1 + SLACK) * lattice.cell)).nonzero()[:, 0]
        closer, where = _closer(lattice, begin[doubt], along[doubt], values[doubt], slopes[doubt])
        # What no piece shows may have been lost in the noise of gradients near the surface: doubtful, still.
        evidence[doubt] = torch.where(closer == 0, evidence[doubt] / 2 - 0.1, closer)
        share[doubt] = torch.where(closer > 0, where, share[doubt])
        self.points = begin + share[:, None] * along
        self.evidence = evidence * (0.2 + 0.8 * (values.amin(1) / (TURN * lattice.cell)).clamp(0, 1))

    def select(self, chosen: Tensor) -> Crossings:
        return Crossings(self.starts[chosen], self.axes[chosen], self.points[chosen], self.beyond[chosen])


def judged(lattice: Lattice, begin: Tensor, along: Tensor, values: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """What speaks for the surface crossing segments from begin (E, 3) to begin + along, -1 to 1; and at what share.

    values (E, 2) and slopes (E, 2, 3) are the distances and unit gradients at their ends.
    """
    length = along.norm(dim=1)
    (f_a, f_b), (n_a, n_b) = values.unbind(1), slopes.unbind(1)
    share = f_a / (f_a + f_b).clamp_min(1e-30)
    turn = -(n_a * n_b).sum(1) - SQUARE
    # Beyond a boundary gradients turn less than by a right angle; along the segment, what they point to still changes.
    down, up = ((n * along).sum(1) / length for n in (n_a, n_b))
    valley = (down < 0) & (up > 0)
    turn = torch.where(valley, torch.maximum(turn, (f_b * up - f_a * down) / length - VALLEY), turn).clamp(-1, 1)
    # The ends of a crossed segment are within its length from the surface.
    maybe = ((turn > 0) & (values.amax(1) < (1 + SLACK) * length + NEAR * lattice.cell)).nonzero()[:, 0]
    off, _ = lattice.ask(begin[maybe] + share[maybe, None] * along[maybe])
    clear = torch.full_like(turn, -1.0)
    clear[maybe] = (1 - off / (NEAR * lattice.cell)).clamp(-1, 1)
    return torch.where(turn > 0, torch.minimum(turn, clear), turn), share


def _closer(lattice: Lattice, begin: Tensor, along: Tensor, values: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """The same, by short pieces of the segments, 0 where none of them is crossed.

    Beside a sharp edge, a segment's ends may be nearest to other sides of it than the one that is crossed.
    """
    count = len(begin)
    steps = torch.arange(1, PIECES, device=begin.device) / PIECES
    inner, turned = lattice.ask((begin[:, None] + steps[:, None] * along[:, None]).view(-1, 3))
    values = torch.cat([values[:, :1], inner.view(count, PIECES - 1), values[:, 1:]], 1)
    slopes = torch.cat([slopes[:, :1], turned.view(count, PIECES - 1, 3), slopes[:, 1:]], 1)
    parts = torch.arange(PIECES, device=begin.device)
    starts = (begin[:, None] + parts[:, None] / PIECES * along[:, None]).view(-1, 3)
    pieces = (along / PIECES).repeat_interleave(PIECES, 0)
    pairs = torch.stack([values[:, :-1], values[:, 1:]], 2).view(-1, 2)
    turns = torch.stack([slopes[:, :-1], slopes[:, 1:]], 2).view(-1, 2, 3)
    evidence, share = (x.view(count, PIECES) for x in judged(lattice, starts, pieces, pairs, turns))
    best, piece = evidence.max(1)
    found = (evidence > 0).sum(1)
    verdict = torch.where(found % 2 == 1, best, torch.where(found == 0, torch.zeros_like(best), -best))
    return verdict, (piece + share.gather(1, piece[:, None])[:, 0]) / PIECES


def crossings(lattice: Lattice, cells: Tensor) -> Crossings:
    """The edges of ``cells`` (sorted keys) that the zero set crosses, single errors mended."""
    offsets = corners(cells.device)
    corner_keys = torch.cat([key_of(place_of(cells) + o) for o in offsets]).unique()
    values, slopes = lattice.ask(lattice.world(place_of(corner_keys)))
    edges = _Edges(lattice, cells, corner_keys, values, slopes)
    first = (edges.evidence > 0).nonzero()[:, 0]
    around = cells_around(cells, edges.starts[first], edges.axes[first])
    active = cells[around[around >= 0].unique()]  # what is to be mended lies beside what is crossed
    edges = _Edges(lattice, active, corner_keys, values, slopes)
    crossed = _mended(edges, active)
    whole = (cells_around(active, edges.starts, edges.axes) >= 0).all(1)
    return edges.select((crossed & whole).nonzero()[:, 0])


def cells_around(cells: Tensor, starts: Tensor, axes: Tensor) -> Tensor:
    """(E, 4) the cells around edges, in turn: where they stand in ``cells`` (sorted keys), -1 where they do not."""
    eye = torch.eye(3, dtype=torch.long, device=cells.device)
    one, other = eye[(axes + 1) % 3], eye[(axes + 2) % 3]
    turn = torch.stack([starts, starts - one, starts - one - other, starts - other], 1)
    return find(cells, key_of(turn))


def _faces(edges: _Edges, cells: Tensor) -> Tensor:
    """(F, 4) edges of each face of the cells."""
    eye, places = torch.eye(3, dtype=torch.long, device=cells.device), place_of(cells)
    found = []
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        at = place_of(torch.cat([cells, key_of(places + eye[axis])]).unique())
        sides = [(i, at), (i, at + eye[j]), (j, at), (j, at + eye[i])]
        found.append(torch.stack([find(edges.keys, key_of(p) + (k << 3 * _BITS)) for k, p in sides], 1))
    return torch.cat(found)


def _mended(edges: _Edges, cells: Tensor) -> Tensor:
    """(E,) bool: which edges are crossed, where changing one more would pay nowhere."""
    faces = _faces(edges, cells)
    said = edges.evidence > 0
    crossed = said.clone()
    cost = STUBBORN * edges.evidence.abs()
    numbers = torch.arange(len(cost), device=cost.device)
    tie = 1e-3 * torch.rand(len(cost), generator=torch.Generator().manual_seed(0)).to(cost)
    for _ in range(ROUNDS):
        odd = crossed[faces].sum(1) % 2
        gain = torch.zeros_like(cost).index_add_(0, faces.view(-1), (2.0 * odd - 1).repeat_interleave(4).to(cost))
        change = torch.where(crossed == said, cost, -cost) - gain
        wanted = change < -1e-6
        if not bool(wanted.any()):
            break
        rank = torch.where(wanted, change + tie, math.inf)
        best = rank[faces].argmin(1, keepdim=True)
        least = faces.gather(1, best)[:, 0]
        # An edge changes if it is the one that gains most around each of its faces.
        wins = torch.zeros_like(numbers).index_add_(0, least, torch.ones_like(least))
        beside = torch.zeros_like(numbers).index_add_(0, faces.view(-1), torch.ones_like(faces).view(-1))
        crossed = crossed ^ (wanted & (wins == beside))
    return crossed
