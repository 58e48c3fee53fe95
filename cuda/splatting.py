"""How ``gaussians.py`` calls its kernels (``kernels/splat_*.cu``), and the autograd nodes around them.

Project: Gaussians -> rows. Sort: rows -> entries by tile, in order of depth. Draw: entries -> images, up to four
channels at a time. Backward sums moments per Gaussian and band of tiles (on a GPU: and tile) in slots, which
``splat_gather`` turns into gradients of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .memory import new_empty
from .native import Table, launch, on_gpu

ROW = 16  # numbers per projected Gaussian
CHUNK, WARP = 2048, 32  # Gaussians whose counts and pose gradients are summed together; on a GPU
COLOR, DEPTH, CHANNELS = 8, 11, 4  # first channel of a row, its depth; channels drawn at a time
TILE, BAND = 16, 2  # pixels, tiles
SMOOTH_CUTOFF = False  # float64 only: what gradient checks set, for alpha >= 1/255 is a jump

Images = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None", "Tensor | None"]


class Lens(IntEnum):
    """How Gaussians are projected."""

    PINHOLE = 0
    ORTHOGRAPHIC = 1  # K holds pixels per unit of length
    FISHEYE = 2  # equidistant: angle from the axis times focal length


@dataclass(frozen=True)
class View:
    """What projection needs to know besides tensors."""

    width: int
    height: int
    degree: int  # -1: no colours
    near: float
    blur: float
    antialias: bool
    lens: Lens

    @property
    def numbers(self) -> tuple[int | float, ...]:
        """As the kernels take them."""
        return int(self.lens), self.width, self.height, self.near, self.blur, int(self.antialias)


@dataclass(frozen=True)
class Drawing:
    """What is drawn."""

    width: int
    height: int
    depths: bool
    median_depths: bool


@dataclass(frozen=True)
class Sorted:
    """Entries by tile, and where gradients are summed."""

    entries: Tensor  # (N,) int64: a slot, and from bit 32 on the cells of the tile that its Gaussian meets
    tile_offsets: Tensor  # (tiles + 1,) int64
    slot_gaussian: Tensor  # (slots,) int32: the Gaussian whose gradients are summed there, ascending within a band
    slot_offsets: Tensor  # (bands + 1,) int64: the slots of a band; on a GPU (G + 1,), of a Gaussian

    @property
    def lists(self) -> tuple[Tensor, Tensor, Tensor]:
        """As the kernels take them."""
        return self.entries, self.tile_offsets, self.slot_gaussian


def chunks(means: Tensor) -> int:
    return -(-len(means) // (WARP if on_gpu(means) else CHUNK))


def project(gaussians: Any, K: Tensor, pose: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """-> rows (G, 16), counts (chunks, 3)."""
    means, sh = gaussians[0], gaussians[4]
    rows = new_empty(means, len(means), ROW)
    counts = torch.empty(chunks(means), 3, dtype=torch.int64, device=means.device)
    stored = 0 if sh is None else sh.shape[1]
    launch(
        "splat_project", means.dtype, *gaussians, len(means), stored, view.degree, K, pose, *view.numbers, rows, counts
    )
    return rows, counts


def project_backward(
    gaussians, K, pose, view, rows, grad_rows, slots, lists: Sorted | None, buffers, with_pose, statistics
) -> Tensor | None:
    """From grad_rows or, where that is None, from slots. Adds to ``buffers``, where not None, and ``statistics``.

    A last buffer of two dimensions is written to: the factors of the gradient to sh. -> the gradient of the pose.
    """
    means, sh = gaussians[0], gaussians[4]
    grad_pose = torch.zeros(chunks(means), 3, 4, dtype=torch.float64, device=means.device) if with_pose else None
    stored = 0 if sh is None else sh.shape[1]
    given: tuple[Any, ...] = (grad_rows, None, None, None, 0)
    if lists is not None and grad_rows is None:
        given = (None, slots, lists.slot_gaussian, lists.slot_offsets, len(lists.slot_offsets) - 1)
    arguments = (*gaussians, len(means), stored, view.degree, K, pose, *view.numbers)
    factored = int(is_factored(buffers))
    launch("splat_project_backward", means.dtype, *arguments, rows, *given, *buffers, factored, grad_pose, statistics)
    if grad_pose is None:
        return None
    return torch.cat([grad_pose.sum(0), grad_pose.new_zeros(1, 4)]).to(pose.dtype)


def sort(rows: Tensor, counts: Tensor, width: int, height: int) -> Sorted:
    """Which Gaussians each tile blends, in order of depth, then of number."""
    if on_gpu(rows):
        return _sort_on_gpu(rows, width, height)
    _, most, slots = counts.sum(0).tolist()
    _check_pairs(most)
    tiles, bands = _tiles(width, height), -(-height // (TILE * BAND))
    sizes = ((most, torch.int64), (tiles + 1, torch.int64), (slots, torch.int32), (bands + 1, torch.int64))
    lists = Sorted(*(new_empty(rows, n, dtype=dtype) for n, dtype in sizes))
    launch("splat_tiles", rows.dtype, rows, len(rows), width, height, most, *lists.lists, lists.slot_offsets)
    return lists


def _tiles(width: int, height: int) -> int:
    return -(-width // TILE) * -(-height // TILE)


def _check_pairs(pairs: int) -> None:
    if pairs >= 2**31:
        raise ValueError(
            f"gaussians: log_scales: expected to meet fewer than 2^31 tiles of the image, got {pairs}; draw a smaller "
            "image, or drop Gaussians that cover it"
        )


def _sort_on_gpu(rows: Tensor, width: int, height: int) -> Sorted:
    """Gaussians by depth, then their tiles by number, which fit 16 bits: fewer passes of torch's radix sort than over
    pairs of both. Waits once, for the number of pairs: lists have that size.
    """
    G, tiles = len(rows), _tiles(width, height)
    counts = torch.empty(G, dtype=torch.int64, device=rows.device)
    launch("splat_pairs", rows.dtype, rows, None, G, width, height, counts, None, None, None, None, None)
    slot_offsets = _starts(counts)
    order = rows[:, DEPTH].sort(stable=True).indices
    starts = _starts(counts[order])
    pairs = int(slot_offsets[-1])
    _check_pairs(pairs)
    tile, entries, slot_gaussian = (
        torch.empty(pairs, dtype=dtype, device=rows.device) for dtype in (torch.int32, torch.int64, torch.int32)
    )
    where = (None, slot_offsets, starts, tile, entries, slot_gaussian)
    launch("splat_pairs", rows.dtype, rows, order, G, width, height, *where)
    tile, place = tile.to(torch.int16 if tiles < 2**15 else torch.int32).sort(stable=True)
    tile_offsets = torch.searchsorted(tile, torch.arange(tiles + 1, dtype=tile.dtype, device=rows.device))
    return Sorted(entries[place], tile_offsets, slot_gaussian, slot_offsets)


def _starts(counts: Tensor) -> Tensor:
    """(N,) -> (N + 1,) sums of what comes before."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def plane_table(images: list[tuple[Tensor, int, int]]) -> Table:
    return Table([x for plane in images for x in plane], 3 * CHANNELS)


