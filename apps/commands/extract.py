"""Extract a mesh from a run, with vertex colours or a texture, in the scene's own units.

Fields of density and signed distances: their level set, of signed distances by dual contouring if sharp edges are to be
kept. Unsigned distances: their zero set, by dual contouring.
Gaussians: the depths of all training views, rendered and fused, since their density is not smooth; or the level set of
the mixture's density.
"""

from __future__ import annotations

import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import UserError
from ..parse import parse
from ..texture_source import TextureSource

MESH_ENDINGS = (".glb", ".obj", ".ply")
CRUMBS = 1e-3  # of the triangles: smaller parts of a fitted shape are errors of the fit


class Method(Enum):
    """Where a surface is taken to be."""

    TSDF = "tsdf"
    """Where the rendered depths of the training views say, on average."""
    OPACITY = "opacity"
    """Where the density, or the signed distance, has a level."""
    DUAL = "dual"
    """Where a distance is zero, by its tangent planes: sharp edges stay (dual contouring; unsigned: DualMesh-UDF)."""
    PSEUDO_SIGNS = "pseudo-signs"
    """The same by marching cubes, gradients giving the signs (MeshUDF): coarser at boundaries and edges."""


def main(arguments: list[str]) -> None:
    parse(run, "extract", arguments)


def run(
    run: Annotated[Path, tyro.conf.Positional],
    output: Path | None = None,
    method: Method | None = None,
    resolution: int = 256,
    level: float | None = None,
    crop: tuple[float, float, float, float, float, float] | None = None,
    cascades: int = 1,
    components: int | None = None,
    target_faces: int | None = None,
    texture: int | None = None,
    texture_from: TextureSource = TextureSource.FIELD,
    normal_map: bool = False,
    device: str = "auto",
) -> None:
    """Write RUN's surface to a .glb, .ply or .obj file.

    Args:
        run: folder that ``polyfield fit`` made.
        output: the mesh file; by default RUN/mesh.glb.
        method: tsdf fuses rendered depths, opacity is the density's (or signed distance's) level set by marching cubes,
            dual that of a distance by dual contouring, which keeps sharp edges, pseudo-signs the zero set of an
            unsigned distance; by default tsdf for Gaussians, dual for unsigned distances, and else opacity.
        resolution: cells along the longest edge of the box that is searched.
        level: density per scene unit (or distance) at the surface; by default half opaque within two cells (or 0).
        crop: low x y z and high x y z of a box, in the scene's own units; by default the innermost cube of the scene.
        cascades: boxes, each twice the size of the one before and half as fine, for what lies around (tsdf).
        components: keep this many of the largest connected parts (of what the crop leaves); 0 keeps all, as do
            several cascades, whose meshes are not connected; by default 1, of a run of a shape all
            but those of less than a thousandth of the triangles.
        target_faces: decimate to about this many triangles.
        texture: texels along each side of a texture, instead of colours of vertices; .glb holds it, beside an .obj
            lie .mtl and .png. Laying out the mesh takes about 30 s per 100,000 triangles: see --target-faces.
        normal_map: with --texture, the directions of the field's gradients as a normal map: for decimated meshes.
        texture_from: what the texture shows: the field, or the photographs, blended by how well they see each point.
        device: auto (the GPU if it can be used), cpu, cuda or cuda:N.
    """
    from ...geometry.mesh_io import save_mesh
    from ..devices import enough_memory
    from ..run import open_run

    output = output or run / "mesh.glb"
    if output.suffix.lower() not in MESH_ENDINGS:
        raise UserError(
            f"extract: --output: expected a file ending with {', '.join(MESH_ENDINGS)}, got {output}; rename it"
        )
    if texture is not None:
        _check_textured(output, texture)
    elif normal_map:
        raise UserError("extract: --normal-map: expected --texture as well, got none; say how large, as --texture 2048")
    opened = open_run(run, device)
    with warnings.catch_warnings(), enough_memory("extract", opened.device, "lower --resolution or --crop"):
        warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
        mesh = extract_mesh(
            opened,
            method=method,
            resolution=resolution,
            level=level,
            crop=crop,
            cascades=cascades,
            components=components,
            target_faces=target_faces,
        )
    try:
        files = [output]
        if texture is None:
            save_mesh(mesh, output)
        else:
            files = _save_textured(opened, mesh, output, texture, texture_from, normal_map)
    except OSError as error:
        raise UserError(f"extract: --output: {output} could not be written ({error}); choose another file") from error
    low, high = mesh.vertices.min(0).values, mesh.vertices.max(0).values
    size = " x ".join(f"{x:.3g}" for x in (high - low).tolist())
    names = ", ".join(map(str, files))
    print(f"{len(mesh.vertices)} vertices, {len(mesh.faces)} triangles, {size} in the scene's units: {names}")


