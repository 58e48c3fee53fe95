"""``.glb`` and ``.gltf`` with KHR_gaussian_splatting, as ratified by Khronos in 2026 and in its earlier drafts.

https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos/KHR_gaussian_splatting. A primitive of points with
attributes POSITION, and with the prefix ``KHR_gaussian_splatting:`` ROTATION (x y z w), SCALE (standard deviations),
OPACITY in [0, 1] and SH_DEGREE_l_COEF_n, at most degree 3, in the order and signs of ``cuda.sh_basis``. Drafts stored
logs in SCALE: known by negative numbers, which the extension forbids. Up is +y: splat_io turns the axes. Nodes move
what they show, several primitives become one. Written: float32, one node, COLOR_0 for viewers of plain points.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ..gaussian_transforms import transform, with_degree
from ..gaussians import SH_C0, Gaussians
from ..transforms import quaternion_to_matrix
from ._checks import SplatError, bad, check_memory
from ._codes import Array, log_scales, logit, to_arrays, to_gaussians
from ._gltf_accessors import Buffers, open_gltf

SUFFIXES = (".glb", ".gltf")
DEGREE = 3
UP = "y"
REORDERED = False
LOSS = "next to nothing: float32 of standard deviations and opacities instead of their logs"

_NAME = "KHR_gaussian_splatting"
_FLOAT, _UBYTE = 5126, 5121
_POINTS = 0


def read(path: Path, max_memory: int) -> Gaussians:
    """See ``splat_io.load_gaussians``."""
    tree, buffers = open_gltf(path)
    try:
        found = list(_placed(path, tree))
        if not found:
            raise bad(path, f"a mesh with {_NAME}", "none in its scene", "load_mesh reads meshes")
        counts = [buffers.count(p["attributes"]["POSITION"]) for p, _ in found]
        check_memory(path, sum(counts), DEGREE, max_memory)
        parts = [transform(_primitive(path, buffers, p), matrix) for p, matrix in found]
    except SplatError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise bad(path, "a whole glTF file", repr(error), "it is damaged: export it again") from error
    degree = max(p.degree for p in parts)
    parts = [with_degree(p, degree) for p in parts]
    fields = ("means", "quats", "log_scales", "logit_opacities", "sh")
    return Gaussians(*(torch.cat([getattr(p, name) for p in parts]) for name in fields))


def write(file: IO[bytes], gaussians: Gaussians, *, text: bool = False) -> None:
    """See ``splat_io.save_gaussians``; ``text`` writes .gltf (data inside, as base64) instead of .glb."""
    attributes = _attributes(gaussians)
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    content = bytearray()
    for name, (values, component) in attributes.items():
        data = np.ascontiguousarray(values).tobytes()
        views.append({"buffer": 0, "byteOffset": len(content), "byteLength": len(data), "target": 34962})
        kind = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[values.shape[1]]
        accessor = {"bufferView": len(accessors), "componentType": component, "count": len(values), "type": kind}
        if name == "POSITION":
            accessor |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        accessors.append(accessor | ({"normalized": True} if component == _UBYTE else {}))
        content += data + bytes(-len(data) % 4)
    primitive = {
        "mode": _POINTS,
        "attributes": {name: i for i, name in enumerate(attributes)},
        "extensions": {_NAME: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "polyfield"},
        "extensionsUsed": [_NAME],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": len(content)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    if text:
        tree["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
        file.write(json.dumps(tree).encode())
        return
    head = json.dumps(tree).encode()
    head += b" " * (-len(head) % 4)
    file.write(struct.pack("<4sII", b"glTF", 2, 28 + len(head) + len(content)))
    file.write(struct.pack("<I4s", len(head), b"JSON") + head + struct.pack("<I4s", len(content), b"BIN\0"))
    file.write(content)


def _attributes(gaussians: Gaussians) -> dict[str, tuple[Array, int]]:
    """Name -> values (G, n), and their component type."""
    g = to_arrays(gaussians)
    with np.errstate(over="ignore"):
        scales = np.exp(g.log_scales).astype(np.float32)
    if not np.isfinite(scales).all():
        raise SplatError("save_gaussians: log_scales: expected at most 88 for glTF, got more; scale the scene down")
    color = np.clip(np.concatenate([g.sh[:, 0] * SH_C0 + 0.5, g.opacities[:, None]], 1), 0, 1)
    attributes: dict[str, tuple[Array, int]] = {
        "POSITION": (g.means.astype(np.float32), _FLOAT),
        "COLOR_0": (np.rint(color * 255).astype(np.uint8), _UBYTE),
        f"{_NAME}:ROTATION": (np.roll(g.quats, -1, 1).astype(np.float32), _FLOAT),
        f"{_NAME}:SCALE": (scales, _FLOAT),
        f"{_NAME}:OPACITY": (g.opacities[:, None].astype(np.float32), _FLOAT),
    }
    for k, (degree, i) in enumerate(_bands(gaussians.degree)):
        attributes[f"{_NAME}:SH_DEGREE_{degree}_COEF_{i}"] = (g.sh[:, k].astype(np.float32), _FLOAT)
    return attributes


def _bands(degree: int) -> list[tuple[int, int]]:
    return [(band, i) for band in range(degree + 1) for i in range(2 * band + 1)]


def _placed(path: Path, tree: dict[str, Any]) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """The primitives of Gaussians in the scene, each with its local_to_scene (4, 4)."""
    nodes, found, seen = tree.get("nodes", []), [], set()

    def visit(index: int, parent: torch.Tensor) -> None:
        if index in seen:
            raise bad(path, "a tree of nodes", f"node {index} twice", "export the file again")
        seen.add(index)
        node = nodes[index]
        local_to_scene = parent @ _local(node)
        if "mesh" in node:
            for primitive in tree["meshes"][node["mesh"]]["primitives"]:
                if _NAME in primitive.get("extensions", {}):
                    found.append((primitive, local_to_scene))
        for child in node.get("children", []):
            visit(child, local_to_scene)

    for index in tree["scenes"][tree.get("scene", 0)].get("nodes", []) if "scenes" in tree else []:
        visit(index, torch.eye(4, dtype=torch.float64))
    return found


def _local(node: dict[str, Any]) -> torch.Tensor:
    """(4, 4) of a node: its matrix (column by column), or shift, rotation x y z w and scale."""
    if "matrix" in node:
        return torch.tensor(node["matrix"], dtype=torch.float64).view(4, 4).T
    matrix = torch.eye(4, dtype=torch.float64)
    x, y, z, w = node.get("rotation", [0, 0, 0, 1])
    matrix[:3, :3] = quaternion_to_matrix(torch.tensor([w, x, y, z], dtype=torch.float64))
    matrix[:3, :3] *= torch.tensor(node.get("scale", [1, 1, 1]), dtype=torch.float64)
    matrix[:3, 3] = torch.tensor(node.get("translation", [0, 0, 0]), dtype=torch.float64)
    return matrix


def _primitive(path: Path, buffers: Buffers, primitive: dict[str, Any]) -> Gaussians:
    settings, attributes = primitive["extensions"][_NAME], primitive["attributes"]
    stated = (settings.get("kernel", "ellipse"), settings.get("colorSpace", "srgb_rec709_display"))
    if stated != ("ellipse", "srgb_rec709_display") or settings.get("extensions"):
        got = f"{stated[0]}, {stated[1]}, extensions {list(settings.get('extensions', {}))}"
        raise bad(path, "kernel ellipse, colours srgb_rec709_display, no compression", got, "export it so")
    if primitive.get("mode", 4) != _POINTS:
        raise bad(path, "points (mode 0)", f"mode {primitive.get('mode', 4)}", "export it again")
    count = buffers.count(attributes["POSITION"])

    def values(name: str, width: int) -> Array:
        index = attributes.get(f"{_NAME}:{name}", attributes.get(name))
        if index is None:
            raise bad(path, f"an attribute {_NAME}:{name}", ", ".join(attributes), "export it again")
        return buffers.read(index, count, width)

    degree = max(d for d in range(DEGREE + 1) if d == 0 or f"{_NAME}:SH_DEGREE_{d}_COEF_0" in attributes)
    scales = values("SCALE", 3)
    return to_gaussians(
        values("POSITION", 3),
        np.roll(values("ROTATION", 4), 1, 1),
        scales if (scales < 0).any() else log_scales(scales),
        logit(values("OPACITY", 1)[:, 0]),
        np.stack([values(f"SH_DEGREE_{band}_COEF_{i}", 3) for band, i in _bands(degree)], 1),
    )
