"""Marching cubes on the zero sets of unsigned distances, open or closed: gradients give the corners signs.

Corners of cells near the surface are sorted to its sides: along an edge of the lattice the side stays where gradients
agree, and changes where they turn round at a valley of the distance. Sides spread from corner to corner along the edges
that are surest of it (a maximum spanning forest). Cells are triangulated as if f times the side were a signed distance;
those with an edge whose ends came to different sides without its being crossed, as happens around the boundary of an
open surface, are left out.

Source: Guillard, Stella and Fua, "MeshUDF: Fast and Differentiable Meshing of Unsigned Distance Field Networks", 2022,
whose votes among neighbours are taken here by a spanning forest, over all cells at once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..cuda.marching_cubes import marching_cubes_blocks
from .mesh_cleaning import turned_alike
from .mesh_ops import vertex_normals
from .near_cells import MAX_BYTES, Function, Lattice, corners, find, judged, key_of, near_cells, place_of
from .types import Aabb, Mesh


def pseudo_sign_mesh(
    function: Function, bounds: Aabb, resolution: int, *, chunk: int = 2**18, max_bytes: int = MAX_BYTES
) -> Mesh:
    """The zero set of an unsigned distance inside ``bounds``, as a mesh in world units, with normals.

    Arguments, result and errors are those of ``dual_mesh``; boundaries go in steps of cells.
    """
    with torch.no_grad():
        lattice, cells = near_cells(function, bounds, resolution, chunk, max_bytes)
        places, offsets = place_of(cells), corners(cells.device)
        keys, index = key_of(places[:, None] + offsets).unique(return_inverse=True)
        values, slopes = lattice.ask(lattice.world(place_of(keys)))
        ends, agreement = _edges(lattice, keys, values, slopes)
        sides = _sides(len(keys), ends, agreement)
        differ = sides[ends[:, 0]] != sides[ends[:, 1]]
        torn = _pair_keys(ends[differ & (agreement > 0)], len(keys))
        crossed = sides[index].amax(1) != sides[index].amin(1)
        index, places = index[crossed], places[crossed]
        whole = torch.ones(len(index), dtype=torch.bool, device=cells.device)
        for a in range(8):
            for b in range(a + 1, 8):
                if int((offsets[a] - offsets[b]).abs().sum()) == 1:
                    whole &= find(torn, _pair_keys(index[:, [a, b]], len(keys))) < 0
        # A distance of zero has no side of its own: the level counts as below it.
        signed = (values.clamp_min(1e-6 * lattice.cell) * sides)[index[whole]]
        if len(signed) == 0:
            raise ValueError(
                "pseudo_sign_mesh: function: expected gradients that turn round at the surface, got none that do; "
                "raise the resolution, or choose other bounds"
            )
        vertices, faces = marching_cubes_blocks(signed.view(-1, 2, 2, 2).contiguous(), places[whole])
        mesh = turned_alike(Mesh(lattice.world(vertices), faces.long()))
    return Mesh(mesh.vertices, mesh.faces, vertex_normals(mesh))


def _pair_keys(ends: Tensor, count: int) -> Tensor:
    """(E, 2) numbers of corners below ``count``, the lower first -> (E,) one number for each pair."""
    return ends[:, 0] * count + ends[:, 1]


def _edges(lattice: Lattice, keys: Tensor, values: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """All edges between the corners ``keys`` (N,): (E, 2) sorted, and how alike their ends' sides are, -1 to 1."""
    places = place_of(keys)
    ends, alike = [], []
    for step in torch.eye(3, dtype=torch.long, device=keys.device):
        other = find(keys, key_of(places + step))
        here = (other >= 0).nonzero()[:, 0]
        pairs = torch.stack([here, other[here]], 1)
        along = (step * lattice.cell).to(values).expand(len(here), 3)
        ends.append(pairs)
        evidence, _ = judged(lattice, lattice.world(places[here]), along, values[pairs], slopes[pairs])
        along_both = (slopes[pairs[:, 0]] * slopes[pairs[:, 1]]).sum(1)
        alike.append(torch.where(evidence > 0, along_both.clamp(max=-1e-3), along_both.abs().clamp_min(1e-3)))
    found = torch.cat(ends)
    order = _pair_keys(found, len(keys)).argsort()
    return found[order], torch.cat(alike)[order]


def _sides(count: int, ends: Tensor, agreement: Tensor) -> Tensor:
    """(N,) 1 or -1 for each of so many corners, spread along the surest edges."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

    pairs, sure = ends.cpu().numpy(), agreement.abs().clamp_min(1e-6).double().cpu().numpy()
    graph = coo_matrix((2 - sure, (pairs[:, 0], pairs[:, 1])), (count, count)).tocsr()
    tree = minimum_spanning_tree(graph)
    _, parts = connected_components(tree, directed=False)
    roots = np.unique(parts, return_index=True)[1]
    # One more node, which all parts hang on, so that one walk reaches everything.
    hung = coo_matrix((np.ones(len(roots)), (np.full(len(roots), count), roots)), (count + 1, count + 1))
    rows = tree.tocoo()
    whole = coo_matrix((rows.data, (rows.row, rows.col)), (count + 1, count + 1)) + hung
    _, parents = breadth_first_order(whole.tocsr(), count, directed=False)
    turns = _turns(pairs, agreement.cpu().numpy(), parents, count)
    return torch.from_numpy(_spread(parents, turns, count)).to(agreement)


def _turns(pairs: np.ndarray, agreement: np.ndarray, parents: np.ndarray, count: int) -> np.ndarray:
    """(N,) 1, or -1 where the edge to a corner's parent changes sides."""
    nodes = np.arange(count)
    low, high = np.minimum(nodes, parents[:count]), np.maximum(nodes, parents[:count])
    keys = pairs[:, 0] * count + pairs[:, 1]
    at = np.minimum(np.searchsorted(keys, low * count + high), len(keys) - 1)
    found = keys[at] == low * count + high
    return np.where(found & (agreement[at] < 0), -1.0, 1.0)


def _spread(parents: np.ndarray, turns: np.ndarray, count: int) -> np.ndarray:
    """(N,) products of the turns up to the root, by doubling the way that each corner looks up."""
    sides, up = np.append(turns, 1.0), parents.copy()
    up[count] = count
    while (up != count).any():
        sides, up = sides * sides[up], up[up]
    return sides[:count]