def _check_textured(output: Path, size: int) -> None:
    """Before anything takes time."""
    from ...geometry.textured_mesh import ENDINGS
    from ..texturing import check_texture

    check_texture(size)
    if output.suffix.lower() not in ENDINGS:
        raise UserError(
            f"extract: --output: expected a file ending with {' or '.join(ENDINGS)} for a texture, got {output}; "
            "rename it, or leave --texture out"
        )


def _save_textured(run: Any, mesh: Any, output: Path, size: int, source: TextureSource, normal_map: bool) -> list[Path]:
    from ...geometry.textured_mesh import save_textured
    from ..devices import enough_memory
    from ..texturing import texture_mesh

    print(f"laying out {len(mesh.faces)} triangles and baking {size} x {size} texels from the {source.value} ...")
    with enough_memory("extract", run.device, "ask for a smaller --texture"):
        textured = texture_mesh(run, mesh, size, source, normal_map=normal_map)
        return save_textured(textured, output)


def extract_mesh(
    run: Any,
    *,
    method: Method | None = None,
    resolution: int = 256,
    level: float | None = None,
    crop: tuple[float, float, float, float, float, float] | None = None,
    cascades: int = 1,
    components: int | None = None,
    target_faces: int | None = None,
) -> Any:
    """The same for an open run; returns the Mesh in the scene's own units, on the CPU.

    Raises UserError for options that make no sense, and where there is no surface.
    """
    from ...geometry.mesh_ops import largest_components, simplify, transform
    from ..devices import CPU

    for name, value, least in (
        ("resolution", resolution, 8),
        ("cascades", cascades, 1),
        ("components", components, 0),
        ("target-faces", target_faces, 4),
    ):
        if value is not None and value < least:
            raise UserError(f"extract: --{name}: expected at least {least}, got {value}")
    method = _method(run, method, level)
    to_world = run.asked.facts.matrix
    bounds = _bounds(crop, to_world, float(run.field.bounds.high.max())).to(run.device)
    try:
        if method is Method.TSDF:
            mesh = fused_views(run, bounds, resolution, cascades).to(CPU)
        elif method is Method.OPACITY or run.field.signed:
            sharp = method is Method.DUAL
            mesh = level_set(run, bounds, resolution, level, cut=crop is not None, sharp=sharp).to(CPU)
        else:
            mesh = zero_set(run, bounds, resolution, method).to(CPU)
    except ValueError as error:
        raise UserError(f"extract: {error}") from error
    if crop is not None:
        mesh = _cropped(mesh, crop, to_world)
    if cascades == 1:  # boxes are not stitched: the largest part would be that of one of them
        by_default = (0, CRUMBS) if run.of_shape else (1, 0.0)
        count, share = by_default if components is None else (components, 0.0)
        mesh = largest_components(mesh, count, min_fraction=share)
    if target_faces is not None:
        mesh = simplify(mesh, target_faces)
    if mesh.colors is None:
        mesh = _colored(run, mesh)
    return transform(mesh, to_world)


def _method(run: Any, method: Method | None, level: float | None) -> Method:
    """The one that is asked for, or else the best for the run's field. Raises UserError for one that does not fit."""
    from ...fields.protocols import Distance, Primitives

    unsigned = not getattr(run.field, "signed", True)
    if method is None:
        by_default = Method.DUAL if unsigned and level is None else Method.OPACITY
        method = Method.TSDF if isinstance(run.field, Primitives) else by_default
    leveled = method is Method.OPACITY or (method is Method.DUAL and not unsigned)
    if not leveled and level is not None:
        raise UserError(
            f"extract: --level: expected --method opacity as well, got {method.value}, which has no level; drop one"
        )
    if method is Method.PSEUDO_SIGNS and not unsigned:
        raise UserError(
            f"extract: --method: {method.value} expected a run of an unsigned distance, got {run.asked.recipe}; drop it"
        )
    if method is Method.DUAL and not isinstance(run.field, Distance):
        raise UserError(f"extract: --method: dual expected a run of a distance, got {run.asked.recipe}; drop it")
    if method is Method.OPACITY and unsigned and not (level is not None and level > 0):
        raise UserError(
            "extract: --method: expected dual or pseudo-signs for an unsigned distance, which crosses no level at its "
            "surface, got opacity; drop it, or give a --level above 0 for a shell around the surface"
        )
    return method


def zero_set(run: Any, bounds: Any, resolution: int, method: Method) -> Any:
    """The zero set of an unsigned distance, scene frame."""
    from ...geometry.dual_mesh import dual_mesh
    from ...geometry.pseudo_signs import pseudo_sign_mesh
    from ..devices import free_memory

    def ask(points: Any) -> tuple[Any, Any]:
        output = run.field.query(points, gradients=True)
        return output.values, output.gradients

    most = int(0.8 * free_memory(run.device))
    return (dual_mesh if method is Method.DUAL else pseudo_sign_mesh)(ask, bounds, resolution, max_bytes=most)