def _passes(rows: Tensor, colors: Any, depths: Any, features: Tensor | None, drawn: Any):
    """What is drawn at a time: source of the channels, its first and number, and the planes of the image."""
    planes = [(colors, c, 3) for c in range(3)] + ([] if depths is None else [(depths, 0, 1)])
    yield rows, COLOR, len(planes), planes
    if features is not None:
        C = features.shape[1]
        for first in range(0, C, CHANNELS):
            n = min(CHANNELS, C - first)
            yield features, first, n, [(drawn, first + c, C) for c in range(n)]


def draw(rows: Tensor, lists: Sorted, features: Tensor | None, background: Tensor | None, what: Drawing) -> Images:
    """-> colours, alphas, z_depths, median depths, features."""
    size = (what.height, what.width)
    colors, alphas = new_empty(rows, *size, 3), new_empty(rows, *size)
    z_depths = new_empty(rows, *size) if what.depths else None
    medians = new_empty(rows, *size) if what.median_depths else None
    drawn = None if features is None else new_empty(rows, *size, features.shape[1])
    scene = (rows, *lists.lists, len(lists.tile_offsets) - 1, what.width, what.height)
    for source, first, n, planes in _passes(rows, colors, z_depths, features, drawn):
        extra = (background, alphas, medians) if source is rows else (None, None, None)
        channels = (source, first, source.shape[1], n)
        launch("splat_blend", rows.dtype, *scene, *channels, plane_table(planes), *extra, int(SMOOTH_CUTOFF))
    return colors, alphas, z_depths, medians, drawn


