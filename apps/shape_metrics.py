"""How near the surface of a run is to the shape that it was fitted to.

Both surfaces are sampled uniformly by area from a fixed seed, and each sample is held against the other surface itself
rather than against samples of it: the floor that a finite number of samples has (``geometry/metrics.py``) would be
above the errors of a good fit. Distances are not squared; percentages are of the diagonal of the shape's bounding box.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..datasets.scene import Scene
from ..datasets.shape import surface_of, truth_of
from ..geometry import Mesh
from ..geometry.mesh_distance import MeshDistance
from ..geometry.mesh_ops import boundary_length, sample_surface
from ..geometry.metrics import SAMPLES, alignment, f_score_of
from ..geometry.transforms import similarity_scale

THRESHOLDS = (0.1, 0.5, 1.0)  # of the F-score, % of the diagonal


def compare(mesh: Mesh, scene: Scene, samples: int = SAMPLES, *, signed: bool = True) -> dict[str, Any]:
    """A mesh in the scene's frame against the scene's shape.

    Returns:
        accuracy (mesh to shape), completeness (shape to mesh) and chamfer, their mean, in the file's units;
        chamfer_percent of the diagonal; f_score by threshold in %; normal_consistency, the mean |cosine| of normals,
        both ways; the diagonal; if distances are not ``signed``, boundary_length and, of meshes, the shape's own.
    """
    generator = torch.Generator().manual_seed(0)
    found, found_normals = sample_surface(Mesh(mesh.vertices, mesh.faces), samples, generator)
    true = surface_of(scene)(samples, generator)
    assert true.normals is not None
    to_shape, shape_normals = _nearest(scene, found, signed)
    to_mesh, mesh_normals = _on_mesh(MeshDistance(mesh), true.positions)
    corners = scene.mesh.vertices if scene.mesh is not None else scene.points
    assert corners is not None
    diagonal = float((corners.amax(0) - corners.amin(0)).norm())
    chamfer = float(to_shape.mean() + to_mesh.mean()) / 2
    scale = float(similarity_scale(scene.scene_to_world))
    boundaries = {}
    if not signed:
        boundaries["boundary_length"] = boundary_length(mesh) * scale
        if scene.mesh is not None:
            boundaries["true_boundary_length"] = boundary_length(scene.mesh) * scale
    return {
        "chamfer": chamfer * scale,
        "chamfer_percent": 100 * chamfer / diagonal,
        "accuracy": float(to_shape.mean()) * scale,
        "completeness": float(to_mesh.mean()) * scale,
        "f_score": {str(p): f_score_of(to_shape, to_mesh, p / 100 * diagonal) for p in THRESHOLDS},
        "normal_consistency": alignment(found_normals, shape_normals, true.normals, mesh_normals),
        "diagonal": diagonal * scale,
        **boundaries,
    }


def _nearest(scene: Scene, points: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Distances (N,) to the shape and its normals (N, 3) there."""
    truth = truth_of(scene, signed=signed)
    if isinstance(truth, MeshDistance):
        return _on_mesh(truth, points)
    known = truth(points)
    assert known.distances is not None and known.normals is not None
    return known.distances.abs(), known.normals


def _on_mesh(distance: MeshDistance, points: Tensor) -> tuple[Tensor, Tensor]:
    found, faces, _ = distance.nearest(points)
    return found, distance.face_normals[faces].float()
