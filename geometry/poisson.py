"""Closed surfaces through oriented points: screened Poisson reconstruction, by Open3D, cut back where no points are.

A function is sought whose gradient is the points' normals, near them, and which is zero at the points; its zero level
is smooth, averages what is noisy, and goes on where nothing was seen. What few points support is dropped afterwards.

Source: Kazhdan & Hoppe, "Screened Poisson Surface Reconstruction", ACM Transactions on Graphics 2013.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .mesh_ops import interpolate, keep_faces, with_colors
from .types import Mesh, Points

LEAST = 0.1  # of the length of a mean of normals: shorter, they contradict each other
SPACING = 0.5  # cells: of points nearer to each other there is one, so that densities say what was seen, not how often


def poisson_mesh(points: Points, cell: float, *, colors: Tensor | None = None, trim: float = 1.5) -> Mesh:
    """The surface that oriented points lie on.

    Args:
        points: positions (N, 3) and normals (N, 3) of any length, outwards; on any device.
        cell: edge of the finest cells, in the points' units.
        colors: (N, 3) in [0, 1], of the points; the mesh has them then.
        trim: the surface goes where points are 4^trim times sparser than in the median; 0 keeps all of it, closed.

    Returns:
        A Mesh with normals, on the points' device; without triangles if all of it is trimmed.

    Raises:
        ValueError: no normals, numbers that are not finite, fewer than 4 points, a cell or trim that makes no sense.
        ImportError: without Open3D.
    """
    _check(points, cell, colors, trim)
    o3d = open3d_module()
    cloud = o3d.geometry.PointCloud()
    cloud.points = o3d.utility.Vector3dVector(_array(points.positions))
    assert points.normals is not None
    cloud.normals = o3d.utility.Vector3dVector(_array(normalize(points.normals, dim=1)))
    if colors is not None:
        cloud.colors = o3d.utility.Vector3dVector(_array(colors))
    cloud = cloud.voxel_down_sample(SPACING * cell)
    normals = _tensor(cloud.normals)
    lengths = normals.norm(dim=1)
    cloud.normals = o3d.utility.Vector3dVector(_array(normals / lengths.clamp_min(1e-12)[:, None]))
    agreed = (lengths > LEAST).nonzero()[:, 0]
    if len(agreed) < 4:
        raise ValueError(f"poisson_mesh: points: expected at least 4 in different cells, got {len(agreed)}; lower cell")
    cloud = cloud.select_by_index(agreed.tolist())
    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        found, support = o3d.geometry.TriangleMesh.create_from_point_cloud_poisson(
            cloud, width=cell, n_threads=torch.get_num_threads()
        )
    mesh = Mesh(_tensor(found.vertices).float(), torch.tensor(_numpy(found.triangles)).long())
    if len(mesh.faces) == 0:
        raise ValueError("poisson_mesh: points: expected some that a surface goes through, got none; check the normals")
    mesh = replace(mesh, normals=normalize(_tensor(found.vertex_normals).float(), dim=1))
    if trim > 0:
        levels = torch.tensor(_numpy(support))
        mesh = keep_faces(mesh, (levels >= levels.median() - trim)[mesh.faces].all(1))
    if colors is not None:  # Open3D's own are those of large cells
        near = interpolate(_tensor(cloud.points), _tensor(cloud.colors), mesh.vertices.double())
        mesh = with_colors(mesh, near.float())
    return mesh.to(points.positions.device)


def _check(points: Points, cell: float, colors: Tensor | None, trim: float) -> None:
    if points.normals is None:
        raise ValueError(
            "poisson_mesh: points: expected normals, got points alone, which do not tell the inside from the outside; "
            "estimate normals (MeshLab, CloudCompare) that point outwards"
        )
    for name, values in (("positions", points.positions), ("normals", points.normals), ("colors", colors)):
        if values is None:
            continue
        if values.shape != (len(points), 3):
            raise ValueError(f"poisson_mesh: {name}: expected ({len(points)}, 3), got {tuple(values.shape)}")
        if not bool(values.isfinite().all()):
            raise ValueError(f"poisson_mesh: {name}: expected finite numbers, got NaN or infinity; drop those points")
    if not (cell > 0 and trim >= 0):
        raise ValueError(f"poisson_mesh: cell, trim: expected cell > 0 and trim >= 0, got {cell} and {trim}")


def open3d_module() -> Any:
    """Raises ImportError, with the remedy, where it cannot be used."""
    try:
        import open3d
    except (ImportError, OSError) as error:  # OSError: a library of the system's is missing
        raise ImportError(
            f'poisson_mesh: expected Open3D, got {error}; install it with pip install "polyfield[poisson]"'
        ) from error
    return open3d


def _array(values: Tensor) -> Any:
    return values.detach().cpu().double().numpy()


def _numpy(values: Any) -> Any:
    import numpy as np

    return np.asarray(values)


def _tensor(values: Any) -> Tensor:
    """(N, 3) float64 of Open3D's vectors."""
    return torch.tensor(_numpy(values)).view(-1, 3)