def draw_backward(rows, lists: Sorted, features, images: Images, grads, what: Drawing) -> tuple[Tensor, Any, Any]:
    """-> slots, gradients of rows (None if slots are all there is) and of features."""
    grad_colors, grad_alphas, grad_depths, _, grad_drawn = (None if g is None else g.contiguous() for g in grads)
    colors, alphas, z_depths, _, drawn = images
    grad_rows = None if features is None else torch.empty_like(rows)
    grad_features = None if features is None else torch.empty_like(features)
    slots = new_empty(rows, len(lists.slot_gaussian), ROW)
    scene = (rows, *lists.lists, len(lists.tile_offsets) - 1, what.width, what.height)
    forward = _passes(rows, colors, z_depths, features, drawn)
    backward = _passes(rows, grad_colors, None if z_depths is None else grad_depths, features, grad_drawn)
    for (source, first, n, planes), (_, _, _, grad_planes) in zip(forward, backward, strict=True):
        of_rows = source is rows
        alpha = (alphas, grad_alphas if of_rows else None)
        channels = (source, first, source.shape[1], n)
        given = (plane_table(planes), plane_table(grad_planes), *alpha, slots, lists.slot_offsets)
        launch("splat_blend_backward", rows.dtype, *scene, *channels, *given, int(SMOOTH_CUTOFF))
        if grad_rows is not None:
            gather(
                "splat_gather",
                rows,
                slots,
                lists,
                grad_rows,
                not of_rows,
                *((None, 0, 0, 0) if of_rows else (grad_features, *channels[1:])),
            )
    return slots, grad_rows, grad_features


def gather(kernel, rows, slots, lists: Sorted, grad_rows, add, grad_channels=None, first=0, stride=0, n=0) -> None:
    """Slots -> gradients of rows and channels."""
    bands = len(lists.slot_offsets) - 1
    where = (rows, slots, lists.slot_gaussian, lists.slot_offsets, bands, len(rows))
    launch(kernel, rows.dtype, *where, grad_rows, int(add), grad_channels, first, stride, n)


def grad_background(background, grad_colors, alphas):
    return torch.einsum("hw,hwc->c", 1 - alphas, grad_colors).to(background.dtype)


class Project(torch.autograd.Function):
    """Gaussians, K, world_to_camera, view -> rows, counts."""

    @staticmethod
    def forward(ctx, means, quats, log_scales, logit_opacities, sh, K, pose, view):
        gaussians = contiguous(means, quats, log_scales, logit_opacities, sh)
        K, pose = K.to(pose).contiguous(), pose.contiguous()
        rows, counts = project(gaussians, K, pose, view)
        ctx.view = view
        ctx.save_for_backward(*gaussians, K, pose, rows)
        ctx.mark_non_differentiable(counts)
        return rows, counts

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rows, _):
        *gaussians, K, pose, rows = ctx.saved_tensors
        buffers = new_buffers(gaussians, ctx.needs_input_grad)
        grad_pose = project_backward(
            gaussians,
            K,
            pose,
            ctx.view,
            rows,
            grad_rows.contiguous(),
            None,
            None,
            buffers,
            ctx.needs_input_grad[6],
            None,
        )
        return *buffers, None, grad_pose, None


class Rasterize(torch.autograd.Function):
    """rows, counts, features, background, drawing -> images."""

    @staticmethod
    def forward(ctx, rows, counts, features, background, what):
        rows, features, background = contiguous(rows, features, background)
        lists = sort(rows, counts, what.width, what.height)
        images = draw(rows, lists, features, background, what)
        ctx.lists, ctx.what = lists, what
        ctx.save_for_backward(rows, features, background, *images)
        if images[3] is not None:
            ctx.mark_non_differentiable(images[3])
        ctx.set_materialize_grads(False)
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        rows, features, background, *images = ctx.saved_tensors
        slots, grad_rows, grad_features = draw_backward(rows, ctx.lists, features, images, grads, ctx.what)
        if grad_rows is None:
            grad_rows = torch.empty_like(rows)
            gather("splat_gather", rows, slots, ctx.lists, grad_rows, False)
        wants_background = background is not None and ctx.needs_input_grad[3] and grads[0] is not None
        behind = grad_background(background, grads[0], images[1]) if wants_background else None
        return grad_rows, None, grad_features, behind, None


