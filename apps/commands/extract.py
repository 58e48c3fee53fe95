"""Extract a mesh from a run: the density's level set, with vertex colours, in the scene's own units."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import UserError
from ..parse import parse

MESH_ENDINGS = (".glb", ".obj", ".ply")


def main(arguments: list[str]) -> None:
    parse(run, "extract", arguments)


def run(
    run: Annotated[Path, tyro.conf.Positional],
    output: Path | None = None,
    resolution: int = 256,
    level: float | None = None,
    crop: tuple[float, float, float, float, float, float] | None = None,
    components: int = 1,
    target_faces: int | None = None,
) -> None:
    """Write RUN's surface to a .glb, .ply or .obj file.

    Args:
        run: folder that ``polyfield fit`` made.
        output: the mesh file; by default RUN/mesh.glb.
        resolution: cells along the longest edge of the box that is searched.
        level: density per scene unit at the surface; by default half opaque within two cells.
        crop: low x y z and high x y z of a box, in the scene's own units; by default the innermost cube of the scene.
        components: keep this many of the largest connected parts; 0 keeps all.
        target_faces: decimate to about this many triangles.
    """
    from ...geometry.mesh_io import save_mesh
    from ..run import open_run

    output = output or run / "mesh.glb"
    if output.suffix.lower() not in MESH_ENDINGS:
        raise UserError(
            f"extract: --output: expected a file ending with {', '.join(MESH_ENDINGS)}, got {output}; rename it"
        )
    mesh = extract_mesh(
        open_run(run), resolution=resolution, level=level, crop=crop, components=components, target_faces=target_faces
    )
    try:
        save_mesh(mesh, output)
    except OSError as error:
        raise UserError(f"extract: --output: {output} could not be written ({error}); choose another file") from error
    low, high = mesh.vertices.min(0).values, mesh.vertices.max(0).values
    size = " x ".join(f"{x:.3g}" for x in (high - low).tolist())
    print(f"{len(mesh.vertices)} vertices, {len(mesh.faces)} triangles, {size} in the scene's units: {output}")


def extract_mesh(
    run: Any,
    *,
    resolution: int = 256,
    level: float | None = None,
    crop: tuple[float, float, float, float, float, float] | None = None,
    components: int = 1,
    target_faces: int | None = None,
) -> Any:
    """The same for an open run; returns the Mesh in the scene's own units."""
    import math

    import torch

    from ...geometry import Aabb
    from ...geometry.isosurface import isosurface
    from ...geometry.mesh_ops import crop as crop_mesh
    from ...geometry.mesh_ops import largest_components, simplify, transform, with_colors

    for name, value, least in (
        ("resolution", resolution, 8),
        ("components", components, 0),
        ("target-faces", target_faces, 4),
    ):
        if value is not None and value < least:
            raise UserError(f"extract: --{name}: expected at least {least}, got {value}")
    to_world = run.asked.facts.matrix
    bounds = Aabb.cube(1.0) if crop is None else _box_around(torch.tensor(crop), to_world.inverse())
    cell = float(bounds.extent.max()) / resolution
    level = math.log(2) / (2 * cell) if level is None else level
    occupancy = run.renderer.occupancy

    @torch.no_grad()
    def density(points):
        return run.field.query(points).values * occupancy.occupied(points)

    try:
        mesh = isosurface(density, bounds, resolution, level, inside_is_above=True)
    except ValueError as error:
        raise UserError(f"extract: {error}") from error
    if components:
        mesh = largest_components(mesh, components)
    if target_faces is not None:
        mesh = simplify(mesh, target_faces)
    with torch.no_grad():
        directions = -mesh.normals if mesh.normals is not None else torch.zeros_like(mesh.vertices)
        mesh = with_colors(mesh, run.field.query(mesh.vertices, directions).colors)
    mesh = transform(mesh, to_world)
    if crop is not None:
        mesh = crop_mesh(mesh, Aabb(torch.tensor(crop[:3]), torch.tensor(crop[3:])))
    return mesh


def _box_around(crop: Any, to_scene: Any) -> Any:
    """The scene-frame box around a box in world units."""
    import torch

    from ...geometry import Aabb

    low, high = crop[:3], crop[3:]
    corners = torch.cartesian_prod(*[torch.stack([low[i], high[i]]) for i in range(3)])
    moved = corners @ to_scene[:3, :3].T + to_scene[:3, 3]
    return Aabb(moved.min(0).values, moved.max(0).values)
