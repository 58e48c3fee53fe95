"""What is done to meshes after extraction: normals, cropping, components, simplification, transforms, samples.

Every function returns a new mesh, keeps colours and normals with their vertices, and drops vertices that no triangle
uses any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .types import Aabb, Mesh


def face_normals(mesh: Mesh) -> Tensor:
    """(F, 3): unit normals, zero where a triangle has no area."""
    return normalize(_face_vectors(mesh), dim=1)


def vertex_normals(mesh: Mesh) -> Tensor:
    """(V, 3): unit normals, the mean over a vertex' triangles weighted by area."""
    vectors = _face_vectors(mesh)
    summed = torch.zeros_like(mesh.vertices)
    for k in range(3):
        summed.index_add_(0, mesh.faces[:, k], vectors)
    return normalize(summed, dim=1, eps=1e-30)


def face_areas(mesh: Mesh) -> Tensor:
    """(F,)"""
    return _face_vectors(mesh).norm(dim=1) / 2


def boundary_edges(faces: Tensor) -> Tensor:
    """(E, 2) of faces (F, 3): the edges of one triangle only, as it runs them."""
    ends = torch.stack([faces, faces.roll(-1, 1)], 2).view(-1, 2)
    _, edge = ends.sort(1).values.unique(dim=0, return_inverse=True)
    return ends[edge.bincount()[edge] == 1] if len(faces) else ends


def boundary_length(mesh: Mesh) -> float:
    """How long the edges of one triangle only are together; 0 of a closed mesh."""
    a, b = mesh.vertices.double()[boundary_edges(mesh.faces)].unbind(1)
    return float((a - b).norm(dim=1).sum())


def _face_vectors(mesh: Mesh) -> Tensor:
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return torch.linalg.cross(b - a, c - a)


def with_colors(mesh: Mesh, colors: Tensor) -> Mesh:
    """The mesh with colours (V, 3), clamped to [0, 1]."""
    if colors.shape != mesh.vertices.shape:
        raise ValueError(f"with_colors: colors: expected shape {tuple(mesh.vertices.shape)}, got {tuple(colors.shape)}")
    return replace(mesh, colors=colors.clamp(0, 1))


def keep_faces(mesh: Mesh, keep: Tensor) -> Mesh:
    """The triangles where ``keep`` (F,) bool is set, with the vertices that they use."""
    faces = mesh.faces[keep]
    used = torch.zeros(len(mesh.vertices), dtype=torch.bool, device=faces.device)
    used[faces.reshape(-1)] = True
    number = used.cumsum(0) - 1
    pick = lambda t: None if t is None else t[used]  # noqa: E731
    return Mesh(mesh.vertices[used], number[faces], pick(mesh.normals), pick(mesh.colors))


