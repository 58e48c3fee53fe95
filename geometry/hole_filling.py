"""Small holes of a mesh closed by fans of triangles."""

from __future__ import annotations

from collections.abc import Callable

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
