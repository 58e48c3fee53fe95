"""A shape in a file, as a scene without photographs: a mesh, or points with or without normals.

Its bounding box is taken to the middle of the region of interest [-1, 1]^3 by a shift and a scale. Meshes are read from
.obj, .ply, .glb, .gltf and .stl, points from .ply (x y z nx ny nz) and from .xyz (text, the same six numbers a line).
A signed distance needs a closed mesh or points with normals; an unsigned one takes any triangles and any points.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..geometry.cloud_distance import NEIGHBORS, CloudDistance
from ..geometry.mesh_cleaning import clean, faults
from ..geometry.mesh_distance import MeshDistance
from ..geometry.mesh_io import READABLE, load_mesh
from ..geometry.mesh_ops import boundary_edges, sample_surface, transform
from ..geometry.open_cloud_distance import OpenCloudDistance, estimate_normals
from ..geometry.splat_files._ply_elements import columns, read_elements
from ..geometry.splat_io import SplatError
from ..geometry.transforms import similarity_inverse, transform_points
from ..geometry.types import Aabb, Mesh, Points
from .normalize import Placement
from .point_files import holds_points
from .scene import Scene, SceneError

FILLS = 0.85  # of the region of interest, along the box's longest edge
ENDINGS = (*READABLE, ".xyz")
PROBES = 20_000  # places around a repaired mesh where an inside is looked for


def load_shape(path: Path, *, repair: bool = False, signed: bool = True) -> Scene:
    """The shape in a file; ``notes`` of the scene say what was changed in it.

    Args:
        path: a file with one of ENDINGS.
        repair: take a mesh that encloses no inside, as winding numbers fill it.
        signed: whether it must have an inside.

    Raises:
        SceneError: no such file, or a damaged one; no triangles and no points; numbers that are not finite. Of signed
            distances alone: a mesh with holes, edges of more than two faces or sides that cannot be told apart, unless
            it is to be repaired; a mesh that encloses nothing even so; points without normals.
    """
    if path.suffix.lower() not in ENDINGS:
        raise SceneError(f"{path}: expected a file ending with {', '.join(ENDINGS)}, got {path.suffix!r}; convert it")
    if not path.is_file():
        raise SceneError(f"{path}: expected a file with a mesh or points, found none; check the path")
    try:
        if path.suffix.lower() == ".xyz":
            return _cloud(path, _text(path), signed)
        if holds_points(path):
            return _cloud(path, _ply(path), signed)
        return _mesh(path, repair, signed)
    except (SplatError, OSError) as error:
        raise SceneError(str(error)) from error


def surface_of(scene: Scene, *, rim: float = 0.0) -> Callable[[int, torch.Generator], Points]:
    """Draws so many points of a shape's surface, with normals, from a generator; ``rim`` of them on its boundary."""

    def of_mesh(count: int, generator: torch.Generator) -> Points:
        assert scene.mesh is not None
        positions, normals = sample_surface(Mesh(scene.mesh.vertices, scene.mesh.faces), count, generator)
        edges = scene.mesh.vertices[boundary_edges(scene.mesh.faces)] if rim > 0 else positions[:0]
        if len(edges):
            chosen = torch.rand(count, generator=generator) < rim
            weights = (edges[:, 0] - edges[:, 1]).norm(dim=1)
            which = torch.multinomial(weights.float(), int(chosen.sum()), True, generator=generator)
            share = torch.rand(len(which), 1, generator=generator)
            positions[chosen] = torch.lerp(edges[which, 0], edges[which, 1], share.to(edges)).to(positions)
        return Points(positions, torch.zeros(count), normals)

    def of_points(count: int, generator: torch.Generator) -> Points:
        assert scene.points is not None and scene.point_normals is not None
        index = torch.randint(len(scene.points), (count,), generator=generator)
        return Points(scene.points[index].float(), torch.zeros(count), scene.point_normals[index].float())

    return of_points if scene.mesh is None else of_mesh


def truth_of(scene: Scene, *, signed: bool = True) -> Callable[[Tensor], Points]:
    """Tells positions (N, 3) their distances to a shape's surface; both in the scene's frame."""
    if scene.mesh is not None:
        return MeshDistance(scene.mesh, winding=signed and bool(faults(scene.mesh)), signed=signed)
    assert scene.points is not None and scene.point_normals is not None
    return (CloudDistance if signed else OpenCloudDistance)(scene.points, scene.point_normals)