def joined(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of at least one; it has the normals and colours that all of them have."""
    if len(meshes) == 1:
        return meshes[0]
    shifts = itertools.accumulate((len(mesh.vertices) for mesh in meshes[:-1]), initial=0)

    def all_of(name: str) -> Tensor | None:
        found = [getattr(mesh, name) for mesh in meshes]
        return None if any(t is None for t in found) else torch.cat(found)

    faces = torch.cat([mesh.faces + shift for mesh, shift in zip(meshes, shifts, strict=True)])
    return Mesh(torch.cat([mesh.vertices for mesh in meshes]), faces, all_of("normals"), all_of("colors"))


def crop(mesh: Mesh, box: Aabb) -> Mesh:
    """The triangles that lie in ``box`` with all three corners."""
    return keep_faces(mesh, box.contains(mesh.vertices)[mesh.faces].all(1))


def largest_components(mesh: Mesh, count: int = 1, *, min_fraction: float = 0.0) -> Mesh:
    """The connected parts with the most triangles.

    Args:
        mesh: any mesh; parts are connected through shared vertices.
        count: keep at most this many; 0 keeps all that pass ``min_fraction``.
        min_fraction: drop parts with a smaller share of the triangles than this.
    """
    if count < 0 or not 0 <= min_fraction <= 1:
        raise ValueError(
            "largest_components: count, min_fraction: expected at least 0 and a share from 0 to 1, got "
            f"{count} and {min_fraction}"
        )
    if len(mesh.faces) == 0:
        return mesh
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces = mesh.faces.cpu().numpy()
    size = len(mesh.vertices)
    start, end = faces[:, [0, 1]].reshape(-1), faces[:, [1, 2]].reshape(-1)
    _, labels = connected_components(
        coo_matrix((torch.ones(len(start)).bool().numpy(), (start, end)), (size, size)), False
    )
    label = torch.from_numpy(labels).long()[mesh.faces[:, 0].cpu()]
    sizes = label.bincount()
    order = sizes.argsort(descending=True, stable=True)
    order = order[sizes[order] >= max(1, min_fraction * len(faces))]
    keep = torch.zeros(len(sizes), dtype=torch.bool)
    keep[order[:count] if count else order] = True
    return keep_faces(mesh, keep[label].to(mesh.faces.device))


def simplify(mesh: Mesh, target_faces: int) -> Mesh:
    """About ``target_faces`` triangles by edge collapses of least quadric error (Garland & Heckbert, SIGGRAPH 1997).

    Colours are carried over from the nearest old vertices (three, by inverse distance); normals are computed anew if
    there were any. A mesh that is small enough comes back as it is.
    """
    if target_faces < 1:
        raise ValueError(f"simplify: target_faces: expected at least 1, got {target_faces}")
    if len(mesh.faces) <= target_faces:
        return mesh
    import fast_simplification

    vertices, faces = fast_simplification.simplify(
        mesh.vertices.detach().float().cpu().numpy(), mesh.faces.int().cpu().numpy(), target_count=target_faces
    )
    coarse = Mesh(torch.from_numpy(vertices).to(mesh.vertices), torch.from_numpy(faces).to(mesh.faces))
    coarse = keep_faces(coarse, torch.ones(len(faces), dtype=torch.bool, device=coarse.faces.device))
    if mesh.colors is not None:
        coarse = replace(coarse, colors=interpolate(mesh.vertices, mesh.colors, coarse.vertices))
    return coarse if mesh.normals is None else replace(coarse, normals=vertex_normals(coarse))


def interpolate(points: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """values (V, C) of ``points`` (V, 3) -> (N, C) at other points: three nearest, weighted by inverse distance."""
    from scipy.spatial import cKDTree

    distances, index = cKDTree(points.detach().cpu().numpy()).query(
        at.cpu().numpy(), k=list(range(1, min(3, len(points)) + 1))
    )
    weights = 1 / torch.from_numpy(distances).clamp_min(1e-12)
    weights = (weights / weights.sum(1, keepdim=True)).to(values)
    return (values[torch.from_numpy(index).to(values.device)] * weights[..., None]).sum(1)


def transform(mesh: Mesh, matrix: Tensor) -> Mesh:
    """The mesh moved by an affine ``matrix`` (4, 4); a mirror turns the triangles round: outside stays outside."""
    if matrix.shape != (4, 4):
        raise ValueError(f"transform: matrix: expected shape (4, 4), got {tuple(matrix.shape)}; pass a_to_b")
    linear, shift = matrix[:3, :3].to(mesh.vertices), matrix[:3, 3].to(mesh.vertices)
    determinant = torch.linalg.det(linear.double())
    if determinant == 0:
        raise ValueError("transform: matrix: expected an invertible one, got determinant 0; it would flatten the mesh")
    faces = mesh.faces.flip(1) if determinant < 0 else mesh.faces
    normals = None if mesh.normals is None else normalize(mesh.normals @ torch.linalg.inv(linear), dim=1)
    return replace(mesh, vertices=mesh.vertices @ linear.T + shift, faces=faces, normals=normals)


def sample_surface(mesh: Mesh, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Points spread uniformly over the surface.

    Args:
        mesh: with at least one triangle of non-zero area.
        count: how many points.
        generator: for repeatable points.

    Returns:
        points (count, 3) and the normals (count, 3) of their triangles.
    """
    total = face_areas(mesh).double().cumsum(0)
    if len(total) == 0 or not total[-1] > 0:
        raise ValueError(
            f"sample_surface: mesh: expected triangles with an area, got {len(total)} triangles without any"
        )
    draw = torch.rand(
        count,
        3,
        generator=generator,
        dtype=torch.float64,
        device=total.device if generator is None else generator.device,
    )
    draw = draw.to(total.device)
    face = torch.searchsorted(total, draw[:, 0] * total[-1], right=True).clamp_(max=len(total) - 1)
    root = draw[:, 1].sqrt()
    weights = torch.stack([1 - root, root * (1 - draw[:, 2]), root * draw[:, 2]], 1).to(mesh.vertices)
    corners = mesh.vertices[mesh.faces[face]]
    return (corners * weights[..., None]).sum(1), normalize(
        torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=1
    )
