"""A run's mesh with a picture on it: what its field, or its photographs, show at every texel.

From the photographs: the mean of those that see the point, each by how squarely and how closely it looks; what none
sees is the field's. From the field: a ray through the surface alone, as the renderer would draw it, in the direction of
the photograph that counts most there, since a field knows nothing of directions in which no photograph looks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..datasets.scene import Frame
from ..geometry import Camera, Mesh, Rays
from ..geometry.atlas import fill_gutters, make_atlas, texture_memory
from ..geometry.mesh_ops import transform
from ..geometry.raster import bilinear, see_mesh
from ..geometry.textured_mesh import TexturedMesh
from ..geometry.transforms import similarity_inverse
from ..renderers.volume import VolumeRenderer
from .devices import CPU, free_memory
from .errors import UserError
from .normal_map import bake_normals
from .run import Run
from .texture_source import TextureSource

PORTION = 1 << 16  # texels at a time
REACH = 6.0  # of a ray, in the renderer's shortest steps, before and behind the surface
GRAZING = 0.15  # cosine below which a photograph says nothing
SHARPNESS = 4.0  # power of the cosine: frontal views count more, so that few are mixed


def check_texture(size: int) -> None:
    """Raises UserError for a size that makes no sense, or of which the memory does not hold the making."""
    if size < 16:
        raise UserError(f"extract: --texture: expected at least 16 texels a side, got {size}")
    needed, free = texture_memory(size), free_memory(CPU)
    if needed > free:
        fitting = max(16, int((free / texture_memory(1)) ** 0.5) // 16 * 16)
        raise UserError(
            f"extract: --texture: expected a size that fits into memory, got {size}: {size} x {size} texels need about "
            f"{needed / 2**30:.2f} GB, {free / 2**30:.2f} GB are free; ask for at most {fitting}"
        )


@torch.no_grad()
def texture_mesh(
    run: Run,
    mesh: Mesh,
    size: int,
    source: TextureSource = TextureSource.FIELD,
    *,
    normal_map: bool = False,
) -> TexturedMesh:
    """A mesh in the scene's own units -> the same, textured with size x size texels, and a normal map of them if asked.

    Raises:
        UserError: a size that does not fit into memory, a mesh without triangles.
    """
    check_texture(size)
    to_world = run.asked.facts.matrix
    try:
        atlas = make_atlas(transform(mesh, similarity_inverse(to_world.double()).float()), size)
    except ValueError as error:
        raise UserError(f"extract: --texture: {error}") from error
    filled = atlas.texel_faces >= 0
    texels = filled.nonzero()[:, 0]
    views = Views(atlas.mesh, _photographs(run, source))
    looks = views.directions(atlas.mesh.vertices, atlas.normals)  # vary little: interpolated between vertices
    texture = torch.zeros(size * size, 3, dtype=torch.uint8)
    for part in texels.split(PORTION):
        points, normals = atlas.points(part)
        colors, known = torch.zeros_like(points), torch.zeros(len(points), dtype=torch.bool)
        if source is TextureSource.PHOTOGRAPHS:
            colors, known = views.colors(points, normals)
        rest = (~known).nonzero()[:, 0]
        corners, weights = atlas.weights(part[rest])
        along = normalize((looks[corners] * weights[..., None]).sum(1), dim=1)
        colors[rest] = field_colors(run, points[rest], along)
        texture[part] = (colors.clamp(0, 1) * 255).round().to(torch.uint8)
    picture = fill_gutters(texture.view(size, size, 3), filled.view(size, size))
    directions = bake_normals(run, atlas, PORTION) if normal_map else None
    moved = transform(replace(atlas.mesh, normals=atlas.normals), to_world)
    return TexturedMesh(moved.vertices, moved.faces, atlas.uvs, picture, moved.normals, directions)


def field_colors(run: Any, points: Tensor, directions: Tensor) -> Tensor:
    """(N, 3) on the CPU: what the field shows at points (N, 3), scene frame, to who looks along unit ones (N, 3)."""
    points, inwards = points.to(run.device), directions.to(run.device)
    colors = run.field.query(points, inwards).colors
    if isinstance(run.renderer, VolumeRenderer) and len(points):
        reach = REACH * run.renderer.step
        near = torch.zeros_like(points[:, 0])
        drawn = run.renderer.render(run.field, Rays(points - reach * inwards, inwards, near, near + 2 * reach))
        alphas = drawn.pixels.alphas[:, None]
        own = (drawn.pixels.colors - (1 - alphas) * drawn.background) / alphas.clamp_min(1e-6)
        colors = torch.where(alphas > 0.5, own, colors)
    return colors.to(CPU)


def _photographs(run: Run, source: TextureSource) -> tuple[Frame, ...]:
    """What the run was fitted to. A field can do without."""
    try:
        return run.scene().train
    except (OSError, ValueError) as error:
        if source is TextureSource.PHOTOGRAPHS:
            raise
        print(f"note: extract: colours are those seen against the normals: {error}", file=sys.stderr)
        return ()


class Views:
    """The photographs that a mesh was fitted to; which points each sees is known from the mesh's depth in it."""

    def __init__(self, mesh: Mesh, frames: tuple[Frame, ...]) -> None:
        self.frames = frames
        self.depths = [_nearest_around(see_mesh(mesh, frame.camera).z_depths) for frame in frames]

    def colors(self, points: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
        """Points (N, 3) with unit normals, scene frame -> colours (N, 3), and which of them are known (N,)."""
        total, weights = torch.zeros_like(points), points.new_zeros(len(points), 1)
        for frame, index, position, weight in self._seeing(points, normals):
            colors, opaque = _looked_up(frame, position)
            share = (weight * opaque)[:, None]
            total[index] += colors * share
            weights[index] += share
        return total / weights.clamp_min(1e-12), weights[:, 0] > 1e-6

    def directions(self, points: Tensor, normals: Tensor) -> Tensor:
        """(N, 3) unit: how the photograph that counts most looks at points; against the normal where none does."""
        result, most = -normals, torch.zeros_like(points[:, 0])
        for frame, index, _, weight in self._seeing(points, normals):
            better = weight > most[index]
            chosen = index[better]
            result[chosen] = normalize(points[chosen] - frame.camera.position, dim=1)
            most[chosen] = weight[better]
        return result

    def _seeing(self, points: Tensor, normals: Tensor) -> Iterator[tuple[Frame, Tensor, Tensor, Tensor]]:
        """Each photograph, which points it sees (M,), where in it (M, 2), and how much it should count there (M,)."""
        for frame, depths in zip(self.frames, self.depths, strict=True):
            seen, position, weight = self._seen(frame, depths, points, normals)
            index = seen.nonzero()[:, 0]
            if len(index):
                yield frame, index, position[index], weight[index]

    def _seen(self, frame: Frame, depths: Tensor, points: Tensor, normals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a photograph sees points (N,), where (N, 2), and how much it should count (N,)."""
        camera: Camera = frame.camera
        position, z = camera.project(points)
        to_camera = camera.position - points
        cosine = (normalize(to_camera, dim=1) * normals).sum(1)
        size = position.new_tensor([camera.width, camera.height])
        inside = ((position >= 1) & (position <= size - 1)).all(1)  # NaN compares False
        column, row = torch.where(inside[:, None], position, 0.0).long().unbind(1)
        # A surface seen at a slant changes its depth within the neighbourhood that depths are the nearest of.
        pixel = z / camera.K.diagonal()[:2].mean()
        slack = 2 * pixel * (1 + (1 / cosine.clamp_min(GRAZING).square() - 1).sqrt())
        seen = inside & (cosine > GRAZING) & (z <= depths[row, column] + slack)
        return seen, position, cosine.clamp_min(0) ** SHARPNESS / to_camera.square().sum(1)


def _nearest_around(depths: Tensor) -> Tensor:
    """(H, W): the nearest of each pixel's 3 x 3 neighbourhood, so that what lies behind an outline is not coloured."""
    return -torch.nn.functional.max_pool2d(-depths[None], 3, 1, 1)[0]


def _looked_up(frame: Frame, position: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (N, 3) at pixel positions (N, 2), and whether the pixels that they are of count and are opaque (N,)."""
    usable = torch.ones(frame.colors.shape[:2]) if frame.mask is None else frame.mask.float()
    if frame.alphas is not None:
        usable = usable * (frame.alphas > 250)
    opaque = bilinear(usable[..., None], position)[:, 0] > 0.999
    return bilinear(frame.colors, position) / 255, opaque.float()
