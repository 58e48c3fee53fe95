"""How near the surface of a run is to the shape that it was fitted to, by the measures of ``geometry/metrics.py``.

Percentages are of the diagonal of the shape's bounding box.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..datasets.scene import Scene
from ..datasets.shape import surface_of, truth_of
from ..geometry import Mesh
from ..geometry.mesh_ops import boundary_length
from ..geometry.metrics import SAMPLES, Sampled
from ..geometry.transforms import similarity_scale

THRESHOLDS = (0.001, 0.005, 0.01)  # of the F-score, shares of the diagonal


def compare(mesh: Mesh, scene: Scene, samples: int = SAMPLES, *, signed: bool = True) -> dict[str, Any]:
    """A mesh in the scene's frame against the scene's shape.

    Returns:
        accuracy (mesh to shape), completeness (shape to mesh) and chamfer, their mean, in the file's units;
        chamfer_percent of the diagonal; f_score by threshold in %; normal_consistency, the mean |cosine| of normals,
        both ways; the diagonal; if distances are not ``signed``, boundary_length and, of meshes, the shape's own.
    """
    scores = Sampled.of_mesh(mesh, samples).scores(_shape(scene, samples, signed), THRESHOLDS)
    scale = float(similarity_scale(scene.scene_to_world))
    diagonal = scores.diagonal * scale
    boundaries = {}
    if not signed:
        boundaries["boundary_length"] = boundary_length(mesh) * scale
        if scene.mesh is not None:
            boundaries["true_boundary_length"] = boundary_length(scene.mesh) * scale
    return {
        "chamfer": scores.chamfer * diagonal,
        "chamfer_percent": 100 * scores.chamfer,
        "accuracy": scores.to_truth * diagonal,
        "completeness": scores.from_truth * diagonal,
        "f_score": {f"{100 * share:.1f}": score for share, score in scores.f_scores.items()},
        "normal_consistency": scores.normal_consistency,
        "diagonal": diagonal,
        **boundaries,
    }


def _shape(scene: Scene, samples: int, signed: bool) -> Sampled:
    if scene.mesh is not None:
        return Sampled.of_mesh(scene.mesh, samples)
    assert scene.points is not None
    truth, true = truth_of(scene, signed=signed), surface_of(scene)(samples, torch.Generator().manual_seed(0))
    assert true.normals is not None

    def nearest(points: Tensor) -> tuple[Tensor, Tensor]:
        known = truth(points)
        assert known.distances is not None and known.normals is not None
        return known.distances.abs().double(), known.normals

    diagonal = float((scene.points.amax(0) - scene.points.amin(0)).norm())
    return Sampled(true.positions, true.normals, nearest, diagonal)