class Render(torch.autograd.Function):
    """Both in one node -> images and extents."""

    @staticmethod
    def forward(
        ctx,
        means,
        quats,
        log_scales,
        logit_opacities,
        sh,
        K,
        pose,
        features,
        background,
        view,
        what,
        buffers,
        statistics,
    ):
        gaussians = contiguous(means, quats, log_scales, logit_opacities, sh)
        K, pose = K.to(pose).contiguous(), pose.contiguous()
        features, background = contiguous(features, background)
        rows, counts = project(gaussians, K, pose, view)
        lists = sort(rows, counts, what.width, what.height)
        images = draw(rows, lists, features, background, what)
        ctx.view, ctx.what, ctx.lists, ctx.buffers, ctx.statistics = view, what, lists, buffers, statistics
        ctx.unused = UnusedFactors(buffers)
        ctx.save_for_backward(*gaussians, K, pose, rows, features, background, *images)
        extents = rows[:, 6:8]
        ctx.mark_non_differentiable(extents, *(() if images[3] is None else (images[3],)))
        ctx.set_materialize_grads(False)
        return *images, extents

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        *gaussians, K, pose, rows, features, background = ctx.saved_tensors[:10]
        images = ctx.saved_tensors[10:]
        needs = ctx.needs_input_grad
        ctx.unused.check()
        slots, grad_rows, grad_features = draw_backward(rows, ctx.lists, features, images, grads[:5], ctx.what)
        buffers = Buffers.of(ctx.buffers, gaussians, needs)
        grad_pose = project_backward(
            gaussians, K, pose, ctx.view, rows, grad_rows, slots, ctx.lists, buffers.whole, needs[6], ctx.statistics
        )
        wants_background = background is not None and needs[8] and grads[0] is not None
        behind = grad_background(background, grads[0], images[1]) if wants_background else None
        return *buffers.new, None, grad_pose, grad_features, behind, None, None, None, None


@dataclass(frozen=True)
class Buffers:
    """Where gradients to Gaussians are added: buffers that were given, and new ones for autograd where none was."""

    whole: tuple[Tensor | None, ...]
    new: tuple[Tensor | None, ...]

    @staticmethod
    def of(given: tuple[Tensor | None, ...] | None, gaussians: Any, needs: Any) -> Buffers:
        """``needs``: of which of ``gaussians`` autograd wants gradients."""
        given = (None,) * len(gaussians) if given is None else given
        missing = [need and buffer is None for need, buffer in zip(needs, given, strict=False)]
        new = new_buffers(gaussians, missing)
        whole = tuple(b if b is not None else n for b, n in zip(given, new, strict=True))
        torch.autograd.graph.increment_version([b for b in given if b is not None])
        return Buffers(whole, new)


class UnusedFactors:
    """Sees to it that factors of the colours' gradient, if that is what is given, are written to once before a step."""

    def __init__(self, buffers: tuple[Tensor | None, ...] | None) -> None:
        self.factors = buffers[4] if buffers is not None and is_factored(buffers) else None
        self.version = 0 if self.factors is None else self.factors._version

    def check(self) -> None:
        """Raises RuntimeError if another render has written to them since."""
        if self.factors is not None and self.factors._version != self.version:
            raise RuntimeError(
                "render_gaussians: grad_buffers: expected factors that no other render has written to since, got such; "
                "step, or give a buffer like sh, in which gradients add up"
            )


def is_factored(buffers: tuple[Tensor | None, ...]) -> bool:
    """Whether the last, of colours, takes the factors of their gradient."""
    return buffers[4] is not None and buffers[4].dim() == 2


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def new_buffers(gaussians, needs) -> tuple[Tensor | None, ...]:
    return tuple(
        torch.zeros_like(t) if t is not None and need else None for t, need in zip(gaussians, needs, strict=False)
    )
