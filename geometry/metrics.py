"""How close two surfaces are: Chamfer distance, F-score, normal consistency.

Protocol: meshes are replaced by SAMPLES points spread uniformly by area, from a fixed seed; point sets (N, 3) are taken
as they are. d(a -> b) is the distance from each point of a to the nearest point of b, not squared, in the units of the
input. So a finite number of samples leaves a floor: two samplings of one surface of area A and N points each are about
0.5 sqrt(A / N) apart. Nothing is cropped, masked, aligned or thinned here: do that before, and say so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .mesh_ops import face_areas, sample_surface
from .types import Mesh

SAMPLES = 200_000


@dataclass(frozen=True)
class SurfaceScores:
    """A mesh beside the true one; distances are shares of the diagonal of the true mesh's bounding box."""

    to_truth: float  # mean d(mesh -> truth): accuracy, large where the mesh has what is not there
    from_truth: float  # mean d(truth -> mesh): completeness, large where the mesh lacks something
    f_scores: dict[float, float]  # threshold, a share of the diagonal -> F-score
    normal_consistency: float
    floor: float  # the Chamfer distance of two samplings of the true surface itself
    diagonal: float  # in the units of the meshes

    @property
    def chamfer(self) -> float:
        """The mean of both directions."""
        return (self.to_truth + self.from_truth) / 2


def compare(
    mesh: Mesh, truth: Mesh, *, thresholds: tuple[float, ...] = (0.01, 0.005), samples: int = SAMPLES
) -> SurfaceScores:
    """All measures of ``mesh`` by ``truth``, from one sampling of each.

    Args:
        mesh: what was reconstructed.
        truth: what it should be, in the same frame and units.
        thresholds: of the F-scores, as shares of the diagonal of ``truth``'s bounding box.
        samples: points on each.

    Raises:
        ValueError: a mesh without any area.
    """
    (points, normals), (true_points, true_normals) = _sample(mesh, samples), _sample(truth, samples)
    forward, to_true = nearest(points, true_points)
    backward, to_mesh = nearest(true_points, points)
    corners = truth.vertices[truth.faces].reshape(-1, 3)
    diagonal = float((corners.amax(0) - corners.amin(0)).double().norm())
    area = float(face_areas(truth).double().sum())
    return SurfaceScores(
        float(forward.mean()) / diagonal,
        float(backward.mean()) / diagonal,
        {share: f_score_of(forward, backward, share * diagonal) for share in thresholds},
        alignment(normals, true_normals[to_true], true_normals, normals[to_mesh]),
        0.5 * (area / samples) ** 0.5 / diagonal,
        diagonal,
    )


def chamfer(a: Mesh | Tensor, b: Mesh | Tensor, *, samples: int = SAMPLES) -> float:
    """(mean d(a -> b) + mean d(b -> a)) / 2: "overall" of the DTU protocol, the mean of accuracy and completeness."""
    forward, backward = distances(a, b, samples=samples)
    return float(forward.mean() + backward.mean()) / 2


def f_score(a: Mesh | Tensor, b: Mesh | Tensor, threshold: float, *, samples: int = SAMPLES) -> float:
    """Harmonic mean of the shares of a within ``threshold`` of b (precision) and of b within it of a (recall).

    Source: Knapitsch et al., "Tanks and Temples", SIGGRAPH 2017.
    """
    return f_score_of(*distances(a, b, samples=samples), threshold)


def normal_consistency(a: Mesh, b: Mesh, *, samples: int = SAMPLES) -> float:
    """Mean |cosine| between the normals of samples and of their nearest samples on the other mesh, both ways.

    Source: Mescheder et al., "Occupancy Networks", CVPR 2019.
    """
    (points_a, normals_a), (points_b, normals_b) = _sample(a, samples), _sample(b, samples)
    _, nearest_b = nearest(points_a, points_b)
    _, nearest_a = nearest(points_b, points_a)
    return alignment(normals_a, normals_b[nearest_b], normals_b, normals_a[nearest_a])


def distances(a: Mesh | Tensor, b: Mesh | Tensor, *, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """d(a -> b) (N,) and d(b -> a) (M,) float64: accuracy and completeness, if a is judged by b."""
    points_a, points_b = (_sample(x, samples)[0] if isinstance(x, Mesh) else x for x in (a, b))
    return nearest(points_a, points_b)[0], nearest(points_b, points_a)[0]


def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """For each of ``points`` (N, 3), its nearest among ``others`` (M, 3): distances (N,) float64 and indices (N,)."""
    for name, given in (("points", points), ("others", others)):
        if given.dim() != 2 or given.shape[1] != 3 or len(given) == 0:
            raise ValueError(f"nearest: {name}: expected shape (N, 3) with N >= 1, got {tuple(given.shape)}")
    from scipy.spatial import cKDTree

    found, index = cKDTree(others.detach().double().cpu().numpy()).query(
        points.detach().double().cpu().numpy(), workers=torch.get_num_threads()
    )
    return torch.from_numpy(found).to(points.device), torch.from_numpy(index).to(points.device)


def f_score_of(forward: Tensor, backward: Tensor, threshold: float) -> float:
    """The F-score from the distances of samples of each surface to the other."""
    precision, recall = float((forward <= threshold).double().mean()), float((backward <= threshold).double().mean())
    return 2 * precision * recall / max(precision + recall, 1e-12)


def alignment(a: Tensor, nearest_to_a: Tensor, b: Tensor, nearest_to_b: Tensor) -> float:
    """Normal consistency from the normals (N, 3) of samples of each surface and those nearest to them on the other."""
    forward, backward = ((x * y).sum(1).abs().double().mean() for x, y in ((a, nearest_to_a), (b, nearest_to_b)))
    return float(forward + backward) / 2


def _sample(mesh: Mesh, samples: int) -> tuple[Tensor, Tensor]:
    return sample_surface(mesh.to("cpu"), samples, torch.Generator().manual_seed(0))