def fused_views(run: Any, bounds: Any, resolution: int, cascades: int = 1) -> Any:
    """The surface that the depths of the training views show, once rendered; with their colours, scene frame."""
    from functools import partial

    from ...geometry.depth_fusion import fuse_depths
    from ...renderers.splat import SplatRenderer

    cameras = [frame.camera for frame in run.scene().train]
    draw = run.renderer.render
    if isinstance(run.renderer, SplatRenderer):
        draw = partial(draw, median_depths=True)
    views = (draw(run.field, camera).pixels for camera in cameras)
    return fuse_depths(cameras, views, bounds, float(bounds.extent.max()) / resolution, cascades=cascades)


def level_set(
    run: Any, bounds: Any, resolution: int, level: float | None, *, cut: bool = False, sharp: bool = False
) -> Any:
    """The level set of the density, scene frame; looked for where the occupancy grid or the Gaussians' means are.

    Of a distance, ``sharp``: by dual contouring.
    """
    import math

    import torch

    from ...fields.protocols import Distance, Primitives
    from ...geometry.depth_fusion import blocks_with
    from ...geometry.dual_contouring import dual_contour
    from ...geometry.isosurface import isosurface
    from ...geometry.sparse_blocks import OpenSurfaceWarning

    cell = float(bounds.extent.max()) / resolution
    distances = isinstance(run.field, Distance)
    level = (0.0 if distances else math.log(2) / (2 * cell)) if level is None else level
    occupancy = getattr(run.renderer, "occupancy", None)  # of ray marchers
    options: dict[str, Any] = {}
    if isinstance(run.field, Primitives):
        occupied = blocks_with([run.field.gaussians().means.detach()], bounds, resolution)
        options = {} if occupied is None else dict(occupied=occupied, margin=math.inf)

    @torch.no_grad()
    def values_at(points):
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


def _colored(run: Any, mesh: Any) -> Any:
    """A mesh in the scene's frame with the field's colours, if it has any, seen along the normals."""
    import torch

    from ...geometry.mesh_ops import with_colors
    from ..devices import CPU

    with torch.no_grad():
        directions = -mesh.normals if mesh.normals is not None else torch.zeros_like(mesh.vertices)
        colors = run.field.query(mesh.vertices.to(run.device), directions.to(run.device)).colors
    return mesh if colors is None else with_colors(mesh, colors.to(CPU))


def _bounds(crop: tuple[float, ...] | None, to_world: Any, half: float) -> Any:
    """The box to search, scene frame: the innermost cube, or around ``crop``, as far as the fitted space goes."""
    import torch

    from ...geometry import Aabb
    from ...geometry.transforms import similarity_inverse, transform_points

    if crop is None:
        return Aabb.cube(1.0)
    low, high = torch.tensor(crop, dtype=torch.float64, device=to_world.device).view(2, 3)
    if not bool((low < high).all() & low.isfinite().all() & high.isfinite().all()):
        raise UserError(f"extract: --crop: expected low x y z below high x y z, got {_words(low)} and {_words(high)}")
    corners = torch.cartesian_prod(*torch.stack([low, high], 1))
    moved = transform_points(similarity_inverse(to_world.double()), corners)
    box = Aabb(moved.min(0).values.clamp(min=-half).float(), moved.max(0).values.clamp(max=half).float())
    if not bool((box.extent > 0).all()):
        corners = transform_points(to_world, torch.cartesian_prod(*[to_world.new_tensor([-half, half])] * 3))
        raise UserError(
            f"extract: --crop: expected a box that meets the fitted space, which lies from {_words(corners.amin(0))} "
            f"to {_words(corners.amax(0))}, got {_words(low)} to {_words(high)}"
        )
    return box


def _cropped(mesh: Any, crop: tuple[float, ...], to_world: Any) -> Any:
    """The triangles of a mesh in the scene's frame that lie within a box in world units."""
    from ...geometry import Aabb
    from ...geometry.mesh_ops import keep_faces
    from ...geometry.transforms import transform_points

    box = Aabb(*to_world.new_tensor(crop).view(2, 3))
    mesh = keep_faces(mesh, box.contains(transform_points(to_world, mesh.vertices))[mesh.faces].all(1))
    if len(mesh.faces) == 0:
        raise UserError("extract: --crop: expected a box with some of the surface inside, got none; enlarge it")
    return mesh


def _words(point: Any) -> str:
    return "(" + ", ".join(f"{x:.3g}" for x in point.tolist()) + ")"
