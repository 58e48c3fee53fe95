"""Meshes of level sets of functions, coarse to fine: ``isosurface(function, bounds, resolution)``.

Blocks of the lattice that the level crosses are found from a coarse look and from each other (``sparse_blocks.py``),
and triangulated by marching cubes. Memory and evaluations grow with the surface, about resolution^2; the dense lattice
never exists.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..cuda.marching_cubes import marching_cubes_blocks
from .mesh_ops import vertex_normals
from .sparse_blocks import Function, OpenSurfaceWarning, crossed_blocks
from .types import Aabb, Mesh


def isosurface(
    function: Function,
    bounds: Aabb,
    resolution: int,
    level: float = 0.0,
    *,
    inside_is_above: bool = False,
    occupied: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 0.5,
    gradient_normals: bool = True,
    chunk: int = 2**18,
    max_bytes: int = 2**31,
) -> Mesh:
    """The surface function = level inside ``bounds``, as a mesh in world units, on the device of the bounds.

    Args:
        function: points (N, 3) -> values (N,); called without gradients, with at most ``chunk`` points.
        bounds: where to look. The lattice fits it exactly, so cells may be a little shorter along its shorter edges.
        resolution: cells along the longest edge; rounded up to whole blocks.
        level: where to cut.
        inside_is_above: False for distances (outside = above the level), True for densities.
        occupied: block centres (B, 3) and half size (3,) -> (B,) bool, where the surface may be (an occupancy grid,
            say); nothing else is looked at, unless the surface leads there. By default everywhere.
        margin: a block is dropped when the level lies further outside the values of its 27 coarse samples than this
            share of their range. 0.5 is safe for distances; details thinner than half a block of other functions may
            need more, or ``occupied`` and 2 or more; inf = there is no coarse look, ``occupied`` alone decides.
        gradient_normals: normals from the function's central differences (6 evaluations per vertex), else from faces.
        chunk: points per call.
        max_bytes: cap on the memory of the blocks that hold the surface.

    Returns:
        A Mesh with normals that point outside; closed, unless it meets the bounds (then an OpenSurfaceWarning tells).

    Raises:
        ValueError: the function takes the level nowhere, or returns NaN or another shape, or the blocks exceed the cap.
    """
    with torch.no_grad():
        options: dict[str, Any] = dict(occupied=occupied, margin=margin, chunk=chunk, max_bytes=max_bytes)
        blocks = crossed_blocks(function, bounds, resolution, level, **options)
        coordinates = blocks.coordinates[: blocks.count]
        vertices, faces = marching_cubes_blocks(blocks.values[: blocks.count], coordinates, level)
        if blocks.is_open:
            warnings.warn(
                "isosurface: the surface meets the bounds and is cut open there", OpenSurfaceWarning, stacklevel=2
            )
        vertices, faces = blocks.to_world(vertices), faces.long()
        mesh = Mesh(vertices, faces.flip(1).contiguous() if inside_is_above else faces)
        normals = vertex_normals(mesh)
        if gradient_normals:
            gradient = blocks.gradient(vertices) * (-1 if inside_is_above else 1)
            length = gradient.norm(dim=1, keepdim=True)
            normals = torch.where((length > 1e-12) & length.isfinite(), gradient / length, normals)
    return replace(mesh, normals=normals)
