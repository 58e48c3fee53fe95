"""Front-to-back compositing of packed samples: ``composite`` and ``prune``. Kernel: ``kernels/composite.cu``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .checks import FLOATS, check_device, check_dtype, check_range, check_shape
from .native import Table, launch, on_gpu
from .ops import eager, op

MAX_VALUES = 8
Samples = TypeVar("Samples", bound=Any)


def composite(
    alphas: Tensor, values: Sequence[Tensor], ray_offsets: Tensor, *, min_transmittance: float = 0.0
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Weights of samples along rays, and what the rays see of any number of quantities.

    w_i = alpha_i T_i with T_i = prod_{j<i} (1 - alpha_j) over the samples before i on the same ray.

    Args:
        alphas: (S,) in [0, 1], float32 or float64.
        values: up to 8 tensors (S, C_i) of the same dtype, such as colours, depths, normals, features.
        ray_offsets: (R + 1,) int32: ray r owns [ray_offsets[r], ray_offsets[r + 1]).
        min_transmittance: samples with T_i below this have weight 0 and gradient 0; 0 = none.

    Returns:
        weights (S,), opacities (R,) = sum w_i, and per tensor of ``values`` its (R, C_i) = sum w_i v_i; 0 for a ray
        without samples. Differentiable in ``alphas`` and ``values``.

    Source: Max, "Optical Models for Direct Volume Rendering", 1995.
    """
    _check_composite(alphas, values, ray_offsets, min_transmittance)
    check_device(
        "composite", alphas=alphas, ray_offsets=ray_offsets, **{f"values[{i}]": v for i, v in enumerate(values)}
    )
    if eager(alphas):
        weights, opacities, *outputs = _Composite.apply(alphas, ray_offsets, min_transmittance, *values)
        return weights, opacities, outputs
    return _composite(alphas, list(values), ray_offsets, min_transmittance)


def prune(alphas: Tensor, samples: Samples, *, min_transmittance: float = 1e-4, min_alpha: float = 0.0) -> Samples:
    """The samples that a ray can see: those with alpha >= ``min_alpha`` and T_i >= ``min_transmittance`` before them.

    ``samples`` is any dataclass with the fields of ``geometry.Samples``; ``alphas`` is (S,) float32. No gradients.
    """
    new = prune_packed(
        alphas,
        samples.t_starts,
        samples.t_ends,
        samples.ray_offsets,
        min_transmittance=min_transmittance,
        min_alpha=min_alpha,
    )
    return replace(samples, t_starts=new[1], t_ends=new[2], ray_indices=new[3], ray_offsets=new[4])


