"""A mesh laid out flat: charts in one square (xatlas), which texel shows which point, and gutters around the charts.

UV coordinates are glTF's: (0, 0) is the texture's upper left corner, v runs down, and texel (row, column) has its
centre at ((column + 0.5) / size, (row + 0.5) / size). A texel whose centre lies just outside of a chart shows the
chart's nearest point, so that interpolation between texels never meets a colour that is not of the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .mesh_ops import face_areas, vertex_normals
from .raster import covered, nearest_weights
from .types import Mesh

PACKED = 1024  # charts are placed on a grid of this many cells a side: finer ones cost time and win little
PADDING = 2  # cells between charts
EDGE = 1.0  # texels beyond a chart's edge that show its nearest point: as far as interpolation reaches


@dataclass(frozen=True)
class Atlas:
    """A mesh whose vertices are doubled along the seams of its charts."""

    mesh: Mesh
    uvs: Tensor  # (V, 2) in [0, 1]
    size: int  # texels a side
    texel_faces: Tensor  # (size * size,) int32: the triangle that a texel shows, -1 = none

    @property
    def normals(self) -> Tensor:
        """(V, 3) unit, of the vertices; computed if the mesh has none."""
        return vertex_normals(self.mesh) if self.mesh.normals is None else self.mesh.normals

    def points(self, texels: Tensor) -> tuple[Tensor, Tensor]:
        """Texels (N,) that show something -> where on the surface (N, 3), and its unit normals (N, 3)."""
        corners, weights = self.weights(texels)
        normals = self.normals
        at = (self.mesh.vertices[corners] * weights[..., None]).sum(1)
        return at, torch.nn.functional.normalize((normals[corners] * weights[..., None]).sum(1), dim=1)

    def weights(self, texels: Tensor) -> tuple[Tensor, Tensor]:
        """Texels (N,) that show something -> vertices (N, 3) int64 and their weights (N, 3)."""
        corners = self.mesh.faces[self.texel_faces[texels].long()]
        centers = torch.stack([texels % self.size, texels // self.size], -1) + 0.5
        return corners, nearest_weights(self.uvs[corners].double() * self.size, centers.double())[0].float()


def texture_memory(size: int) -> int:
    """Bytes that a texture of size x size texels takes while it is made: the layout, colours, gutters, the file."""
    return 40 * size * size


def make_atlas(mesh: Mesh, size: int) -> Atlas:
    """Charts of little distortion in a square of size x size texels; takes about 0.3 ms of a core per triangle.

    Source: xatlas (Jonathan Young), which grows charts and flattens them by least squares conformal maps.

    Raises:
        ValueError: no triangles, a size below 16, or a mesh that xatlas does not lay out.
    """
    if size < 16:
        raise ValueError(f"make_atlas: size: expected at least 16 texels, got {size}")
    if len(mesh.faces) == 0:
        raise ValueError("make_atlas: mesh: expected at least one triangle, got none")
    import xatlas

    mesh = mesh.detach().to("cpu")
    if not float(face_areas(mesh).sum()) > 0:
        raise ValueError("make_atlas: mesh: expected finite triangles with an area, got none")
    normals = None if mesh.normals is None else mesh.normals.float().numpy()
    atlas = xatlas.Atlas()
    # Of a size at which xatlas, whose tolerances are absolute, takes no triangle for degenerate that is not.
    scale = face_areas(mesh).double().mean().rsqrt()
    scaled = ((mesh.vertices - mesh.vertices.mean(0)).double() * scale).float()
    atlas.add_mesh(scaled.numpy(), mesh.faces.int().numpy().astype("u4"), normals)
    options = xatlas.PackOptions()
    options.resolution, options.padding = min(size, PACKED), PADDING
    options.bilinear, options.blockAlign = True, True
    atlas.generate(xatlas.ChartOptions(), options)
    if atlas.atlas_count != 1:
        raise ValueError(
            f"make_atlas: mesh: expected one square that holds all charts, got {atlas.atlas_count}; "
            "clean or simplify the mesh"
        )
    source, faces, uvs = (torch.from_numpy(array) for array in atlas[0])
    source, faces = source.long(), faces.long()
    uvs = uvs.double() * torch.tensor([atlas.width, atlas.height]) / max(atlas.width, atlas.height)
    pick = lambda t: None if t is None else t[source]  # noqa: E731
    split = Mesh(mesh.vertices[source], faces, pick(mesh.normals), pick(mesh.colors))
    in_chart = torch.from_numpy(atlas.get_mesh_vertex_assignment(0)[0].astype("i4")) == 0
    uvs = _with_slivers(split.vertices, uvs.clamp(0, 1).float(), in_chart)
    return Atlas(split, uvs, size, texel_faces(uvs, faces, size, in_chart[faces].all(1)))


def _with_slivers(vertices: Tensor, uvs: Tensor, in_chart: Tensor) -> Tensor:
    """Vertices of triangles without area, which are in no chart, take the place of the nearest one that is."""
    alone = (~in_chart).nonzero()[:, 0]
    if len(alone) and bool(in_chart.any()):
        from scipy.spatial import cKDTree

        placed = in_chart.nonzero()[:, 0]
        nearest = cKDTree(vertices[placed].numpy()).query(vertices[alone].numpy())[1]
        uvs[alone] = uvs[placed[torch.from_numpy(nearest)]]
    return uvs


def texel_faces(uvs: Tensor, faces: Tensor, size: int, laid_out: Tensor | None = None) -> Tensor:
    """(size * size,) int32: the triangle whose inside holds a texel's centre, or lies next to it; -1 = none.

    ``laid_out`` (F,) bool: the triangles that count.
    """
    corners = uvs.double()[faces] * size
    if laid_out is not None:
        corners = torch.where(laid_out[:, None, None], corners, torch.nan)
    none = len(faces)
    result = torch.full((size * size,), none, dtype=torch.int32)
    for triangle, texel, _ in covered(corners, size, size):
        result.scatter_reduce_(0, texel, triangle.int(), "amin")
    rim = _rim(faces)
    texels, keys = [], []
    for triangle, texel, outside in covered(corners[rim], size, size, margin=EDGE):
        empty = (result[texel] == none).nonzero()[:, 0]
        texels.append(texel[empty])
        # In the order of distance, then of numbers.
        keys.append(((outside[empty] * (1 << 20)).long() << 32) | rim[triangle[empty]])
    texel, key = (torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long) for parts in (texels, keys))
    order = key.argsort(descending=True, stable=True).numpy()
    result.numpy()[texel.numpy()[order]] = (key & 0xFFFFFFFF).int().numpy()[order]  # the nearest is written last
    result[result == none] = -1
    return result


def _rim(faces: Tensor) -> Tensor:
    """Triangles with a vertex on the edge of a chart."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(1).values
    unique, counts = edges.unique(dim=0, return_counts=True)
    on_edge = torch.zeros(int(faces.max()) + 1, dtype=torch.bool)
    on_edge[unique[counts == 1].reshape(-1)] = True
    return on_edge[faces].any(1).nonzero()[:, 0]


