"""Meshes of runs, in the scene's frame: by level sets, zero sets, fused depths, or through oriented points."""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..datasets.point_files import read_oriented
from ..fields.protocols import Distance, Primitives
from ..geometry import Aabb, Camera, Mesh
from ..geometry.depth_fusion import blocks_with, fuse_depths
from ..geometry.dual_contouring import dual_contour
from ..geometry.dual_mesh import dual_mesh
from ..geometry.isosurface import isosurface
from ..geometry.mesh_ops import with_colors
from ..geometry.poisson import open3d_module, poisson_mesh
from ..geometry.pseudo_signs import pseudo_sign_mesh
from ..geometry.sparse_blocks import OpenSurfaceWarning
from ..renderers.splat import SplatRenderer
from .devices import CPU, free_memory
from .errors import UserError
from .oriented_points import oriented_points
from .tracing import orbit_around

ELEVATIONS, AROUND = (-0.6, -0.1, 0.4, 0.9, 1.4), 16  # radians; cameras at each
RAYS = 24  # per cell of a box's face: of what Poisson reconstruction goes by


def zero_set(run: Any, bounds: Aabb, resolution: int, *, signs: bool = False) -> Mesh:
    """The zero set of an unsigned distance by dual contouring, or by marching cubes with ``signs`` from gradients."""

    def ask(points: Tensor) -> tuple[Tensor, Tensor]:
        output = run.field.query(points, gradients=True)
        return output.values, output.gradients

    most = int(0.8 * free_memory(run.device))
    return (pseudo_sign_mesh if signs else dual_mesh)(ask, bounds, resolution, max_bytes=most)


def fused_views(run: Any, bounds: Aabb, resolution: int, cascades: int = 1) -> Mesh:
    """The surface that the depths of the training views show, once rendered; with their colours, scene frame."""
    cameras = _cameras(run)
    draw = run.renderer.render
    if isinstance(run.renderer, SplatRenderer):
        draw = partial(draw, median_depths=True)
    views = (draw(run.field, camera).pixels for camera in cameras)
    return fuse_depths(cameras, views, bounds, float(bounds.extent.max()) / resolution, cascades=cascades)


def _cameras(run: Any) -> list[Camera]:
    """Of the training views; of a file of Gaussians, which has none, all around the region of interest."""
    if run.has_photographs:
        return [frame.camera for frame in run.scene().train]
    up = torch.tensor(run.asked.facts.up)
    return [camera for angle in ELEVATIONS for camera in orbit_around(up, AROUND, elevation=angle)]


def through_views(run: Any, bounds: Aabb, resolution: int, trim: float) -> Mesh:
    """The surface through the points that training views see, by screened Poisson reconstruction; with colours."""
    _need_open3d()
    points, colors = oriented_points(run, bounds, RAYS * resolution**2)
    return poisson_mesh(points, float(bounds.extent.max()) / resolution, colors=colors, trim=trim)


def through_file(path: Path, resolution: int, crop: Aabb | None, trim: float) -> Mesh:
    """The same through the oriented points of a file, in its own units; with colours, if it has them."""
    _need_open3d()
    points, colors = read_oriented(path)
    if crop is not None:
        inside = crop.contains(points.positions)
        points, colors = points[inside], None if colors is None else colors[inside]
        if len(points) == 0:
            raise UserError("extract: --crop: expected a box with some of the points inside, got none; enlarge it")
    extent = float((points.positions.amax(0) - points.positions.amin(0)).max())
    return poisson_mesh(points, extent / resolution, colors=colors, trim=trim)


def _need_open3d() -> None:
    """Before anything takes time."""
    try:
        open3d_module()
    except ImportError as error:
        raise UserError(f"extract: {error}") from error


def level_set(
    run: Any, bounds: Aabb, resolution: int, level: float | None, *, cut: bool = False, sharp: bool = False
) -> Mesh:
    """The level set of the density, scene frame; looked for where the occupancy grid or the Gaussians' means are.

    Of a distance, ``sharp``: by dual contouring.
    """
    cell = float(bounds.extent.max()) / resolution
    distances = isinstance(run.field, Distance)
    level = (0.0 if distances else math.log(2) / (2 * cell)) if level is None else level
    occupancy = getattr(run.renderer, "occupancy", None)  # of ray marchers
    options: dict[str, Any] = {}
    if isinstance(run.field, Primitives):
        occupied = blocks_with([run.field.gaussians().means.detach()], bounds, resolution)
        options = {} if occupied is None else dict(occupied=occupied, margin=math.inf)

    @torch.no_grad()
    def values_at(points: Tensor) -> Tensor:
        """Densities are zero in empty space, where nothing has taught the field, and it need not be asked."""
        if occupancy is None or distances:
            return run.field.query(points).values
        filled = occupancy.occupied(points).nonzero()[:, 0]
        values = points.new_zeros(len(points))
        values[filled] = run.field.query(points[filled]).values
        return values

    with warnings.catch_warnings():
        if cut:  # a surface that a crop cuts open is what was asked for
            warnings.simplefilter("ignore", OpenSurfaceWarning)
        if sharp:
            # A grid's own gradients jump between its cells, and vertices with them.
            return dual_contour(values_at, None, bounds, resolution, level, step=0.5, flat=0.1)
        return isosurface(values_at, bounds, resolution, level, inside_is_above=not distances, **options)


def colored(run: Any, mesh: Mesh) -> Mesh:
    """A mesh in the scene's frame with the field's colours, if it has any, seen along the normals."""
    with torch.no_grad():
        directions = -mesh.normals if mesh.normals is not None else torch.zeros_like(mesh.vertices)
        colors = run.field.query(mesh.vertices.to(run.device), directions.to(run.device)).colors
    return mesh if colors is None else with_colors(mesh, colors.to(CPU))