def prune_packed(
    alphas: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_offsets: Tensor,
    *,
    min_transmittance: float = 1e-4,
    min_alpha: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``prune`` on plain tensors -> kept (K,) int32, their old numbers; t_starts, t_ends, ray_indices, ray_offsets."""
    check_shape("prune", "alphas", alphas, (None,))
    samples = alphas.shape[0]
    check_shape("prune", "t_starts", t_starts, (samples,))
    check_shape("prune", "t_ends", t_ends, (samples,))
    check_shape("prune", "ray_offsets", ray_offsets, (None,))
    for name, tensor in (("alphas", alphas), ("t_starts", t_starts), ("t_ends", t_ends)):
        check_dtype("prune", name, tensor, torch.float32)
    check_dtype("prune", "ray_offsets", ray_offsets, torch.int32)
    check_range("prune", "len(ray_offsets)", len(ray_offsets), 1, 2**31)
    check_range("prune", "min_transmittance", min_transmittance, 0, 1)
    check_device("prune", alphas=alphas, t_starts=t_starts, t_ends=t_ends, ray_offsets=ray_offsets)
    return _prune(alphas, t_starts, t_ends, ray_offsets, min_transmittance, min_alpha)


def _check_composite(alphas, values, ray_offsets, min_transmittance):
    samples, dtype = alphas.shape[0] if alphas.dim() == 1 else -1, alphas.dtype
    if (
        samples >= 0
        and dtype in FLOATS
        and ray_offsets.dim() == 1
        and ray_offsets.shape[0] > 0
        and ray_offsets.dtype is torch.int32
        and len(values) <= MAX_VALUES
        and 0 <= min_transmittance <= 1
        and all(v.dim() == 2 and v.shape[0] == samples and v.dtype is dtype for v in values)
    ):
        return  # the usual case, at a fraction of the time
    check_shape("composite", "alphas", alphas, (None,))
    check_dtype("composite", "alphas", alphas, *FLOATS)
    check_shape("composite", "ray_offsets", ray_offsets, (None,))
    check_dtype("composite", "ray_offsets", ray_offsets, torch.int32)
    check_range("composite", "len(ray_offsets)", len(ray_offsets), 1, 2**31)
    check_range("composite", "len(values)", len(values), 0, MAX_VALUES)
    check_range("composite", "min_transmittance", min_transmittance, 0, 1)
    for i, v in enumerate(values):
        check_shape("composite", f"values[{i}]", v, (samples, None))
        check_dtype("composite", f"values[{i}]", v, dtype)


def _check_last(op: str, ray_offsets: Tensor, samples: int) -> None:
    if on_gpu(ray_offsets):
        return  # it would have to be waited for
    last = ray_offsets[-1].item()
    if last != samples:
        raise ValueError(
            f"{op}: ray_offsets: expected to end at the number of samples, {samples}, got {last}; "
            "pass alphas and ray_offsets of the same samples"
        )


def _table(rows: list[tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]]) -> Table:
    """What the kernel reads of each values tensor: itself, output, that one's gradient, its own gradient; channels."""
    return Table([entry for row in rows for entry in (*row, row[0].shape[1])], length=5 * MAX_VALUES)


def _forward(alphas, values, ray_offsets, min_transmittance):
    _check_last("composite", ray_offsets, len(alphas))
    alphas, ray_offsets, values = alphas.contiguous(), ray_offsets.contiguous(), [v.contiguous() for v in values]
    rays = len(ray_offsets) - 1
    weights, opacities = torch.empty_like(alphas), alphas.new_empty(rays)
    outputs = [v.new_empty(rays, v.shape[1]) for v in values]
    table = _table([(v, o, None, None) for v, o in zip(values, outputs, strict=True)])
    sizes = (table, len(values), rays, min_transmittance)
    launch("composite", alphas.dtype, alphas, ray_offsets, *sizes, weights, opacities)
    return weights, opacities, outputs


def _gradients(
    alphas, values, ray_offsets, weights, grad_weights, grad_opacities, grad_outputs, needed, min_transmittance
):
    """Gradients of alphas and of each of ``values``, None where not ``needed`` or its output was not used."""
    contiguous = [None if x is None else x.contiguous() for x in (alphas, ray_offsets, grad_weights, grad_opacities)]
    alphas, ray_offsets, grad_weights, grad_opacities = contiguous
    values = [v.contiguous() for v in values]
    grad_outputs = [None if g is None else g.contiguous() for g in grad_outputs]
    grad_alphas = torch.empty_like(alphas)
    grad_values = [
        torch.empty_like(v) if need and g is not None else None
        for v, g, need in zip(values, grad_outputs, needed, strict=True)
    ]
    table = _table([(v, None, g, gv) for v, g, gv in zip(values, grad_outputs, grad_values, strict=True)])
    sizes = (table, len(values), len(ray_offsets) - 1, min_transmittance)
    grads = (weights, grad_weights, grad_opacities, grad_alphas)
    launch("composite_backward", alphas.dtype, alphas, ray_offsets, *sizes, *grads)
    return grad_alphas, grad_values


class _Composite(torch.autograd.Function):
    """The op without the dispatcher: a fit step calls it often."""

    @staticmethod
    def forward(ctx, alphas, ray_offsets, min_transmittance, *values):
        weights, opacities, outputs = _forward(alphas, values, ray_offsets, min_transmittance)
        ctx.save_for_backward(alphas, ray_offsets, weights, *values)
        ctx.set_materialize_grads(False)
        ctx.min_transmittance = min_transmittance
        return weights, opacities, *outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_weights, grad_opacities, *grad_outputs):
        alphas, ray_offsets, weights, *values = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        grads = (grad_weights, grad_opacities, grad_outputs)
        grad_alphas, grad_values = _gradients(
            alphas, values, ray_offsets, weights, *grads, needed, ctx.min_transmittance
        )
        return grad_alphas, None, None, *grad_values


