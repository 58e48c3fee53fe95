"""How close two surfaces are: Chamfer distance, F-score, normal consistency.

Protocol: meshes are replaced by SAMPLES points spread uniformly by area, from a fixed seed; point sets (N, 3) are taken
as they are. d(a -> b) is the distance from each point of a to the nearest point of b, not squared, in the units of the
input. So a finite number of samples leaves a floor: two samplings of one surface of area A and N points each are about
0.5 sqrt(A / N) apart. Nothing is cropped, masked, aligned or thinned here: do that before, and say so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .mesh_ops import sample_surface
from .types import Mesh

SAMPLES = 200_000


def chamfer(a: Mesh | Tensor, b: Mesh | Tensor, *, samples: int = SAMPLES) -> float:
    """(mean d(a -> b) + mean d(b -> a)) / 2: "overall" of the DTU protocol, the mean of accuracy and completeness."""
    forward, backward = distances(a, b, samples=samples)
    return float(forward.mean() + backward.mean()) / 2


def f_score(a: Mesh | Tensor, b: Mesh | Tensor, threshold: float, *, samples: int = SAMPLES) -> float:
    """Harmonic mean of the shares of a within ``threshold`` of b (precision) and of b within it of a (recall).

    Source: Knapitsch et al., "Tanks and Temples", SIGGRAPH 2017.
    """
    forward, backward = distances(a, b, samples=samples)
    precision, recall = float((forward <= threshold).double().mean()), float((backward <= threshold).double().mean())
    return 2 * precision * recall / max(precision + recall, 1e-12)


def normal_consistency(a: Mesh, b: Mesh, *, samples: int = SAMPLES) -> float:
    """Mean |cosine| between the normals of samples and of their nearest samples on the other mesh, both ways.

    Source: Mescheder et al., "Occupancy Networks", CVPR 2019.
    """
    (points_a, normals_a), (points_b, normals_b) = _sample(a, samples), _sample(b, samples)
    _, nearest_b = nearest(points_a, points_b)
    _, nearest_a = nearest(points_b, points_a)
    forward = (normals_a * normals_b[nearest_b]).sum(1).abs().double().mean()
    backward = (normals_b * normals_a[nearest_a]).sum(1).abs().double().mean()
    return float(forward + backward) / 2


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


def _sample(mesh: Mesh, samples: int) -> tuple[Tensor, Tensor]:
    return sample_surface(mesh.to("cpu"), samples, torch.Generator().manual_seed(0))
