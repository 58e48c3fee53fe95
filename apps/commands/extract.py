"""Extract a mesh from a run, with vertex colours or a texture, in the scene's own units.

Fields of density and signed distances: their level set, of signed distances by dual contouring if sharp edges are to be
kept. Unsigned distances: their zero set, by dual contouring.
Gaussians: the depths of all training views, rendered and fused, since their density is not smooth; or the level set of
the mixture's density. All of them, and files of oriented points: by Poisson reconstruction.
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
    POISSON = "poisson"
    """Through oriented points, where rays of the training views meet the surface: smooth, and closed if asked for."""


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
    trim: float = 1.5,
    components: int | None = None,
    fill_holes: int = 0,
    smooth: int = 0,
    target_faces: int | None = None,
    texture: int | None = None,
    texture_from: TextureSource = TextureSource.FIELD,
    normal_map: bool = False,
    device: str = "auto",
) -> None:
    """Write RUN's surface to a .glb, .ply or .obj file.

    Args:
        run: folder that ``polyfield fit`` made; or a .ply file of points with normals, which poisson meshes.
        output: the mesh file; by default RUN/mesh.glb.
        method: tsdf fuses rendered depths, opacity is the density's (or signed distance's) level set by marching cubes,
            dual that of a distance by dual contouring, which keeps sharp edges, pseudo-signs the zero set of an
            unsigned distance, poisson a smooth surface through the points that training views see (needs
            polyfield[poisson]); by default tsdf for Gaussians, dual for unsigned distances, and else opacity.
        resolution: cells along the longest edge of the box that is searched.
        level: density per scene unit (or distance) at the surface; by default half opaque within two cells (or 0).
        crop: low x y z and high x y z of a box, in the scene's own units; by default the innermost cube of the scene.
        cascades: boxes, each twice the size of the one before and half as fine, for what lies around (tsdf).
        components: keep this many of the largest connected parts (of what the crop leaves); 0 keeps all, as do
            several cascades, whose meshes are not connected; by default 1, of a run of a shape all
            but those of less than a thousandth of the triangles.
        trim: of poisson: the surface ends where points are 4^trim times sparser than in the median; 0 keeps all of
            it, closed.
        fill_holes: then close holes of at most this many edges.
        smooth: then smooth so many times (Taubin), which keeps the volume.
        target_faces: then decimate to about this many triangles.
        texture: texels along each side of a texture, instead of colours of vertices; .glb holds it, beside an .obj
            lie .mtl and .png. Laying out the mesh takes about 30 s per 100,000 triangles: see --target-faces.
        normal_map: with --texture, the directions of the field's gradients as a normal map: for decimated meshes.
        texture_from: what the texture shows: the field, or the photographs, blended by how well they see each point.
        device: auto (the GPU if it can be used), cpu, cuda or cuda:N.
    """
    from ...geometry.mesh_io import save_mesh
    from ..devices import CPU, enough_memory
    from ..run import open_run

    points = run.is_file()
    if points:
        _check_for_points(output, method, level, cascades, texture)
    output = output or run / "mesh.glb"
    if output.suffix.lower() not in MESH_ENDINGS:
        raise UserError(
            f"extract: --output: expected a file ending with {', '.join(MESH_ENDINGS)}, got {output}; rename it"
        )
    if texture is not None:
        _check_textured(output, texture)
    elif normal_map:
        raise UserError("extract: --normal-map: expected --texture as well, got none; say how large, as --texture 2048")
    options: dict[str, Any] = dict(resolution=resolution, crop=crop, trim=trim)
    options |= dict(components=components, fill_holes=fill_holes, smooth=smooth, target_faces=target_faces)
    opened = None if points else open_run(run, device)
    where = CPU if opened is None else opened.device
    with warnings.catch_warnings(), enough_memory("extract", where, "lower --resolution or --crop"):
        warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
        if opened is None:
            mesh = mesh_points(run, **options)
        else:
            mesh = extract_mesh(opened, method=method, level=level, cascades=cascades, **options)
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


def _check_for_points(
    output: Path | None, method: Method | None, level: float | None, cascades: int, texture: int | None
) -> None:
    if output is None:
        raise UserError("extract: --output: expected a file for the mesh of points, got none; name one")
    asked = {"level": level, "texture": texture, "cascades": None if cascades == 1 else cascades}
    asked["method"] = None if method in (None, Method.POISSON) else method.value
    for name, value in asked.items():
        if value is not None:
            raise UserError(
                f"extract: --{name}: expected a run for this, got a file of points, which poisson alone meshes; drop it"
            )


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
    trim: float = 1.5,
    components: int | None = None,
    fill_holes: int = 0,
    smooth: int = 0,
    target_faces: int | None = None,
) -> Any:
    """The same for an open run; returns the Mesh in the scene's own units, on the CPU.

    Raises UserError for options that make no sense, and where there is no surface.
    """
    from ...geometry.mesh_ops import transform
    from .. import meshing
    from ..devices import CPU
    from ..errors import check_least
    from ..mesh_cleanup import Cleanup

    check_least("extract", resolution=(resolution, 8), cascades=(cascades, 1), trim=(trim, 0))
    cleanup = Cleanup(components, fill_holes, smooth, target_faces)
    cleanup.check()
    method = _method(run, method, level)
    to_world = run.asked.facts.matrix
    bounds = _bounds(crop, to_world, float(run.field.bounds.high.max())).to(run.device)
    try:
        if method is Method.POISSON:
            mesh = meshing.through_views(run, bounds, resolution, trim)
        elif method is Method.TSDF:
            mesh = meshing.fused_views(run, bounds, resolution, cascades)
        elif method is Method.OPACITY or run.field.signed:
            sharp = method is Method.DUAL
            mesh = meshing.level_set(run, bounds, resolution, level, cut=crop is not None, sharp=sharp)
        else:
            mesh = meshing.zero_set(run, bounds, resolution, signs=method is Method.PSEUDO_SIGNS)
    except ValueError as error:
        raise UserError(f"extract: {error}") from error
    mesh = mesh.to(CPU)
    if crop is not None:
        mesh = _cropped(mesh, crop, to_world)
    # Boxes are not stitched: the largest part would be that of one of them.
    mesh = cleanup(mesh, several=run.of_shape, connected=cascades == 1)
    if mesh.colors is None:
        mesh = meshing.colored(run, mesh)
    return transform(mesh, to_world)


def mesh_points(
    path: Path,
    *,
    resolution: int = 256,
    crop: tuple[float, float, float, float, float, float] | None = None,
    trim: float = 1.5,
    components: int | None = None,
    fill_holes: int = 0,
    smooth: int = 0,
    target_faces: int | None = None,
) -> Any:
    """The Mesh through the oriented points of a .ply file, in its units.

    Raises UserError for options that make no sense; SceneError for a file without such points.
    """
    import torch

    from .. import meshing
    from ..errors import check_least
    from ..mesh_cleanup import Cleanup

    check_least("extract", resolution=(resolution, 8), trim=(trim, 0))
    cleanup = Cleanup(components, fill_holes, smooth, target_faces)
    cleanup.check()
    box = None if crop is None else _checked_crop(crop)
    try:
        mesh = meshing.through_file(path, resolution, box, trim)
    except ValueError as error:
        raise UserError(f"extract: {error}") from error
    if crop is not None:
        mesh = _cropped(mesh, crop, torch.eye(4))
    return cleanup(mesh, several=True)


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


def _bounds(crop: tuple[float, ...] | None, to_world: Any, half: float) -> Any:
    """The box to search, scene frame: the innermost cube, or around ``crop``, as far as the fitted space goes."""
    import torch

    from ...geometry import Aabb
    from ...geometry.transforms import similarity_inverse, transform_points

    if crop is None:
        return Aabb.cube(1.0)
    box = _checked_crop(crop)
    low, high = box.low.to(to_world.device), box.high.to(to_world.device)
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


def _checked_crop(crop: tuple[float, ...]) -> Any:
    """The box, float64."""
    import torch

    from ...geometry import Aabb

    low, high = torch.tensor(crop, dtype=torch.float64).view(2, 3)
    if not bool((low < high).all() & low.isfinite().all() & high.isfinite().all()):
        raise UserError(f"extract: --crop: expected low x y z below high x y z, got {_words(low)} and {_words(high)}")
    return Aabb(low, high)


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