def fill_gutters(texture: Tensor, filled: Tensor, steps: int = 8) -> Tensor:
    """Grow the charts' colours outwards, so that seams show neither interpolated nor in smaller copies (mipmaps).

    Args:
        texture: (H, W, C); what is not filled is overwritten.
        filled: (H, W) bool.
        steps: how many texels outwards; beyond, the mean of all colours.

    Returns:
        texture itself.
    """
    height, width, channels = texture.shape
    flat, done = texture.view(-1, channels), filled.clone()
    if not bool(done.any()):
        return texture
    mean = flat[filled.view(-1)].double().mean(0)
    for _ in range(steps):
        texel = (_grown(done) & ~done).view(-1).nonzero()[:, 0]
        if not len(texel):
            break
        row, column = texel // width, texel % width
        total, count = flat.new_zeros(len(texel), channels, dtype=torch.float32), flat.new_zeros(len(texel), 1).float()
        for dy, dx in ((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if x or y):
            there = (row + dy).clamp(0, height - 1) * width + (column + dx).clamp(0, width - 1)
            usable = done.view(-1)[there][:, None].float()
            total += flat[there].float() * usable
            count += usable
        flat[texel] = _like(total / count, flat)
        done.view(-1)[texel] = True
    flat[~done.view(-1)] = _like(mean, flat)
    return texture


def _like(values: Tensor, texture: Tensor) -> Tensor:
    return values.to(texture.dtype) if texture.is_floating_point() else values.round().to(texture.dtype)


def _grown(mask: Tensor) -> Tensor:
    """(H, W) bool, and its eight neighbours."""
    wide = mask.clone()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    result = wide.clone()
    result[1:] |= wide[:-1]
    result[:-1] |= wide[1:]
    return result
