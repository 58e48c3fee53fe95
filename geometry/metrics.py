"""How close two surfaces are: Chamfer distance, F-score, normal consistency.

Protocol: meshes are sampled at SAMPLES points, uniformly by area from a fixed seed, and each sample is held against the
other surface itself, not against samples of it: a mesh is 0 from itself, however few they are. Point sets (N, 3) are
taken as they are; what is nearest to a point there is one of them, so that N points of a surface of area A are about
0.5 sqrt(A / N) away from it. Distances are not squared, and in the units of the input. Nothing is cropped, masked,
aligned or thinned here: do that before, and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .mesh_distance import MeshDistance
from .mesh_ops import face_areas, sample_surface
from .types import Mesh

SAMPLES = 200_000


@dataclass(frozen=True)
class SurfaceScores:
    """A surface beside the true one; distances are shares of the diagonal of the true one's bounding box."""

    to_truth: float  # mean d(surface -> truth): accuracy, large where it has what is not there
    from_truth: float  # mean d(truth -> surface): completeness, large where it lacks something
    f_scores: dict[float, float]  # threshold, a share of the diagonal -> F-score
    normal_consistency: float | None  # where both have normals
    diagonal: float  # in the units of the surfaces

    @property
    def chamfer(self) -> float:
        """The mean of both directions."""
        return (self.to_truth + self.from_truth) / 2


@dataclass(frozen=True)
class Sampled:
    """A surface as it is measured: points on it, its normals there, and what of it is nearest to other points."""

    points: Tensor  # (N, 3)
    normals: Tensor | None  # (N, 3)
    nearest: Callable[[Tensor], tuple[Tensor, Tensor | None]]  # (M, 3) -> distances (M,), normals there (M, 3)
    diagonal: float  # of its bounding box

    @staticmethod
    def of_mesh(mesh: Mesh, samples: int = SAMPLES) -> Sampled:
        """Raises ValueError for a mesh without any area."""
        points, normals = _sample(mesh, samples)
        solid = _with_area(mesh)
        distance = MeshDistance(solid)

        def nearest_to(others: Tensor) -> tuple[Tensor, Tensor]:
            found, faces, _ = distance.nearest(others)
            return found, distance.face_normals[faces].to(normals)

        corners = solid.vertices[solid.faces].reshape(-1, 3)
        return Sampled(points, normals, nearest_to, _diagonal(corners))

    @staticmethod
    def of_points(points: Tensor) -> Sampled:
        """Points (N, 3) as they are, without normals."""
        return Sampled(points, None, lambda others: (nearest(others, points)[0], None), _diagonal(points))

    def scores(self, truth: Sampled, thresholds: tuple[float, ...] = (0.01, 0.005)) -> SurfaceScores:
        """All measures of this surface by ``truth``; thresholds of F-scores are shares of the truth's diagonal."""
        (forward, true_normals), (backward, own_normals) = truth.nearest(self.points), self.nearest(truth.points)
        return SurfaceScores(
            float(forward.mean()) / truth.diagonal,
            float(backward.mean()) / truth.diagonal,
            {share: f_score_of(forward, backward, share * truth.diagonal) for share in thresholds},
            alignment(self.normals, true_normals, truth.normals, own_normals),
            truth.diagonal,
        )


def compare(
    mesh: Mesh, truth: Mesh | Tensor, *, thresholds: tuple[float, ...] = (0.01, 0.005), samples: int = SAMPLES
) -> SurfaceScores:
    """All measures of ``mesh`` by ``truth``, in the same frame and units, from ``samples`` points on each mesh.

    A truth of points (N, 3) is taken as it is, and tells nothing of normals. Raises ValueError for a mesh without any
    area.
    """
    true = Sampled.of_mesh(truth, samples) if isinstance(truth, Mesh) else Sampled.of_points(truth)
    return Sampled.of_mesh(mesh, samples).scores(true, thresholds)


def chamfer(a: Mesh | Tensor, b: Mesh | Tensor, *, samples: int = SAMPLES) -> float:
    """(mean d(a -> b) + mean d(b -> a)) / 2: "overall" of the DTU protocol, the mean of accuracy and completeness."""
    forward, backward = distances(a, b, samples=samples)
    return float(forward.mean() + backward.mean()) / 2


def f_score(a: Mesh | Tensor, b: Mesh | Tensor, threshold: float, *, samples: int = SAMPLES) -> float:
    """Harmonic mean of the shares of a within ``threshold`` of b (precision) and of b within it of a (recall).

    Source: Knapitsch et al., "Tanks and Temples", SIGGRAPH 2017.
    """
    return f_score_of(*distances(a, b, samples=samples), threshold)


def normal_consistency(a: Mesh, b: Mesh, *, samples: int = SAMPLES) -> float | None:
    """Mean |cosine| between the normals of samples and those of the other mesh where it is nearest, both ways.

    Source: Mescheder et al., "Occupancy Networks", CVPR 2019.
    """
    return compare(a, b, samples=samples).normal_consistency


def distances(a: Mesh | Tensor, b: Mesh | Tensor, *, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """d(a -> b) (N,) and d(b -> a) (M,) float64: accuracy and completeness, if a is judged by b."""
    points_a, points_b = (_sample(x, samples)[0] if isinstance(x, Mesh) else x for x in (a, b))
    return _distances(points_a, b), _distances(points_b, a)


def _distances(points: Tensor, other: Mesh | Tensor) -> Tensor:
    if isinstance(other, Mesh):
        return MeshDistance(_with_area(other)).nearest(points)[0]
    return nearest(points, other)[0]


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


def alignment(*normals: Tensor | None) -> float | None:
    """Normal consistency from the normals (N, 3) of a surface's samples, those of the other where it is nearest to
    them, and the same the other way round. None where a surface has none."""
    known = [x for x in normals if x is not None]
    if len(known) < len(normals):
        return None
    a, nearest_to_a, b, nearest_to_b = known
    forward, backward = ((x * y).sum(1).abs().double().mean() for x, y in ((a, nearest_to_a), (b, nearest_to_b)))
    return float(forward + backward) / 2


def _diagonal(points: Tensor) -> float:
    return float((points.amax(0) - points.amin(0)).double().norm())


def _sample(mesh: Mesh, samples: int) -> tuple[Tensor, Tensor]:
    return sample_surface(Mesh(mesh.vertices.cpu(), mesh.faces.cpu()), samples, torch.Generator().manual_seed(0))


def _with_area(mesh: Mesh) -> Mesh:
    """The triangles that have any: the others are no surface, and have no normal."""
    return Mesh(mesh.vertices.cpu(), mesh.faces.cpu()[face_areas(mesh).cpu() > 0])
