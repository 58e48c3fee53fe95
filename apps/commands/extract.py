"""Extract a mesh from a run, with vertex colours or a texture, in the scene's own units.

Fields of density and signed distances: their level set, of signed distances by dual contouring if sharp edges are to be
kept. Unsigned distances: their zero set, by dual contouring.
Gaussians: the depths of all training views, rendered and fused, since their density is not smooth; or the level set of
the mixture's density. All of them, and files of oriented points: by Poisson reconstruction.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import UserError
from ..mesh_options import MeshOptions, Method
from ..parse import Up, parse
from ..texture_source import TextureSource

MESH_ENDINGS = (".glb", ".obj", ".ply")
DEFAULTS = MeshOptions()


def main(arguments: list[str]) -> None:
    parse(run, "extract", arguments)


def run(
    run: Annotated[Path, tyro.conf.Positional],
    output: Path | None = None,
    options: Annotated[MeshOptions, tyro.conf.arg(name="")] = DEFAULTS,
    texture: int | None = None,
    texture_from: TextureSource | None = None,
    normal_map: bool = False,
    up: Up = "-y",
    device: str = "auto",
) -> None:
    """Write RUN's surface to a .glb, .ply or .obj file.

    Args:
        run: folder that ``polyfield fit`` made; or a file of Gaussians, whoever made it; or a .ply file of points with
            normals, which poisson meshes.
        output: the mesh file; by default RUN/mesh.glb, of a file FILE/mesh.glb.
        options: of the mesh.
        texture: texels along each side of a texture, instead of colours of vertices; .glb holds it, beside an .obj
            lie .mtl and .png. Laying out the mesh takes about 30 s per 100,000 triangles: see --target-faces.
        normal_map: with --texture, the directions of the field's gradients as a normal map: for decimated meshes.
        texture_from: what the texture shows: the field (by default), or the photographs, blended by how well they see
            each point.
        up: which axis points up in a file of Gaussians.
        device: auto (the GPU if it can be used), cpu, cuda or cuda:N.
    """
    from ...geometry.mesh_io import save_mesh
    from ..devices import CPU, enough_memory
    from ..run import open_run
    from ..splat_file import folder_of, holds_gaussians

    points = run.is_file() and not holds_gaussians(run)
    if points:
        _check_for_points(output, options, texture)
    output = output or (folder_of(run) if run.is_file() else run) / "mesh.glb"
    if output.suffix.lower() not in MESH_ENDINGS:
        raise UserError(
            f"extract: --output: expected a file ending with {', '.join(MESH_ENDINGS)}, got {output}; rename it"
        )
    if texture is not None:
        _check_textured(output, texture)
    elif normal_map or texture_from is not None:
        name = "--normal-map" if normal_map else "--texture-from"
        raise UserError(f"extract: {name}: expected --texture as well, got none; say how large, as --texture 2048")
    opened = None if points else open_run(run, device, up=up)
    where = CPU if opened is None else opened.device
    with warnings.catch_warnings(), enough_memory("extract", where, "lower --resolution or --crop"):
        warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
        mesh = _mesh_points(run, options) if opened is None else _mesh_run(opened, options)
    try:
        files, axis = [output], "z" if opened is None else opened.mesh_up
        if opened is not None and opened.of_file:
            output.parent.mkdir(parents=True, exist_ok=True)
        if texture is None:
            save_mesh(mesh, output, up=axis)
        else:
            source = texture_from or TextureSource.FIELD
            files = _save_textured(opened, mesh, output, texture, source, normal_map, axis)
    except OSError as error:
        raise UserError(f"extract: --output: {output} could not be written ({error}); choose another file") from error
    low, high = mesh.vertices.min(0).values, mesh.vertices.max(0).values
    size = " x ".join(f"{x:.3g}" for x in (high - low).tolist())
    names = ", ".join(map(str, files))
    print(f"{len(mesh.vertices)} vertices, {len(mesh.faces)} triangles, {size} in the scene's units: {names}")


def _check_for_points(output: Path | None, options: MeshOptions, texture: int | None) -> None:
    if output is None:
        raise UserError("extract: --output: expected a file for the mesh of points, got none; name one")
    asked = {"level": options.level, "texture": texture}
    asked["cascades"] = None if options.cascades == 1 else options.cascades
    asked["method"] = None if options.method in (None, Method.POISSON) else options.method.value
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


def _save_textured(
    run: Any, mesh: Any, output: Path, size: int, source: TextureSource, normal_map: bool, up: str
) -> list[Path]:
    from ...geometry.textured_mesh import save_textured
    from ..devices import enough_memory
    from ..texturing import texture_mesh

    print(f"laying out {len(mesh.faces)} triangles and baking {size} x {size} texels from the {source.value} ...")
    with enough_memory("extract", run.device, "ask for a smaller --texture"):
        textured = texture_mesh(run, mesh, size, source, normal_map=normal_map)
        return save_textured(textured, output, up=up)


def extract_mesh(run: Any, **options: Any) -> Any:
    """The same for an open run; returns the Mesh in the scene's own units, on the CPU.

    Args:
        run: as ``open_run`` and ``fit_scene`` return it.
        options: as on the command line: method, resolution, level, crop, cascades, trim, components, fill_holes,
            smooth, target_faces.

    Raises:
        UserError: options that make no sense, or that the method does not have; no surface.
    """
    return _mesh_run(run, MeshOptions(**options))


def _mesh_run(run: Any, options: MeshOptions) -> Any:
    from ...geometry.mesh_ops import transform
    from .. import meshing
    from ..devices import CPU

    options.check()
    method, crop, resolution = _method(run, options.method, options.level), options.crop, options.resolution
    options.check_method(method)
    to_world = run.asked.facts.matrix
    bounds = _bounds(crop, to_world, float(run.field.bounds.high.max())).to(run.device)
    try:
        if method is Method.POISSON:
            mesh = meshing.through_views(run, bounds, resolution, options.trimmed)
        elif method is Method.TSDF:
            mesh = meshing.fused_views(run, bounds, resolution, options.cascades)
        elif method is Method.OPACITY or run.field.signed:
            sharp = method is Method.DUAL
            mesh = meshing.level_set(run, bounds, resolution, options.level, cut=crop is not None, sharp=sharp)
        else:
            mesh = meshing.zero_set(run, bounds, resolution, signs=method is Method.PSEUDO_SIGNS)
    except ValueError as error:
        raise UserError(f"extract: {error}") from error
    mesh = mesh.to(CPU)
    if crop is not None:
        mesh = _cropped(mesh, crop, to_world)
    # Boxes are not stitched: the largest part would be that of one of them.
    mesh = options.clean(mesh, several=run.of_shape, connected=options.cascades == 1)
    if mesh.colors is None:
        mesh = meshing.colored(run, mesh)
    return transform(mesh, to_world)


def _mesh_points(path: Path, options: MeshOptions) -> Any:
    """The Mesh through the oriented points of a .ply file, in its units.

    Raises UserError for options that make no sense; SceneError for a file without such points.
    """
    import torch

    from .. import meshing

    options.check()
    box = None if options.crop is None else _checked_crop(options.crop)
    try:
        mesh = meshing.through_file(path, options.resolution, box, options.trimmed)
    except ValueError as error:
        raise UserError(f"extract: {error}") from error
    if options.crop is not None:
        mesh = _cropped(mesh, options.crop, torch.eye(4))
    return options.clean(mesh, several=True)


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
