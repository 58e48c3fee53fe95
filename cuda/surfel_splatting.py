"""How ``surfels.py`` calls its kernels (``kernels/surfel_*.cu``), and the autograd node around them.

As ``splatting.py``, whose sorting it shares: a surfel's outline is a row like a Gaussian's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import splatting
from .memory import new_empty
from .native import Table, launch
from .splatting import (
    COLOR,
    ROW,
    Buffers,
    Sorted,
    UnusedFactors,
    chunks,
    contiguous,
    grad_background,
    is_factored,
    plane_table,
    sort,
)

DRAWN = 3  # channels at a time

Maps = tuple["Tensor | None", "Tensor | None", "Tensor | None", "Tensor | None"]  # see DepthMaps in surfel_blend.cu


@dataclass(frozen=True)
class View:
    """What drawing needs to know besides tensors."""

    width: int
    height: int
    degree: int  # -1: no colours
    near: float
    scale: float  # depths are mapped to -scale / z for the distortion
    depths: bool


def project(surfels: Any, K: Tensor, pose: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """-> rows (G, 16), outlines (G, 16), counts (chunks, 3)."""
    means = surfels[0]
    rows, outlines = new_empty(means, len(means), ROW), new_empty(means, len(means), ROW)
    counts = torch.empty(chunks(means), 3, dtype=torch.int64, device=means.device)
    where = (*_surfels(surfels, view), K, pose, view.width, view.height, view.near)
    launch("surfel_project", means.dtype, *where, rows, outlines, counts)
    return rows, outlines, counts


def project_backward(surfels, K, pose, view: View, rows, grad_rows, buffers, with_pose, statistics) -> Tensor | None:
    """Adds to ``buffers``, where not None, and ``statistics``. -> the gradient of the pose."""
    means = surfels[0]
    grad_pose = torch.zeros(chunks(means), 3, 4, dtype=torch.float64, device=means.device) if with_pose else None
    where = (*_surfels(surfels, view), K, pose, view.width, view.height, view.near)
    given = (*buffers, int(is_factored(buffers)), grad_pose, statistics)
    launch("surfel_project_backward", means.dtype, *where, rows, grad_rows, *given)
    if grad_pose is None:
        return None
    return torch.cat([grad_pose.sum(0), grad_pose.new_zeros(1, 4)]).to(pose.dtype)


def _surfels(surfels: Any, view: View) -> tuple[Any, ...]:
    means, sh = surfels[0], surfels[4]
    return *surfels, len(means), 0 if sh is None else sh.shape[1], view.degree


def _passes(rows: Tensor, colors: Any, features: Tensor | None, drawn: Any):
    """What is drawn at a time: source of the channels, its first and number, and the planes of the image."""
    yield rows, COLOR, DRAWN, [(colors, c, DRAWN) for c in range(DRAWN)]
    if features is not None:
        C = features.shape[1]
        for first in range(0, C, DRAWN):
            n = min(DRAWN, C - first)
            yield features, first, n, [(drawn, first + c, C) for c in range(n)]


def draw(rows: Tensor, lists: Sorted, features: Tensor | None, background: Tensor | None, view: View):
    """-> colours, alphas, depth maps, features."""
    size = (view.height, view.width)
    colors, alphas = new_empty(rows, *size, 3), new_empty(rows, *size)
    drawn = None if features is None else new_empty(rows, *size, features.shape[1])
    maps: Maps = tuple(new_empty(rows, *size) if view.depths else None for _ in range(4))  # type: ignore[assignment]
    scene = (rows, *lists.lists, len(lists.tile_offsets) - 1, view.width, view.height)
    for source, first, n, images in _passes(rows, colors, features, drawn):
        own = source is rows
        deep = Table(maps if own else (None,) * 4)
        given = (plane_table(images), background if own else None, alphas if own else None, deep, view.near, view.scale)
        channels = (source, first, source.shape[1], n)
        launch("surfel_blend", rows.dtype, *scene, *channels, *given, int(splatting.SMOOTH_CUTOFF))
    return colors, alphas, maps, drawn


def draw_backward(rows, lists: Sorted, features, images, grads, view: View) -> tuple[Tensor, Tensor | None]:
    """-> gradients of rows and of features."""
    colors, alphas, depths, medians, distortions, middles, drawn = images
    grad_colors, grad_alphas, *grad_maps, grad_drawn = (None if g is None else g.contiguous() for g in grads)
    grad_rows = torch.empty_like(rows)
    grad_features = None if features is None else torch.empty_like(features)
    slots = new_empty(rows, len(lists.slot_gaussian), ROW)
    scene = (rows, *lists.lists, len(lists.tile_offsets) - 1, view.width, view.height)
    forward, backward = _passes(rows, colors, features, drawn), _passes(rows, grad_colors, features, grad_drawn)
    for (source, first, n, there), (_, _, _, grad_there) in zip(forward, backward, strict=True):
        own = source is rows
        maps, grad_deep = ((depths, medians, distortions, middles), (*grad_maps, None)) if own else ((None,) * 4,) * 2
        drawn_and_back = (plane_table(there), plane_table(grad_there), alphas, grad_alphas if own else None)
        tables = (*drawn_and_back, Table(maps), Table(grad_deep))
        channels = (source, first, source.shape[1], n)
        given = (*tables, view.near, view.scale, slots, lists.slot_offsets, int(splatting.SMOOTH_CUTOFF))
        launch("surfel_blend_backward", rows.dtype, *scene, *channels, *given)
        others = (None, 0, 0, 0) if own else (grad_features, *channels[1:])
        splatting.gather("surfel_gather", rows, slots, lists, grad_rows, not own, *others)
    return grad_rows, grad_features


class Render(torch.autograd.Function):
    """Surfels, K, world_to_camera, features, background, view, buffers, statistics -> images and extents."""

    @staticmethod
    def forward(
        ctx, means, quats, log_scales, logit_opacities, sh, K, pose, features, background, view, buffers, statistics
    ):
        surfels = contiguous(means, quats, log_scales, logit_opacities, sh)
        K, pose = K.to(pose).contiguous(), pose.contiguous()
        features, background = contiguous(features, background)
        rows, outlines, counts = project(surfels, K, pose, view)
        lists = sort(outlines, counts, view.width, view.height)
        colors, alphas, maps, drawn = draw(rows, lists, features, background, view)
        ctx.view, ctx.lists, ctx.buffers, ctx.statistics = view, lists, buffers, statistics
        ctx.unused = UnusedFactors(buffers)
        ctx.save_for_backward(*surfels, K, pose, rows, features, background, colors, alphas, *maps, drawn)
        extents = rows[:, 6:8]
        ctx.mark_non_differentiable(extents)
        ctx.set_materialize_grads(False)
        return colors, alphas, *maps[:3], drawn, extents

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        *surfels, K, pose, rows, features, background = ctx.saved_tensors[:10]
        images, needs = ctx.saved_tensors[10:], ctx.needs_input_grad
        ctx.unused.check()
        grad_rows, grad_features = draw_backward(rows, ctx.lists, features, images, grads[:6], ctx.view)
        buffers = Buffers.of(ctx.buffers, surfels, needs)
        whole = buffers.whole
        grad_pose = project_backward(surfels, K, pose, ctx.view, rows, grad_rows, whole, needs[6], ctx.statistics)
        wants_background = background is not None and needs[8] and grads[0] is not None
        behind = grad_background(background, grads[0], images[1]) if wants_background else None
        return *buffers.new, None, grad_pose, grad_features, behind, None, None, None
