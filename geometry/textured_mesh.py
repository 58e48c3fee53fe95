"""A mesh with a picture on it, and its files: .glb with the picture inside, or .obj with .mtl and .png beside it.

As in ``mesh_io``, a .glb is turned so that its +y is up, and has a matte material. Textures are sRGB in both formats.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .mesh_io import export_matte, turn_to_y_up
from .types import Mesh, _TensorDataclass
from .whole_file import write_whole_file

ENDINGS = (".glb", ".obj")


@dataclass(frozen=True)
class TexturedMesh(_TensorDataclass):
    """Triangles whose vertices are doubled along seams."""

    vertices: Tensor  # (V, 3)
    faces: Tensor  # (F, 3) int64
    uvs: Tensor  # (V, 2) in [0, 1], (0, 0) the texture's upper left corner
    texture: Tensor  # (H, W, 3) uint8, sRGB
    normals: Tensor | None = None  # (V, 3) unit

    @property
    def mesh(self) -> Mesh:
        """The triangles alone."""
        return Mesh(self.vertices, self.faces, self.normals)

    def colors_at(self, faces: Tensor, weights: Tensor) -> Tensor:
        """Points on triangles (N,) by weights (N, 3) of their corners -> colours (N, 3), bilinear between texels."""
        height, width = self.texture.shape[:2]
        uv = (self.uvs[self.faces[faces]] * weights[..., None]).sum(1)
        position = uv * uv.new_tensor([width, height]) - 0.5
        first = position.floor()
        share = position - first
        result = position.new_zeros(len(uv), 3)
        for dx in (0, 1):
            for dy in (0, 1):
                column = (first[:, 0].long() + dx).clamp(0, width - 1)
                row = (first[:, 1].long() + dy).clamp(0, height - 1)
                part = (share[:, 0] if dx else 1 - share[:, 0]) * (share[:, 1] if dy else 1 - share[:, 1])
                result += part[:, None] * self.texture[row, column].float() / 255
        return result


def save_textured(mesh: TexturedMesh, path: str | os.PathLike[str], *, up: str = "z") -> list[Path]:
    """Write a textured mesh, each file replaced only when it is whole; returns the files.

    Args:
        mesh: what is written.
        path: ends with .glb, or with .obj: then .mtl and .png of the same name are written beside it.
        up: which axis of the mesh points up: "z", "y" or "-y". Only .glb files are turned.

    Raises:
        ValueError: unknown ending or axis.
        OSError: a file cannot be written.
    """
    path = Path(path)
    turn = turn_to_y_up("save_textured", up)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"save_textured: {path}: expected a file ending with {' or '.join(ENDINGS)}, got {path.suffix!r}; rename it"
        )
    mesh = mesh.detach().to("cpu")
    if path.suffix.lower() == ".glb":
        data = _glb(mesh, turn)
        write_whole_file(path, lambda file: file.write(data))
        return [path]
    png, mtl = path.with_suffix(".png"), path.with_suffix(".mtl")
    picture = _picture(mesh.texture)
    write_whole_file(png, lambda file: picture.save(file, format="PNG"))
    material = f"# polyfield\nnewmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {png.name}\n"
    write_whole_file(mtl, lambda file: file.write(material.encode()))
    write_whole_file(path, lambda file: file.write(_obj(mesh, mtl.name)))
    return [path, mtl, png]


def _picture(texture: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(texture.contiguous().numpy())


def _glb(mesh: TexturedMesh, turn: Tensor) -> bytes:
    import trimesh
    from trimesh.visual.material import PBRMaterial

    v_up = mesh.uvs.double() * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 1.0])  # as trimesh has them
    look = trimesh.visual.TextureVisuals(uv=v_up.numpy(), material=PBRMaterial(baseColorTexture=_picture(mesh.texture)))
    vertices = (mesh.vertices.float() @ turn.T).numpy()
    made: Any = trimesh.Trimesh(vertices, mesh.faces.numpy(), visual=look, process=False)
    if mesh.normals is not None:
        made.vertex_normals = (mesh.normals.float() @ turn.T).double().numpy()
    return export_matte(made, include_normals=mesh.normals is not None)


def _obj(mesh: TexturedMesh, material: str) -> bytes:
    """OBJ's v runs up."""
    import numpy as np

    file = io.BytesIO()
    file.write(f"# polyfield\nmtllib {material}\nusemtl surface\n".encode())
    np.savetxt(file, mesh.vertices.double().numpy(), fmt="v %.8g %.8g %.8g")
    uvs = mesh.uvs.double()
    np.savetxt(file, torch.stack([uvs[:, 0], 1 - uvs[:, 1]], 1).numpy(), fmt="vt %.8g %.8g")
    corners = mesh.faces.numpy() + 1
    if mesh.normals is not None:
        np.savetxt(file, mesh.normals.double().numpy(), fmt="vn %.5f %.5f %.5f")
        np.savetxt(file, corners.repeat(3, axis=1), fmt="f %d/%d/%d %d/%d/%d %d/%d/%d")
    else:
        np.savetxt(file, corners.repeat(2, axis=1), fmt="f %d/%d %d/%d %d/%d")
    return file.getvalue()
