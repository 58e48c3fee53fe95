"""Exact distances to a mesh: to the nearest triangle (libigl's tree), with a sign that says inside or outside.

The sign of a closed, oriented mesh is that of (x - c) . n for the nearest point c and the angle-weighted pseudonormal n
of the face, edge or vertex that c lies on, which is right everywhere (Bærentzen and Aanæs, "Signed distance computation
using the angle weighted pseudonormal", TVCG 2005). For a mesh with holes or edges of many faces, inside is where its
generalized winding number exceeds one half (Barill et al., "Fast winding numbers for soups and clouds", 2018): a hole
is closed by the surface where that is one half, to which no distance is measured.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .mesh_ops import face_normals
from .types import Mesh, Points

ON = 1e-9  # of the mesh's size: nearer than this to an edge or a vertex is on it


class MeshDistance:
    """Distances to ``mesh``; works on the CPU and in float64, answers in float32.

    Args:
        mesh: at least one triangle, none of them degenerate; for signs, closed and oriented, unless
        winding: the sign is that of winding numbers.
        signed: negative inside; otherwise distances are positive everywhere, and any triangles will do.
    """

    def __init__(self, mesh: Mesh, *, winding: bool = False, signed: bool = True) -> None:
        import igl

        if len(mesh.faces) == 0:
            raise ValueError("MeshDistance: mesh: expected at least one triangle, got none; check the file")
        self.signed = signed
        self.mesh = Mesh(mesh.vertices.detach().cpu().double().contiguous(), mesh.faces.cpu().long().contiguous())
        self._vertices: Any = self.mesh.vertices.numpy()
        self._faces: Any = self.mesh.faces.numpy()
        self._tree = igl.AABB()
        self._tree.init(self._vertices, self._faces)
        self._winding = None
        if winding:
            self._winding = igl.FastWindingNumberBVH()
            self._winding.init(self._vertices, self._faces)
        self.face_normals = face_normals(self.mesh)
        self._on = ON * float((self.mesh.vertices.amax(0) - self.mesh.vertices.amin(0)).norm())

    @cached_property
    def _edge_normals(self) -> Tensor:
        return _edge_normals(self.mesh.faces, self.face_normals)

    @cached_property
    def _vertex_normals(self) -> Tensor:
        return _vertex_normals(self.mesh, self.face_normals)

    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """points (N, 3) -> float64 unsigned distances (N,), the nearest triangles (N,) and nearest points (N, 3)."""
        if len(points) == 0:
            return torch.zeros(0).double(), torch.zeros(0).long(), torch.zeros(0, 3).double()
        at = points.detach().cpu().double().contiguous().numpy()
        squared, faces, closest = self._tree.squared_distance(self._vertices, self._faces, at)
        return torch.from_numpy(squared).sqrt(), torch.from_numpy(faces), torch.from_numpy(closest)

    def __call__(self, points: Tensor) -> Points:
        """points (N, 3) -> distances there, negative inside, and their gradients (on the surface, normals); on CPU."""
        at = points.detach().cpu().double()
        distances, faces, closest = self.nearest(at)
        away = at - closest
        pseudo = self._pseudonormals(faces, closest)
        if not self.signed:
            inside = torch.zeros_like(distances).bool()
        elif self._winding is None:
            inside = (away * pseudo).sum(1) < 0
        else:
            found = self._winding.winding_number(at.contiguous().numpy()) if len(at) else torch.zeros(0).numpy()
            inside = torch.from_numpy(found) > 0.5
        sign = 1 - 2 * inside.double()
        off = distances > self._on
        normals = torch.where(off[:, None], normalize(away, dim=1) * sign[:, None], normalize(pseudo, dim=1))
        return Points(points.detach().cpu().float(), (distances * sign).float(), normals.float())

    def _pseudonormals(self, faces: Tensor, closest: Tensor) -> Tensor:
        """Of what the points ``closest`` (N, 3) of the triangles ``faces`` (N,) lie on."""
        index = self.mesh.faces[faces]
        corners = self.mesh.vertices[index]  # (N, 3, 3)
        to_corner = closest[:, None] - corners
        near_corner, corner = to_corner.norm(dim=2).min(1)
        along = normalize(corners.roll(-1, 1) - corners, dim=2)  # edge k runs from corner k to the next
        to_edge = torch.linalg.cross(to_corner, along).norm(dim=2)
        near_edge, edge = to_edge.min(1)
        normals = self.face_normals[faces]
        normals = torch.where((near_edge <= self._on)[:, None], self._edge_normals[faces, edge], normals)
        at_corner = self._vertex_normals[index.gather(1, corner[:, None])[:, 0]]
        return torch.where((near_corner <= self._on)[:, None], at_corner, normals)


def _edge_normals(faces: Tensor, normals: Tensor) -> Tensor:
    """(F, 3, 3): for each face and its edge from corner k to the next, the sum of the normals of all faces there."""
    ends = torch.stack([faces, faces.roll(-1, 1)], 2).sort(2).values.view(-1, 2)
    _, edge = ends.unique(dim=0, return_inverse=True)
    summed = normals.new_zeros(int(edge.max()) + 1, 3)
    summed.index_add_(0, edge, normals.repeat_interleave(3, 0))
    return summed[edge].view(-1, 3, 3)


def _vertex_normals(mesh: Mesh, normals: Tensor) -> Tensor:
    """(V, 3): the sum of the normals of a vertex' faces, weighted by their angles there."""
    corners = mesh.vertices[mesh.faces]
    forward = normalize(corners.roll(-1, 1) - corners, dim=2)
    angles = (forward * -forward.roll(1, 1)).sum(2).clamp(-1, 1).acos()  # (F, 3)
    summed = torch.zeros_like(mesh.vertices)
    return summed.index_add_(0, mesh.faces.view(-1), (angles[..., None] * normals[:, None]).view(-1, 3))
