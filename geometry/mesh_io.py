"""Mesh files: .glb, .ply and .obj, read and written through trimesh, whole or not at all.

Colours are sRGB in [0, 1] here. PLY and OBJ hold sRGB too (8 bits; OBJ as decimals); glTF defines COLOR_0 as linear, so
that is what a .glb gets, as float32, with a matte material instead of glTF's metallic default. glTF's up is +y: ``up``
names the axis that points up in the mesh, and the axes are turned on the way. PLY and OBJ define no up: no turning.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .mesh_ops import transform
from .types import Mesh
from .whole_file import write_whole_file

ENDINGS = (".glb", ".obj", ".ply")
GLTF = (".glb", ".gltf")
READABLE = (*ENDINGS, ".gltf", ".stl")

# Where the axes x, y, z of the file lie in the mesh. -y is up in OpenCV's camera axes.
_TO_Y_UP = {
    "y": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "z": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "-y": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
}


def save_mesh(mesh: Mesh, path: str | os.PathLike[str], *, up: str = "z") -> None:
    """Write ``mesh`` to ``path``, replacing it only when all is written.

    Args:
        mesh: vertices, triangles, and normals and colours if it has them.
        path: ends with .glb, .ply or .obj; its folder must exist.
        up: which axis of the mesh points up: "z", "y" or "-y". Only .glb files are turned.

    Raises:
        ValueError: unknown ending or axis, a mesh without triangles, or with numbers that are not finite.
        OSError: the file cannot be written; what was there stays.
    """
    path = Path(path)
    _check_ending("save_mesh", path)
    turn = turn_to_y_up("save_mesh", up)
    if len(mesh.faces) == 0:
        raise ValueError(f"save_mesh: mesh: expected at least one triangle, got none; nothing was written to {path}")
    if not bool(mesh.vertices.isfinite().all()):
        raise ValueError(
            f"save_mesh: mesh: expected finite vertices, got NaN or infinity; nothing was written to {path}"
        )
    data = _glb(mesh, turn) if path.suffix.lower() == ".glb" else _plain(mesh, path.suffix.lower()[1:])
    write_whole_file(path, lambda file: file.write(data))


def load_mesh(path: str | os.PathLike[str], *, up: str = "z") -> Mesh:
    """Read a mesh; several parts become one. A texture becomes colours of vertices.

    Args:
        path: ends with .glb, .gltf, .ply, .obj or .stl. Faces of more than three corners become fans of triangles.
        up: which axis shall point up in the mesh of a .glb or .gltf file.

    Returns:
        A float32 Mesh on the CPU; normals and colours as far as every part of the file has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown ending or axis; a file that is empty, cut short, or without triangles.
    """
    path = Path(path)
    _check_ending("load_mesh", path, READABLE)
    turn = turn_to_y_up("load_mesh", up)
    if not path.is_file():
        raise FileNotFoundError(f"load_mesh: {path}: expected a mesh file, got nothing there; check the path")
    import trimesh

    try:
        scene = trimesh.load_scene(path, process=False, maintain_order=True)
        meshes = []
        for node in scene.graph.nodes_geometry:
            matrix, name = scene.graph[node]
            part = scene.geometry[name]
            if isinstance(part, trimesh.Trimesh) and len(part.faces):
                mesh = _from_trimesh(part, is_linear=path.suffix.lower() in GLTF)
                meshes.append(transform(mesh, torch.tensor(matrix)))
    except Exception as error:  # trimesh raises whatever its parsers meet
        raise ValueError(
            f"load_mesh: {path}: expected a whole {path.suffix} file, got {error!r}; write it again"
        ) from error
    if not meshes:
        raise ValueError(f"load_mesh: {path}: expected at least one triangle, got none; write it again")
    if bad := sum(int((~m.vertices.isfinite()).any(1).sum()) for m in meshes):
        raise ValueError(f"load_mesh: {path}: expected finite vertices, got {bad} with NaN or infinity; write it again")
    if any(int(m.faces.max()) >= len(m.vertices) or int(m.faces.min()) < 0 for m in meshes):
        raise ValueError(f"load_mesh: {path}: expected faces of its own vertices, got others; the file is damaged")
    mesh = _joined(meshes)
    if path.suffix.lower() in GLTF:
        normals = None if mesh.normals is None else mesh.normals @ turn
        mesh = Mesh(mesh.vertices @ turn, mesh.faces, normals, mesh.colors)
    return mesh


def _check_ending(op: str, path: Path, endings: tuple[str, ...] = ENDINGS) -> None:
    if path.suffix.lower() not in endings:
        raise ValueError(
            f"{op}: {path}: expected a file ending with {', '.join(endings)}, got {path.suffix!r}; rename it"
        )


def turn_to_y_up(op: str, up: str) -> Tensor:
    """(3, 3) from the axes of a scene where ``up`` points up to those of glTF."""
    if up not in _TO_Y_UP:
        raise ValueError(f"{op}: up: expected one of {', '.join(_TO_Y_UP)}, got {up!r}")
    return torch.tensor(_TO_Y_UP[up], dtype=torch.float32)


def linear_from_srgb(colors: Tensor) -> Tensor:
    """IEC 61966-2-1, of numbers in [0, 1]."""
    return torch.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(colors: Tensor) -> Tensor:
    """The inverse of ``linear_from_srgb``."""
    return torch.where(colors <= 0.0031308, colors * 12.92, 1.055 * colors.clamp_min(1e-9) ** (1 / 2.4) - 0.055)


def _arrays(mesh: Mesh) -> tuple[Any, Any, Tensor | None, Tensor | None]:
    mesh = mesh.detach().to("cpu")
    return mesh.vertices.float(), mesh.faces.numpy(), mesh.normals, mesh.colors


def _plain(mesh: Mesh, kind: str) -> bytes:
    import trimesh

    vertices, faces, normals, colors = _arrays(mesh)
    made: Any = trimesh.Trimesh(vertices.numpy(), faces, process=False)
    if normals is not None:
        made.vertex_normals = normals.double().numpy()
    if colors is not None:
        made.visual.vertex_colors = (colors.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    if kind == "ply":
        data = made.export(file_type="ply", vertex_normal=normals is not None)
    else:
        data = made.export(file_type="obj", include_normals=normals is not None, header="polyfield")
    return data.encode() if isinstance(data, str) else data


def _glb(mesh: Mesh, turn: Tensor) -> bytes:
    import trimesh

    vertices, faces, normals, colors = _arrays(mesh)
    made: Any = trimesh.Trimesh((vertices @ turn.T).numpy(), faces, process=False)
    if normals is not None:
        made.vertex_normals = (normals.float() @ turn.T).double().numpy()
    if colors is not None:
        made.vertex_attributes["_color"] = linear_from_srgb(colors.float().clamp(0, 1)).contiguous().numpy()

    return export_matte(made, include_normals=normals is not None)


def export_matte(made: Any, *, include_normals: bool) -> bytes:
    """A trimesh as .glb: matte, seen from both sides; attributes ``_color``, ``_tangent`` as COLOR_0, TANGENT."""
    import trimesh
    from trimesh.exchange.gltf import export_glb

    def finish(tree: dict[str, Any]) -> None:
        tree["asset"]["generator"] = "polyfield"
        (found,) = tree.get("materials", [{}])
        matte = {"baseColorFactor": [1, 1, 1, 1], "metallicFactor": 0, "roughnessFactor": 1}
        matte = {**found.get("pbrMetallicRoughness", {}), **matte}
        tree["materials"] = [{**found, "pbrMetallicRoughness": matte, "doubleSided": True}]
        for part in (p for m in tree["meshes"] for p in m["primitives"]):
            part["material"] = 0
            for own, name in (("_color", "COLOR_0"), ("_tangent", "TANGENT")):
                if own in part["attributes"]:
                    part["attributes"][name] = part["attributes"].pop(own)

    return bytes(export_glb(trimesh.Scene(made), include_normals=include_normals, tree_postprocessor=finish))


def _from_trimesh(part: Any, *, is_linear: bool) -> Mesh:
    normals = torch.tensor(part.vertex_normals).float() if "vertex_normals" in part._cache.cache else None
    return Mesh(torch.tensor(part.vertices).float(), torch.tensor(part.faces).long(), normals, _colors(part, is_linear))


def _colors(part: Any, is_linear: bool) -> Tensor | None:
    """sRGB in [0, 1] of the vertices."""
    visual = part.visual
    if visual.kind == "texture":
        stored = getattr(visual, "vertex_attributes", {}).get("color")
        if stored is None:
            if visual.uv is None or getattr(visual.material, "main_color", None) is None:
                return None
            visual, is_linear = visual.to_color(), False  # the picture's own colours are sRGB
            stored = visual.vertex_colors
    elif visual.kind == "vertex":
        stored = visual.vertex_colors
    else:
        return None
    scale = {"u1": 255, "u2": 65535}.get(stored.dtype.str[1:], 1)
    colors = torch.tensor(stored[:, :3].astype("f8") / scale).float()
    return srgb_from_linear(colors) if is_linear else colors


def _joined(meshes: list[Mesh]) -> Mesh:
    if len(meshes) == 1:
        return meshes[0]
    starts = torch.tensor([0] + [len(m.vertices) for m in meshes]).cumsum(0)
    join = lambda parts: None if any(p is None for p in parts) else torch.cat(parts)  # noqa: E731
    return Mesh(
        torch.cat([m.vertices for m in meshes]),
        torch.cat([m.faces + start for m, start in zip(meshes, starts, strict=False)]),
        join([m.normals for m in meshes]),
        join([m.colors for m in meshes]),
    )
