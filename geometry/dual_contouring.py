"""Level sets meshed with their sharp edges, by gradients: ``dual_contour(function, gradients, bounds, resolution)``.

Where an edge of the lattice is crossed, p, the surface has a tangent plane with the gradient's normal n. A vertex per
piece of surface in a cell is put where these planes meet best,

    min_x sum_i (n_i . (x - p_i))^2

by singular values, the small ones left out, around the mean of the p_i, and within the cell; each crossed edge becomes
a quadrilateral between the vertices around it (Ju et al., "Dual contouring of Hermite data", 2002). Planes of the two
sides of a sharp edge meet on it, where marching cubes would cut it off.

One vertex per cell would join what only passes through the same cell. Here a vertex belongs to one loop of crossed
edges around the cell, as marching cubes has them (Nielson, "Dual marching cubes", 2004).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..cuda.marching_cubes_table import edge_corners, loops
from .dual_parts import cut_quads, nearest_to_planes, nearest_within
from .mesh_ops import face_normals, vertex_normals
from .near_cells import key_of, place_of
from .sparse_blocks import BATCH, Function, OpenSurfaceWarning, SparseBlocks, crossed_blocks
from .types import Aabb, Mesh

FLAT = 0.05  # of the largest eigenvalue: planes that differ by less than 25 degrees leave the vertex between them
ROUNDS = 5  # secants along a crossed edge
INSIDE = 0.499  # cells from a cell's middle: of two cells, never the same place
REACH = 1.0  # cells from a cell's middle that a vertex may go if the surface is nearer there
STEP = 0.05  # cells, of differences where there are no gradients
_AXIS = 3 * 20  # bits of a place's key


def dual_contour(
    function: Function,
    gradients: Callable[[Tensor], Tensor] | None,
    bounds: Aabb,
    resolution: int,
    level: float = 0.0,
    *,
    step: float = STEP,
    flat: float = FLAT,
    occupied: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 0.5,
    chunk: int = 2**18,
    max_bytes: int = 2**31,
) -> Mesh:
    """The surface function = level inside ``bounds``, as a mesh in world units, sharp where the function is.

    Args:
        function: points (N, 3) -> values (N,), larger outside; called without autograd, as ``gradients`` is.
        gradients: points (N, 3) -> (N, 3), asked where edges of the lattice are crossed; None = differences of values.
        bounds: where to look.
        resolution: cells along the longest edge; rounded up to whole blocks.
        level: where to cut.
        step: cells, of differences of values, where there are no gradients; 0.5 for functions with noise.
        flat: planes leave a direction open where its eigenvalue is less than this share of the largest.
        occupied: as of ``isosurface``, and so margin, chunk and max_bytes.

    Returns:
        A Mesh with normals that point outside; closed, unless it meets the bounds (then an OpenSurfaceWarning tells).

    Raises:
        ValueError: the function takes the level nowhere, or returns NaN or another shape, or the blocks exceed the cap.
    """
    with torch.no_grad():
        options: dict[str, Any] = dict(occupied=occupied, margin=margin, chunk=chunk, max_bytes=max_bytes)
        blocks = crossed_blocks(function, bounds, resolution, level, **options)
        if blocks.is_open:
            warnings.warn(
                "dual_contour: the surface meets the bounds and is cut open there", OpenSurfaceWarning, stacklevel=2
            )
        crossed = _crossed(blocks)
        points = _roots(blocks, crossed)
        normals = torch.nn.functional.normalize(_slopes(blocks, gradients, points, step), dim=1)
        vertices, place = _vertices(blocks, crossed, points, normals, flat)
        mesh = _mesh(vertices, crossed, place, normals)
    return replace(mesh, normals=vertex_normals(mesh))


@dataclass(frozen=True)
class _Crossed:
    """Edges of the lattice that the level crosses, and the cells around them."""

    starts: Tensor  # (E, 3) integers
    axes: Tensor  # (E,)
    ends: Tensor  # (E, 2) the values, less the level, at both ends
    edges: Tensor  # (I,) of each pair of an edge and a cell around it
    cells: Tensor  # (I, 3) integers
    pieces: Tensor  # (I,) which of the cell's loops the edge belongs to


@functools.cache
def _loop_of() -> Tensor:
    """(256, 12) the loop of each edge of a cell, by the case of its corners above the level; -1 = not crossed."""
    table = torch.full((256, 12), -1)
    for case in range(256):
        for number, loop in enumerate(loops(case)):
            table[case, loop] = number
    return table


def _crossed(blocks: SparseBlocks) -> _Crossed:
    device, n = blocks.device, blocks.n
    ends = torch.tensor([edge_corners(e) for e in range(12)], device=device)  # (12, 2) corners, 4 dx + 2 dy + dz
    offsets = torch.stack([ends[:, 0] >> s & 1 for s in (2, 1, 0)], 1)
    axis_of = 2 - torch.arange(12, device=device) // 4
    table, weights = _loop_of().to(device), 2 ** torch.arange(8, device=device)
    found = []
    for begin in range(0, blocks.count, BATCH):
        values = blocks.values[begin : min(begin + BATCH, blocks.count)] - blocks.level
        above = values > 0
        some, every = torch.zeros_like(above[:, :n, :n, :n]), torch.ones_like(above[:, :n, :n, :n])
        for c in range(8):
            x, y, z = c >> 2, c >> 1 & 1, c & 1
            corner = above[:, x : x + n, y : y + n, z : z + n]
            some, every = some | corner, every & corner
        block, *local = (some & ~every).nonzero().unbind(1)
        at = torch.stack(local, 1)
        corners = torch.stack(
            [values[block, at[:, 0] + (c >> 2), at[:, 1] + (c >> 1 & 1), at[:, 2] + (c & 1)] for c in range(8)], 1
        )
        piece = table[((corners > 0).long() * weights).sum(1)]
        cell, edge = (piece >= 0).nonzero().unbind(1)
        places = blocks.coordinates[begin + block] * n + at
        keys = key_of(places[cell] + offsets[edge]) | (axis_of[edge] << _AXIS)
        found.append((keys, corners[cell[:, None], ends[edge]], places[cell], piece[cell, edge]))
    keys, values, cells, pieces = (torch.cat(x) for x in zip(*found, strict=True))
    unique, edges = keys.unique(return_inverse=True)
    at_ends = values.new_empty(len(unique), 2).index_copy_(0, edges, values)
    return _Crossed(place_of(unique & ((1 << _AXIS) - 1)), unique >> _AXIS, at_ends, edges, cells, pieces)


def _roots(blocks: SparseBlocks, crossed: _Crossed) -> Tensor:
    """(E, 3) world: where the level is met on each edge, by the Illinois rule."""
    begin = blocks.to_world(crossed.starts)
    along = torch.eye(3, device=begin.device)[crossed.axes] * blocks.spacing
    low, high = torch.zeros_like(begin[:, 0]), torch.ones_like(begin[:, 0])
    f_low, f_high = crossed.ends.unbind(1)
    side = torch.zeros_like(low)
    share = f_low / (f_low - f_high)
    for _ in range(ROUNDS):
        f = blocks.evaluate(begin + share[:, None] * along) - blocks.level
        first = (f > 0) == (f_low > 0)  # the crossing lies beyond
        f_high = torch.where(first & (side > 0), f_high / 2, f_high)
        f_low = torch.where(~first & (side < 0), f_low / 2, f_low)
        low, f_low = torch.where(first, share, low), torch.where(first, f, f_low)
        high, f_high = torch.where(first, high, share), torch.where(first, f_high, f)
        side = torch.where(first, 1.0, -1.0)
        between = low + (high - low) * (f_low / (f_low - f_high))
        share = torch.where(f == 0, share, between.nan_to_num(0.5).clamp(0, 1))
    return begin + share[:, None] * along


def _slopes(blocks: SparseBlocks, gradients: Callable[[Tensor], Tensor] | None, points: Tensor, step: float) -> Tensor:
    """(E, 3) gradients there."""
    if gradients is None:
        steps = torch.diag(blocks.spacing * step)
        return torch.stack([(blocks.evaluate(points + s) - blocks.evaluate(points - s)) / s.sum() for s in steps], 1)
    found = torch.cat([gradients(part) for part in points.split(blocks.chunk)])
    if found.shape != points.shape:
        raise ValueError(
            f"dual_contour: gradients: expected shape {tuple(points.shape)}, got {tuple(found.shape)}; return one for "
            "each point"
        )
    return found.nan_to_num(0, 0, 0)


def _vertices(
    blocks: SparseBlocks, crossed: _Crossed, points: Tensor, normals: Tensor, flat: float
) -> tuple[Tensor, Tensor]:
    """(V, 3) world, one for each piece of each cell, and which belongs to each pair of an edge and a cell (I,)."""
    keys = key_of(crossed.cells) | (crossed.pieces << _AXIS)  # at most four pieces
    unique, place = keys.unique(return_inverse=True)
    count, edges = len(unique), crossed.edges
    centers = blocks.to_world(place_of(unique & ((1 << _AXIS) - 1)) + 0.5)
    size = place.bincount(minlength=count)[:, None]
    means = centers + torch.zeros_like(centers).index_add_(0, place, points[edges] - centers[place]) / size
    quadrics, right = points.new_zeros(count, 9), torch.zeros_like(means)
    for part in torch.arange(len(edges), device=edges.device).split(blocks.chunk):
        n, to = normals[edges[part]], place[part]
        quadrics.index_add_(0, to, (n[:, :, None] * n[:, None]).view(-1, 9))
        right.index_add_(0, to, n * (n * (points[edges[part]] - means[to])).sum(1, keepdim=True))
    quadrics, half = quadrics.view(-1, 3, 3), INSIDE * blocks.spacing
    step = nearest_to_planes(quadrics, right, flat)
    within = means + nearest_within(quadrics, right, step, centers - half - means, centers + half - means)
    # A corner may lie in a cell whose edges are not crossed at all: then who sees its planes may reach for it.
    away = ((means + step - centers).abs() / blocks.spacing).amax(1)
    out = ((away > INSIDE) & (away < REACH)).nonzero()[:, 0]
    reached = (means + step)[out]
    nearer = (blocks.evaluate(reached) - blocks.level).abs() < 0.5 * (blocks.evaluate(within[out]) - blocks.level).abs()
    return within.index_copy_(0, out[nearer], reached[nearer]), place


def _mesh(vertices: Tensor, crossed: _Crossed, place: Tensor, normals: Tensor) -> Mesh:
    """A quadrilateral for each edge that has all four cells, cut so that its triangles turn least from the surface."""
    away = crossed.starts[crossed.edges] - crossed.cells  # 0 or 1 across the edge
    axes = crossed.axes[crossed.edges]
    one = away.gather(1, ((axes + 1) % 3)[:, None])[:, 0]
    other = away.gather(1, ((axes + 2) % 3)[:, None])[:, 0]
    quads = place.new_full((len(normals), 4), -1)
    quads[crossed.edges, 3 * other + one - 2 * one * other] = place  # around the edge: 00, 10, 11, 01
    whole = (quads >= 0).all(1)
    falls = crossed.ends[:, 0] > crossed.ends[:, 1]
    quads = torch.where(falls[:, None], quads.flip(1), quads)[whole]
    agreement = []
    for turn in (0, 1):
        faces = cut_quads(quads, torch.full_like(falls[whole], bool(turn)))
        agreement.append((face_normals(Mesh(vertices, faces)).view(2, -1, 3) * normals[whole]).sum(-1).amin(0))
    a, b, c, d = (vertices[quads[:, k]] for k in range(4))
    longer = (a - c).norm(dim=1) > (b - d).norm(dim=1)
    alike = (agreement[0] - agreement[1]).abs() < 1e-3
    return Mesh(vertices, cut_quads(quads, torch.where(alike, longer, agreement[1] > agreement[0])))
