"""Distances to the surface that oriented points lie on.

Near the points it is the implicit moving least squares of their planes (Kolluri, "Provably good moving least squares",
2005): f(x) = sum_i w_i (x - p_i) . n_i / sum_i w_i, with Gaussian weights as wide as the points are apart. Farther off
it is the distance to the nearest point, negative where the generalized winding number of the points exceeds one half
(Barill et al., "Fast winding numbers for soups and clouds", 2018): each is a triangle across its normal, of the area
that its neighbours leave it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .types import Points

NEIGHBORS = 12
NEAR = 2.0  # spacings from the points: nearer, their planes count


class CloudDistance:
    """Signed distances to the surface of points (N, 3) with unit normals (N, 3) that point outwards."""

    def __init__(self, points: Tensor, normals: Tensor) -> None:
        import igl

        self._cloud = cloud = Neighborhoods("CloudDistance", points, normals)
        self._winding: Any = igl.FastWindingNumberBVH()
        soup = _triangles(cloud.points, cloud.normals, cloud.spacings.square()).view(-1, 3).contiguous()
        self._winding.init(soup.numpy(), torch.arange(len(soup)).view(-1, 3).numpy())

    def __call__(self, points: Tensor) -> Points:
        """points (N, 3) -> signed distances there, negative inside, and their gradients; on the CPU."""
        at = points.detach().cpu().double()
        if len(at) == 0:
            return Points(at.float(), at[:, 0].float(), at.float())
        distances, away, normals, weights, far = self._cloud.around(at)
        planes = (weights * (away * normals).sum(2)).sum(1)
        sign = torch.ones(len(at), dtype=torch.float64)
        if bool(far.any()):
            number = self._winding.winding_number(at[far].contiguous().numpy())
            sign[far] = 1 - 2 * (torch.from_numpy(number) > 0.5).double()
        gradient = normalize(
            torch.where(far[:, None], away[:, 0] * sign[:, None], (weights[..., None] * normals).sum(1)), dim=1
        )
        return Points(
            points.detach().cpu().float(), torch.where(far, distances * sign, planes).float(), gradient.float()
        )


class Neighborhoods:
    """Points (N, 3) with unit normals (N, 3), and for each how far it is from the next: the root of its area."""

    def __init__(self, op: str, points: Tensor, normals: Tensor) -> None:
        from scipy.spatial import cKDTree

        if len(points) <= NEIGHBORS:
            raise ValueError(f"{op}: points: expected more than {NEIGHBORS}, got {len(points)}; sample denser")
        self.points, self.normals = points.cpu().double(), normals.cpu().double()
        self._tree = cKDTree(self.points.numpy())
        reach, _ = self._tree.query(self.points.numpy(), k=[NEIGHBORS + 1], workers=torch.get_num_threads())
        self.spacings = math.sqrt(math.pi / NEIGHBORS) * torch.from_numpy(reach)[:, 0]

    def around(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of places (M, 3): distances to the nearest point (M,); the way from each of the K nearest (M, K, 3), their
        normals (M, K, 3) and weights (M, K), which add up to 1; and whether planes no longer count there (M,)."""
        found = self._tree.query(at.numpy(), k=NEIGHBORS, workers=torch.get_num_threads())
        distances, index = (torch.from_numpy(x) for x in found)
        width = self.spacings[index[:, :1]]
        # The nearest one's weight is 1, so that far from all points weights do not vanish.
        weights = torch.exp((distances[:, :1].square() - distances.square()) / width.square())
        weights = weights / weights.sum(1, keepdim=True)
        far = distances[:, 0] > NEAR * width[:, 0]
        return distances[:, 0], at[:, None] - self.points[index], self.normals[index], weights, far


def _triangles(points: Tensor, normals: Tensor, areas: Tensor) -> Tensor:
    """(N, 3, 3): an equilateral triangle about each point, of its area, counter-clockwise seen from its normal."""
    least = torch.nn.functional.one_hot(normals.abs().argmin(1), 3).to(normals)
    across = normalize(torch.linalg.cross(normals, least), dim=1)
    along = torch.linalg.cross(normals, across)
    radius = (areas * 4 / (3 * math.sqrt(3))).sqrt()
    turns = [2 * math.pi * k / 3 for k in range(3)]
    sides = torch.stack([math.cos(t) * across + math.sin(t) * along for t in turns], 1)
    return points[:, None] + radius[:, None, None] * sides