@op("composite")
def _composite(
    alphas: Tensor, values: list[Tensor], ray_offsets: Tensor, min_transmittance: float
) -> tuple[Tensor, Tensor, list[Tensor]]:
    return _forward(alphas, values, ray_offsets, min_transmittance)


@_composite.register_fake
def _(alphas, values, ray_offsets, min_transmittance):
    rays = ray_offsets.shape[0] - 1
    return torch.empty_like(alphas), alphas.new_empty(rays), [v.new_empty(rays, v.shape[1]) for v in values]


@op("composite_backward")
def _composite_backward(
    alphas: Tensor,
    values: list[Tensor],
    ray_offsets: Tensor,
    weights: Tensor,
    grad_weights: Tensor | None,
    grad_opacities: Tensor | None,
    grad_outputs: list[Tensor | None],
    needed: list[bool],
    min_transmittance: float,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of alphas and of each of ``values``: empty (0,) where not ``needed`` or its output was not used."""
    grads = (grad_weights, grad_opacities, grad_outputs)
    grad_alphas, grad_values = _gradients(alphas, values, ray_offsets, weights, *grads, needed, min_transmittance)
    return grad_alphas, [alphas.new_empty(0) if g is None else g for g in grad_values]


@_composite_backward.register_fake
def _(alphas, values, ray_offsets, weights, grad_weights, grad_opacities, grad_outputs, needed, min_transmittance):
    return torch.empty_like(alphas), [
        torch.empty_like(v) if need and g is not None else v.new_empty(0)
        for v, g, need in zip(values, grad_outputs, needed, strict=True)
    ]


def _setup_context(ctx, inputs, output):
    alphas, values, ray_offsets, ctx.min_transmittance = inputs
    ctx.save_for_backward(alphas, ray_offsets, output[0], *values)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_weights, grad_opacities, grad_outputs):
    alphas, ray_offsets, weights, *values = ctx.saved_tensors
    grad_outputs = [None] * len(values) if grad_outputs is None else list(grad_outputs)
    needed = list(ctx.needs_input_grad[1])
    grad_alphas, grad_values = _composite_backward(
        alphas, values, ray_offsets, weights, grad_weights, grad_opacities, grad_outputs, needed, ctx.min_transmittance
    )
    return grad_alphas, [g if g.dim() == 2 else None for g in grad_values], None, None


_composite.register_autograd(_backward, setup_context=_setup_context)


@op("prune")
def _prune(
    alphas: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor, min_transmittance: float, min_alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_last("prune", ray_offsets, len(alphas))
    alphas, t_starts, t_ends, ray_offsets = (x.contiguous() for x in (alphas, t_starts, t_ends, ray_offsets))
    rays = len(ray_offsets) - 1
    new_offsets = torch.zeros_like(ray_offsets)
    gpu, limits = on_gpu(alphas), (min_transmittance, min_alpha)
    if gpu:
        launch("prune_counts", None, alphas, ray_offsets, rays, *limits, new_offsets[1:])
        new_offsets[1:].cumsum_(0)
    else:
        launch("prune", None, alphas, ray_offsets, rays, len(alphas), *limits, new_offsets)
    count = int(new_offsets[-1])  # the one number that is waited for
    new_starts, new_ends = alphas.new_empty(count), alphas.new_empty(count)
    new_rays, kept = ray_offsets.new_empty(count), ray_offsets.new_empty(count)
    old, new = (t_starts, t_ends, ray_offsets, new_offsets, rays), (new_starts, new_ends, new_rays, kept)
    if gpu:
        launch("prune_kept", None, alphas, *old, *limits, *new)
    else:
        launch("prune_write", None, *old, *new)
    return kept, new_starts, new_ends, new_rays, new_offsets


@_prune.register_fake
def _(alphas, t_starts, t_ends, ray_offsets, min_transmittance, min_alpha):
    count = torch.library.get_ctx().new_dynamic_size()
    integers = [ray_offsets.new_empty(count) for _ in range(2)]
    floats = [alphas.new_empty(count) for _ in range(2)]
    return integers[0], floats[0], floats[1], integers[1], torch.empty_like(ray_offsets)
