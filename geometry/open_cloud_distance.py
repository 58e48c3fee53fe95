"""Unsigned distances to the surface that points lie on, which may be open and need not say where its sides are.

Near the points it is the moving least squares of their tangent planes (Kolluri, "Provably good moving least squares",
2005), whose normals are turned towards that of the nearest point, so that no orientation is needed; farther off, the
distance to the nearest point. Planes go on where a surface ends: a place whose neighbours all lie to one side of it is
beyond the boundary, and its distance along the plane counts too.

Normals of bare points are those of the plane that fits their neighbours best (Hoppe et al., "Surface reconstruction
from unorganized points", 1992), of unknown sign.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .cloud_distance import NEIGHBORS, Neighborhoods
from .types import Points

CHUNK = 1 << 17  # points at a time
EDGE = (0.6, 0.8)  # how far the neighbours' mean lies to one side, per their mean distance; 2 / pi on the very edge


class OpenCloudDistance:
    """Unsigned distances to the surface of points (N, 3) with unit normals (N, 3) of either sign."""

    def __init__(self, points: Tensor, normals: Tensor) -> None:
        self._cloud = Neighborhoods("OpenCloudDistance", points, normals)

    def __call__(self, points: Tensor) -> Points:
        """points (N, 3) -> unsigned distances there and their gradients; on the CPU."""
        at = points.detach().cpu().double()
        if len(at) == 0:
            return Points(at.float(), at[:, 0].float(), at.float())
        _, away, normals, weights, far = self._cloud.around(at)
        normals = normals * (1 - 2 * ((normals * normals[:, :1]).sum(2, keepdim=True) < 0).double())
        height = (weights * (away * normals).sum(2)).sum(1)
        up = normalize((weights[..., None] * normals).sum(1), dim=1)
        along = away - (away * up[:, None]).sum(2, keepdim=True) * up[:, None]
        beyond = along.mean(1).norm(dim=1) / along.norm(dim=2).mean(1).clamp_min(1e-30)
        beyond = ((beyond - EDGE[0]) / (EDGE[1] - EDGE[0])).clamp(0, 1)
        side = beyond[:, None] * along[:, 0]
        vector = torch.where(far[:, None], away[:, 0], height[:, None] * up + side)
        length = vector.norm(dim=1)
        gradient = torch.where((length > 1e-12)[:, None], vector / length[:, None].clamp_min(1e-12), up)
        return Points(points.detach().cpu().float(), length.float(), gradient.float())


def estimate_normals(points: Tensor, neighbors: int = NEIGHBORS) -> Tensor:
    """points (N, 3) -> (N, 3) unit normals of the planes through so many neighbours of each point, of unknown sign."""
    from scipy.spatial import cKDTree

    at = points.detach().cpu().double()
    if len(at) <= neighbors:
        raise ValueError(f"estimate_normals: points: expected more than {neighbors}, got {len(at)}; sample denser")
    tree, normals = cKDTree(at.numpy()), []
    for part in at.split(CHUNK):
        _, index = tree.query(part.numpy(), k=neighbors + 1, workers=torch.get_num_threads())
        around = at[torch.from_numpy(index)]
        around = around - around.mean(1, keepdim=True)
        normals.append(torch.linalg.eigh(around.transpose(1, 2) @ around).eigenvectors[:, :, 0])
    return torch.cat(normals).to(points)
