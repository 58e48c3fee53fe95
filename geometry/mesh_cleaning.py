"""Meshes as files have them, made ready for distances: duplicates merged, faces turned alike, faults named.

Nothing here moves a surface by more than TOLERANCE or fills a hole: whether a mesh encloses an inside is found out and
said, and what to do about it is the caller's choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .types import Mesh

TOLERANCE = 1e-6  # of the box's diagonal: vertices nearer to each other may be one, if that closes a mesh


@dataclass(frozen=True)
class Cleaned:
    """A mesh without duplicates, what was changed in it, and why it has no inside, if it has none."""

    mesh: Mesh
    changes: tuple[str, ...]
    faults: tuple[str, ...]


def clean(mesh: Mesh) -> Cleaned:
    """Merge vertices of one place, drop faces without area in their corners, turn faces outwards; colours are dropped.

    Where a whole part is turned consistently it stays as it is, so that hollows stay hollow; a mesh whose signed volume
    is negative is turned as a whole.
    """
    welded = _weld(mesh, 0.0)
    if _open_edges(welded.faces):
        closer = _weld(mesh, TOLERANCE)
        if _open_edges(closer.faces) < _open_edges(welded.faces):
            welded = closer
    changes = []
    if merged := _used(mesh) - _used(welded):
        changes.append(f"{merged} duplicate vertices merged")
    if dropped := len(mesh.faces) - len(welded.faces):
        changes.append(f"{dropped} degenerate or duplicate faces dropped")
    turned = turned_alike(welded)
    if flipped := int((turned.faces != welded.faces).any(1).sum()):
        changes.append(f"{flipped} faces turned round")
    return Cleaned(turned, tuple(changes), faults(turned))


def faults(mesh: Mesh) -> tuple[str, ...]:
    """Why a mesh encloses no inside: kinds of edges that a closed, oriented surface has not, and how many."""
    if len(mesh.faces) == 0:
        return ("no faces",)
    count, balance = _edges(mesh.faces)
    found = {
        "open edges (holes)": int((count == 1).sum()),
        "edges of more than two faces": int((count > 2).sum()),
        "edges where faces are turned against each other": int(((count == 2) & (balance != 0)).sum()),
    }
    return tuple(f"{number} {what}" for what, number in found.items() if number)


def signed_volume(mesh: Mesh) -> float:
    """Enclosed by faces that are turned outwards; of an open mesh, as if closed by its own middle."""
    return float(_volumes(mesh).sum())


def _volumes(mesh: Mesh) -> Tensor:
    """(F,) of the tetrahedra between the faces and the middle of the vertices, float64."""
    vertices = mesh.vertices.double()
    a, b, c = (vertices - vertices.mean(0))[mesh.faces].unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(1) / 6


def _used(mesh: Mesh) -> int:
    return len(mesh.faces.unique())


def _weld(mesh: Mesh, tolerance: float) -> Mesh:
    """Vertices on one place, to within ``tolerance`` of the box's diagonal, are one; faces that lose a corner so, and
    second faces of the same corners, are dropped."""
    vertices, faces = mesh.vertices.detach().cpu(), mesh.faces.cpu().long()
    if len(faces) == 0:
        return Mesh(vertices[:0], faces)
    cell = tolerance * float((vertices.amax(0) - vertices.amin(0)).norm())
    key = vertices if cell == 0 else ((vertices - vertices.amin(0)).double() / cell).round()
    _, place = key.unique(dim=0, return_inverse=True)
    first = torch.full((int(place.max()) + 1,), len(vertices)).scatter_reduce_(
        0, place, torch.arange(len(vertices)), "amin"
    )
    faces = place[faces]
    a, b, c = faces.unbind(1)
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, same = faces.sort(1).values.unique(dim=0, return_inverse=True)
    once = torch.full((int(same.max()) + 1 if len(same) else 0,), len(faces))
    once.scatter_reduce_(0, same, torch.arange(len(faces)), "amin")
    faces = faces[once.sort().values]
    used, faces = faces.unique(return_inverse=True)
    return Mesh(vertices[first[used]], faces)


def _edges(faces: Tensor) -> tuple[Tensor, Tensor]:
    """(E,) how many faces an edge has, and how many more of them run it upwards than downwards."""
    ends = torch.stack([faces, faces.roll(-1, 1)], 2).view(-1, 2)
    _, edge = ends.sort(1).values.unique(dim=0, return_inverse=True)
    count = torch.bincount(edge)
    up = 2 * (ends[:, 0] < ends[:, 1]).long() - 1
    return count, torch.zeros_like(count).index_add_(0, edge, up)


def _open_edges(faces: Tensor) -> int:
    return int((_edges(faces)[0] == 1).sum()) if len(faces) else 0


def turned_alike(mesh: Mesh) -> Mesh:
    """Neighbours turned alike, parts that were not outwards, the whole outwards."""
    if len(mesh.faces) == 0:
        return mesh
    import igl

    count, balance = _edges(mesh.faces)
    if bool(((count == 2) & (balance != 0)).any()):
        found, parts = igl.bfs_orient(mesh.faces.numpy())
        faces, part = torch.from_numpy(found), torch.from_numpy(parts)
        changed = torch.zeros(int(part.max()) + 1).index_add_(0, part, (faces != mesh.faces).any(1).float()) > 0
        volumes = torch.zeros(len(changed)).double().index_add_(0, part, _volumes(Mesh(mesh.vertices, faces)))
        faces = torch.where((changed & (volumes < 0))[part][:, None], faces.flip(1), faces)
        mesh = Mesh(mesh.vertices, torch.where(changed[part][:, None], faces, mesh.faces))
    return Mesh(mesh.vertices, mesh.faces.flip(1).contiguous()) if signed_volume(mesh) < 0 else mesh