def _mesh(path: Path, repair: bool, signed: bool) -> Scene:
    try:
        mesh = load_mesh(path)
    except ValueError as error:
        raise SceneError(str(error)) from error
    cleaned = clean(Mesh(mesh.vertices, mesh.faces))
    found, notes = cleaned.faults, [f"{path.name}: {', '.join(cleaned.changes)}"] if cleaned.changes else []
    if len(cleaned.mesh.faces) == 0:
        raise SceneError(f"{path}: expected triangles with an area, got only degenerate ones; export the mesh again")
    if found and signed and not repair:
        raise SceneError(
            f"{path}: expected a closed mesh, which has an inside, got {', '.join(found)}; close it in a mesh editor, "
            "let winding numbers say what is inside with --repair, or fit an unsigned distance with --field udf"
        )
    placement = _placement(path, cleaned.mesh.vertices)
    moved = transform(cleaned.mesh, similarity_inverse(placement.scene_to_world))
    if found and signed:
        notes.append(f"{path.name}: {', '.join(found)}: winding numbers say what is inside")
        _check_inside(path, moved)
    return Scene(path.stem, (), placement.scene_to_world, Aabb.cube(), mesh=moved, source=path, notes=tuple(notes))


def _check_inside(path: Path, mesh: Mesh) -> None:
    """Raises SceneError if winding numbers find no inside."""
    generator = torch.Generator().manual_seed(0)
    near = sample_surface(mesh, PROBES, generator)[0] + 0.02 * torch.randn(PROBES, 3, generator=generator)
    found = MeshDistance(mesh, winding=True)(torch.cat([near, 2 * torch.rand(PROBES, 3, generator=generator) - 1]))
    assert found.distances is not None
    inside = float((found.distances < 0).float().mean())
    if inside < 1e-3:
        raise SceneError(
            f"{path}: expected a mesh that encloses something, got one that winding numbers find no inside of; close "
            "it in a mesh editor"
        )


def _cloud(path: Path, rows: np.ndarray, signed: bool) -> Scene:
    """rows (N, 6) or, without normals, (N, 3)."""
    bare = rows.shape[1] < 6
    if bare and signed:
        raise SceneError(
            f"{path}: expected points with normals (x y z nx ny nz), got points alone, which do not tell the inside "
            "from the outside; estimate normals (MeshLab, CloudCompare), mesh the points first, or fit an unsigned "
            "distance with --field udf"
        )
    if not np.isfinite(rows).all():
        lost = int((~np.isfinite(rows)).any(1).sum())
        raise SceneError(f"{path}: expected finite points and normals, got {lost} that are not; remove them")
    points = torch.from_numpy(rows[:, :3].copy())
    normals = None if bare else torch.from_numpy(rows[:, 3:6].copy())
    kept = _first_of_each(points)
    if normals is not None:
        kept &= normals.norm(dim=1) > 1e-6
    what = "duplicates" if bare else "duplicates or points with a normal of zero"
    notes = [] if bool(kept.all()) else [f"{path.name}: {int((~kept).sum())} {what} dropped"]
    points = points[kept]
    if len(points) <= NEIGHBORS:
        raise SceneError(f"{path}: expected more than {NEIGHBORS} different points, got {len(points)}; sample denser")
    placement = _placement(path, points)
    if normals is None:
        normals = estimate_normals(points)
        notes.append(f"{path.name}: points without normals: those of planes through their neighbours are used")
    else:
        normals = normalize(normals[kept], dim=1)
    moved = transform_points(similarity_inverse(placement.scene_to_world), points)
    return Scene(
        path.stem,
        (),
        placement.scene_to_world,
        Aabb.cube(),
        points=moved,
        point_normals=normals,
        source=path,
        notes=tuple(notes),
    )


def _first_of_each(points: Tensor) -> Tensor:
    """(N,) bool: False where an earlier point is on the same place."""
    _, place = points.unique(dim=0, return_inverse=True)
    first = torch.full((int(place.max()) + 1 if len(place) else 0,), len(points))
    first.scatter_reduce_(0, place, torch.arange(len(points)), "amin")
    return torch.zeros(len(points), dtype=torch.bool).index_fill_(0, first, True)


def _ply(path: Path) -> np.ndarray:
    rows = read_elements(path).get("vertex")
    if rows is None or len(rows) == 0:
        raise SceneError(f"{path}: expected triangles or points, got none; export it again")
    names = ["x", "y", "z"]
    if {"nx", "ny", "nz"} <= set(rows.dtype.names or ()):
        names += ["nx", "ny", "nz"]
    return columns(path, rows, names, np.float64)


def _text(path: Path) -> np.ndarray:
    try:
        rows = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise SceneError(f"{path}: expected lines of x y z nx ny nz, got something else ({error}); check it") from error
    if rows.shape[1] < 3 or len(rows) == 0:
        raise SceneError(f"{path}: expected lines of x y z nx ny nz, got {rows.shape[1]} columns; check it")
    return rows


def _placement(path: Path, vertices: Tensor) -> Placement:
    low, high = vertices.double().amin(0), vertices.double().amax(0)
    longest = float((high - low).amax())
    if longest <= 0:
        raise SceneError(f"{path}: expected a shape with an extent, got a single place; check the file")
    return Placement((low + high) / 2, longest / 2 / FILLS)
