"""Holes of a mesh closed: small ones by fans of triangles to their middles, others by the triangles of least area.

Source: Barequet & Sharir, "Filling gaps in the boundary of a polyhedron", Computer Aided Geometric Design 1995.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .mesh_ops import boundary_edges
from .types import Mesh


def fill_small_holes(mesh: Mesh, most: int, belongs: Callable[[Tensor], Tensor] | None = None) -> Mesh:
    """Boundaries of at most so many edges, each a single line, closed by triangles to their middle.

    Args:
        mesh: whose neighbouring faces are turned alike; normals and colours are dropped.
        most: edges.
        belongs: middles (N, 3) -> (N,) bool: which of them lie on the surface. By default all do.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = boundary_edges(mesh.faces)
    rim, ends = ends.unique(return_inverse=True)
    if len(ends) == 0:
        return Mesh(mesh.vertices, mesh.faces)
    start, end = ends.cpu().numpy().T
    ones = torch.ones(len(ends)).numpy()
    count, found = connected_components(coo_matrix((ones, (start, end)), (len(rim), len(rim))), directed=False)
    line = torch.from_numpy(found).long().to(ends.device)
    sizes = line[ends[:, 0]].bincount(minlength=count)
    leaving, arriving = (ends[:, k].bincount(minlength=len(rim)) for k in (0, 1))
    plain = torch.ones(count, dtype=torch.bool, device=ends.device)
    plain[line[(leaving != 1) | (arriving != 1)]] = False
    middles = torch.zeros(count, 3, dtype=mesh.vertices.dtype, device=ends.device)
    middles = middles.index_add_(0, line, mesh.vertices[rim]) / line.bincount(minlength=count)[:, None]
    chosen = plain & (sizes <= most)
    if belongs is not None and bool(chosen.any()):
        chosen[chosen.nonzero()[:, 0]] &= belongs(middles[chosen])
    number = torch.where(chosen, chosen.cumsum(0) - 1 + len(mesh.vertices), -1)
    ends = ends[chosen[line[ends[:, 0]]]]
    fans = torch.stack([rim[ends[:, 1]], rim[ends[:, 0]], number[line[ends[:, 0]]]], 1)
    return Mesh(torch.cat([mesh.vertices, middles[chosen]]), torch.cat([mesh.faces, fans]))


MOST = 1000  # edges of a hole: time goes with their cube, some seconds of these


def fill_holes(mesh: Mesh, most: int) -> Mesh:
    """Boundaries of at most so many edges closed by triangles between their vertices; colours and normals stay.

    Of all ways to do so, the one of least area that runs no edge twice; a boundary that touches itself is several.
    Where there is no way a hole stays. Neighbouring faces have to be turned alike.

    Raises:
        ValueError: ``most`` is less than 3 or above MOST.
    """
    if not 3 <= most <= MOST:
        raise ValueError(f"fill_holes: most: expected 3 to {MOST} edges, got {most}")
    loops = [loop for loop in boundary_loops(mesh.faces) if 3 <= len(loop) <= most]
    if not loops:
        return mesh
    rim = torch.zeros(len(mesh.vertices), dtype=torch.bool)
    rim[torch.tensor([v for loop in loops for v in loop])] = True
    faces = mesh.faces.cpu()
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    taken = {(min(a, b), max(a, b)) for a, b in edges[rim[edges].all(1)].tolist()}
    patches: list[tuple[int, int, int]] = []
    for loop in loops:
        patch = [(loop[a], loop[b], loop[c]) for a, b, c in _least_area(mesh.vertices[loop], loop, taken)]
        taken |= {(min(a, b), max(a, b)) for t in patch for a, b in zip(t, (*t[1:], t[0]), strict=True)}
        patches += patch
    return replace(mesh, faces=torch.cat([mesh.faces, mesh.faces.new_tensor(patches).view(-1, 3)]))


def boundary_loops(faces: Tensor) -> list[list[int]]:
    """The boundaries of faces (F, 3), each as the vertices that its faces' edges run through, none of them twice."""
    onward: dict[int, list[int]] = {}
    for start, end in boundary_edges(faces).tolist():
        onward.setdefault(start, []).append(end)
    loops = []
    while onward:
        path = [next(iter(onward))]
        place = {path[0]: 0}
        while path:
            ends = onward.get(path[-1])
            if not ends:  # the walk is over, or faces are not turned alike
                onward.pop(path[-1], None)
                del place[path.pop()]
                continue
            end = ends.pop()
            if end in place:
                loops.append(path[place[end] :])
                for vertex in path[place[end] + 1 :]:
                    del place[vertex]
                del path[place[end] + 1 :]
            else:
                place[end] = len(path)
                path.append(end)
    return loops


def _least_area(corners: Tensor, loop: Sequence[int], taken: set[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Triangles of a polygon (N, 3), turned against it, as numbers of its corners; none if chords are all ``taken``."""
    at, n = corners.detach().cpu().double().numpy(), len(loop)
    barred = np.array([[(min(a, b), max(a, b)) in taken for b in loop] for a in loop])
    least, middle = np.full((n, n), np.inf), np.zeros((n, n), dtype=np.int64)
    least[np.arange(n - 1), np.arange(1, n)] = 0
    for span in range(2, n):
        i = np.arange(n - span)
        k, j = i[:, None] + np.arange(1, span), i + span
        first, second = at[k] - at[i][:, None], (at[j] - at[i])[:, None]
        areas = np.linalg.norm(np.cross(first, second), axis=-1) / 2
        sums = least[i[:, None], k] + least[k, j[:, None]] + areas
        best = sums.argmin(1)
        closed = span == n - 1
        least[i, j] = np.where(barred[i, j] & (not closed), np.inf, sums[i, best])
        middle[i, j] = k[i, best]
    if not np.isfinite(least[0, n - 1]):
        return []
    found, spans = [], [(0, n - 1)]
    while spans:
        low, high = spans.pop()
        if high - low > 1:
            between = int(middle[low, high])
            found.append((high, between, low))
            spans += [(low, between), (between, high)]
    return found
