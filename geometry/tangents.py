"""Tangent frames of a mesh with UV coordinates, as glTF has them, for normal maps.

At a point with unit normal N and tangent T (along which u grows), B = w N x T is the direction in which the texture
goes up (v falls, as its origin is the upper left corner); a normal n is stored as (n.T, n.B, n.N) / 2 + 1/2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def vertex_tangents(vertices: Tensor, faces: Tensor, uvs: Tensor, normals: Tensor) -> Tensor:
    """(V, 4): unit tangents perpendicular to the normals (V, 3), and w = 1, or -1 where the texture is mirrored."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    u, v = (uvs[faces] - uvs[faces[:, :1]])[:, 1:].unbind(-1)
    v = -v
    determinant = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    along_u = ((b - a) * v[:, 1:] - (c - a) * v[:, :1]) * determinant.sign()[:, None]
    area = torch.linalg.cross(b - a, c - a).norm(dim=1, keepdim=True)
    weighted = torch.cat([normalize(along_u, dim=1, eps=1e-30) * area, determinant.sign()[:, None] * area], 1)
    summed = vertices.new_zeros(len(vertices), 4)
    for k in range(3):
        summed.index_add_(0, faces[:, k], weighted)
    tangents = across(summed[:, :3], normals)
    return torch.cat([tangents, torch.where(summed[:, 3:] < 0, -1.0, 1.0).to(tangents)], 1)


def across(directions: Tensor, normals: Tensor) -> Tensor:
    """(N, 3): unit, the part of directions perpendicular to unit normals; any perpendicular where there is none."""
    flat = directions - (directions * normals).sum(1, keepdim=True) * normals
    axis = torch.zeros_like(normals).scatter_(1, normals.abs().argmin(1, keepdim=True), 1.0)
    instead = torch.linalg.cross(axis, normals)
    has = flat.norm(dim=1, keepdim=True) > 1e-6 * directions.norm(dim=1, keepdim=True)
    return normalize(torch.where(has, flat, instead), dim=1, eps=1e-30)


def frames(normals: Tensor, tangents: Tensor) -> Tensor:
    """Normals (N, 3) and tangents (N, 4), interpolated between vertices -> (N, 3, 3): rows T, B, N, orthonormal."""
    n = normalize(normals, dim=1)
    t = across(tangents[:, :3], n)
    b = torch.linalg.cross(n, t) * tangents[:, 3:].sign()
    return torch.stack([t, b, n], 1)
