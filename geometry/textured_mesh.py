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
from torch.nn.functional import normalize

from .mesh_io import export_matte, turn_to_y_up
from .raster import bilinear
from .tangents import frames, vertex_tangents
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
    normal_map: Tensor | None = None  # (H, W, 3) uint8, in the frames of ``tangents``

    @property
    def mesh(self) -> Mesh:
        """The triangles alone."""
        return Mesh(self.vertices, self.faces, self.normals)

    @property
    def tangents(self) -> Tensor:
        """(V, 4), see ``tangents.py``; of a mesh with normals."""
        assert self.normals is not None
        return vertex_tangents(self.vertices, self.faces, self.uvs, self.normals)

    def colors_at(self, faces: Tensor, weights: Tensor) -> Tensor:
        """Points on triangles (N,) by weights (N, 3) of their corners -> colours (N, 3), bilinear between texels."""
        return self._looked_up(self.texture, faces, weights)

    def normals_at(self, faces: Tensor, weights: Tensor) -> Tensor:
        """The same for unit normals, as the normal map has them."""
        assert self.normals is not None and self.normal_map is not None
        corners = self.faces[faces]
        normals, tangents = ((t[corners] * weights[..., None]).sum(1) for t in (self.normals, self.tangents))
        local = self._looked_up(self.normal_map, faces, weights) * 2 - 1
        return normalize(torch.einsum("ni,nij->nj", local, frames(normals, tangents)), dim=1)

    def _looked_up(self, picture: Tensor, faces: Tensor, weights: Tensor) -> Tensor:
        height, width = picture.shape[:2]
        uv = (self.uvs[self.faces[faces]] * weights[..., None]).sum(1)
        return bilinear(picture, uv * uv.new_tensor([width, height])) / 255


def save_textured(mesh: TexturedMesh, path: str | os.PathLike[str], *, up: str = "z") -> list[Path]:
    """Write a textured mesh, each file replaced only when it is whole; returns the files.

    Args:
        mesh: what is written.
        path: ends with .glb, or with .obj: then .mtl and .png of the same name are written beside it, and a
            normal map, if there is one, as _normal.png.
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
    files = [path, mtl, png]
    bumps = ""
    if mesh.normal_map is not None:
        files.append(path.with_name(f"{path.stem}_normal.png"))
        directions = _picture(mesh.normal_map)
        write_whole_file(files[-1], lambda file: directions.save(file, format="PNG"))
        bumps = f"norm {files[-1].name}\n"
    material = f"# polyfield\nnewmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {png.name}\n{bumps}"
    write_whole_file(mtl, lambda file: file.write(material.encode()))
    write_whole_file(path, lambda file: file.write(_obj(mesh, mtl.name)))
    return files


def _picture(texture: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(texture.contiguous().numpy())


def _glb(mesh: TexturedMesh, turn: Tensor) -> bytes:
    import trimesh
    from trimesh.visual.material import PBRMaterial

    v_up = mesh.uvs.double() * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 1.0])  # as trimesh has them
    directions = None if mesh.normal_map is None else _picture(mesh.normal_map)
    material = PBRMaterial(baseColorTexture=_picture(mesh.texture), normalTexture=directions)
    look = trimesh.visual.TextureVisuals(uv=v_up.numpy(), material=material)
    vertices = (mesh.vertices.float() @ turn.T).numpy()
    made: Any = trimesh.Trimesh(vertices, mesh.faces.numpy(), visual=look, process=False)
    if mesh.normals is not None:
        made.vertex_normals = (mesh.normals.float() @ turn.T).double().numpy()
    if mesh.normal_map is not None:
        tangents = mesh.tangents.float()
        turned = torch.cat([tangents[:, :3] @ turn.T, tangents[:, 3:]], 1)
        made.vertex_attributes["_tangent"] = turned.contiguous().numpy()
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
