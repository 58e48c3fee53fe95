"""A shape in a file, as a scene without photographs: a mesh, or points with normals.

Its bounding box is taken to the middle of the region of interest [-1, 1]^3 by a shift and a scale.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..geometry.mesh_distance import MeshDistance
from ..geometry.mesh_io import load_mesh
from ..geometry.mesh_ops import sample_surface, transform
from ..geometry.transforms import similarity_inverse
from ..geometry.types import Aabb, Mesh, Points
from .normalize import Placement
from .scene import Scene, SceneError

FILLS = 0.85  # of the region of interest, along the box's longest edge


def load_shape(path: Path, *, repair: bool = False) -> Scene:
    """Raises SceneError."""
    try:
        mesh = load_mesh(path)
    except (ValueError, FileNotFoundError) as error:
        raise SceneError(str(error)) from error
    placement = _placement(mesh.vertices)
    mesh = transform(mesh, similarity_inverse(placement.scene_to_world))
    return Scene(path.stem, (), placement.scene_to_world, Aabb.cube(), mesh=mesh, source=path)


def surface_of(scene: Scene) -> Callable[[int, torch.Generator], Points]:
    """So many points of a shape's surface."""
    mesh = scene.mesh
    assert mesh is not None

    def draw(count: int, generator: torch.Generator) -> Points:
        positions, normals = sample_surface(Mesh(mesh.vertices, mesh.faces), count, generator)
        return Points(positions, torch.zeros(count), normals)

    return draw


def truth_of(scene: Scene) -> Callable[[Tensor], Points]:
    """Distances to a shape's surface."""
    assert scene.mesh is not None
    return MeshDistance(scene.mesh)


def _placement(vertices: Tensor) -> Placement:
    low, high = vertices.double().amin(0), vertices.double().amax(0)
    return Placement((low + high) / 2, float((high - low).amax()) / 2 / FILLS)
