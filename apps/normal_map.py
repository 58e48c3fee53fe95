"""Normals of the field, in the tangent frames of a mesh: the detail that a mesh of few triangles has lost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..fields.protocols import Distance
from ..geometry.atlas import Atlas, fill_gutters
from ..geometry.tangents import frames, vertex_tangents
from .devices import CPU

STEEPEST = 0.1  # cosine to the mesh's normal below which the field's says nothing of this surface


def field_normals(run: Any, points: Tensor, normals: Tensor) -> Tensor:
    """(N, 3) on the CPU: outwards, unit, at points (N, 3) in the scene's frame; the mesh's own (N, 3) if nonsensical.

    The gradient of a distance, or against the gradient of a density.
    """
    gradients = run.field.query(points.to(run.device), gradients=True).gradients.to(CPU)
    found = normalize(gradients if isinstance(run.field, Distance) else -gradients, dim=1)
    return torch.where((found * normals).sum(1, keepdim=True) > STEEPEST, found, normals)  # NaN compares False


def bake_normals(run: Any, atlas: Atlas, portion: int) -> Tensor:
    """(size, size, 3) uint8: a normal map in tangent space, as glTF has it."""
    mesh_normals = atlas.normals
    tangents = vertex_tangents(atlas.mesh.vertices, atlas.mesh.faces, atlas.uvs, mesh_normals)
    filled = atlas.texel_faces >= 0
    picture = torch.zeros(atlas.size * atlas.size, 3, dtype=torch.uint8)
    for part in filled.nonzero()[:, 0].split(portion):
        corners, weights = atlas.weights(part)
        points, normals = atlas.points(part)
        tangent = (tangents[corners] * weights[..., None]).sum(1)
        local = torch.einsum("nij,nj->ni", frames(normals, tangent), field_normals(run, points, normals))
        picture[part] = ((local.clamp(-1, 1) * 0.5 + 0.5) * 255).round().to(torch.uint8)
    size = (atlas.size, atlas.size)
    return fill_gutters(picture.view(*size, 3), filled.view(size))
