"""The 256 cases of marching cubes, derived rather than listed.

A cube's corner c = 4 dx + 2 dy + dz is *set* where its value lies above the level. On each face the crossed edges are
joined by segments that cut off the others (a face with two opposite set corners connects them): a rule that sees only
the face, which both of its cubes share, hence no cracks. The directed segments close into loops, and each
loop is triangulated without a diagonal that lies in a face, hence no edge with more than two triangles. Triangle
counts equal those of the classic table (Lorensen & Cline, SIGGRAPH 1987, as corrected by common use).

Edges are numbered by the lattice row that owns them: 0-3 along z of rows (dx, dy) = 00 01 10 11; 4-7 along y of
(dx, dz) = 00 01 10 11; 8-11 along x of (dy, dz) = 00 01 10 11.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

Point = tuple[float, float, float]

# ROW of an edge: which of a cell's eight vertex counters numbers it; DZ: whether it starts one step up in z.
ROW = (0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7)
DZ = (0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1)
RECORD = 64  # bytes per case, see table()


def corner(dx: int, dy: int, dz: int) -> int:
    """The number of a corner."""
    return 4 * dx + 2 * dy + dz


def edge_corners(edge: int) -> tuple[int, int]:
    """The two corners of an edge, lower one first."""
    axis, (u, v) = 2 - edge // 4, divmod(edge % 4, 2)
    low = {2: (u, v, 0), 1: (u, 0, v), 0: (0, u, v)}[axis]
    return corner(*low), corner(*low) + (4, 2, 1)[axis]


EDGE_OF = {frozenset(edge_corners(e)): e for e in range(12)}


def _faces() -> list[list[int]]:
    """The corners of the six faces, counter-clockwise seen from outside the cube."""
    faces = []
    for axis in range(3):
        for side in (0, 1):
            cycle = [(0, 0), (1, 0), (1, 1), (0, 1)] if side else [(0, 0), (0, 1), (1, 1), (1, 0)]
            face = []
            for u, v in cycle:
                at = [0, 0, 0]
                at[axis], at[(axis + 1) % 3], at[(axis + 2) % 3] = side, u, v
                face.append(corner(*at))
            faces.append(face)
    return faces


FACES = _faces()
FACE_EDGES = [frozenset(EDGE_OF[frozenset((f[i], f[(i + 1) % 4]))] for i in range(4)) for f in FACES]


def _middle(edge: int) -> Point:
    a, b = edge_corners(edge)
    return tuple(((a >> s & 1) + (b >> s & 1)) / 2 for s in (2, 1, 0))  # type: ignore[return-value]


def loops(case: int) -> list[list[int]]:
    """The closed loops of crossed edges, counter-clockwise seen from the set corners."""
    following: dict[int, int] = {}
    for face in FACES:
        is_set = [bool(case >> c & 1) for c in face]
        for i in range(4):
            if is_set[i] and not is_set[(i + 1) % 4]:  # the boundary leaves the set here; find where it comes back
                j = i + 1
                while not is_set[(j + 1) % 4]:
                    j += 1
                leave = EDGE_OF[frozenset((face[i], face[(i + 1) % 4]))]
                enter = EDGE_OF[frozenset((face[j % 4], face[(j + 1) % 4]))]
                following[leave] = enter
    loops = []
    while following:
        loop = [next(iter(following))]
        while (after := following.pop(loop[-1])) != loop[0]:
            loop.append(after)
        loops.append(loop)
    return loops


def _area(a: Point, b: Point, c: Point) -> float:
    u, v = [q - p for p, q in zip(a, b, strict=True)], [q - p for p, q in zip(a, c, strict=True)]
    n = (u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])
    return math.hypot(*n) / 2


def _triangulate(loop: list[int]) -> list[tuple[int, int, int]]:
    """The triangulation of least area (of edge midpoints) among those without a diagonal in a face."""

    @functools.cache
    def best(i: int, j: int) -> tuple[float, tuple[tuple[int, int, int], ...]]:
        if j - i < 2:
            return 0.0, ()
        is_diagonal = (i, j) != (0, len(loop) - 1)
        if is_diagonal and any(loop[i] in edges and loop[j] in edges for edges in FACE_EDGES):
            return math.inf, ()
        options = []
        for k in range(i + 1, j):
            (left, left_triangles), (right, right_triangles) = best(i, k), best(k, j)
            area = _area(*(_middle(loop[n]) for n in (i, k, j)))
            options.append(
                (round(left + right + area, 9), (*left_triangles, (loop[i], loop[k], loop[j]), *right_triangles))
            )
        return min(options)

    area, triangles = best(0, len(loop) - 1)
    assert math.isfinite(area)
    return list(triangles)


@functools.cache
def triangles() -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """Per case, its triangles as triples of edges, counter-clockwise seen from the set corners."""
    return tuple(tuple(t for loop in loops(case) for t in _triangulate(loop)) for case in range(256))


@functools.cache
def table() -> Tensor:
    """(256, 64) uint8, what the kernel reads: 16 rows, 16 offsets, 8 increments, the number of triangles.

    Vertex j of the case's triangles (in flat order, at most 15) has the number counter[row[j]] + offset[j], where the
    eight counters number the rows' crossed edges in order of z; passing the cell raises them by the increments.
    """
    records = torch.zeros(256, RECORD, dtype=torch.uint8)
    for case, found in enumerate(triangles()):
        crossed = [(case >> a ^ case >> b) & 1 for a, b in map(edge_corners, range(12))]
        for j, edge in enumerate(e for t in found for e in t):
            records[case, j] = ROW[edge]
            records[case, 16 + j] = crossed[edge - 1] if DZ[edge] else 0
        for edge in range(12):
            if not DZ[edge]:
                records[case, 32 + ROW[edge]] = crossed[edge]
        records[case, 40] = len(found)
    return records
