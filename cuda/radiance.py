"""A whole hash-grid radiance field in one op: ``radiance`` and ``radiance_density``. Kernel: ``kernels/radiance.cu``.

What ``hash_encode``, two ``mlp`` and the activations between them compute one by one, tile by tile in cache; a fit on a
CPU spends most of its time here. On a GPU it is one kernel in bfloat16 (``radiance_tensor.py``), and composed of those
others in float32 or with networks too large for it. Networks have no biases; gradients reach the table and the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import radiance_tensor
from .checks import check_device, check_dtype, check_range, check_shape
from .hash_encoding import HashLayout, _add_table_gradient, _check, _compute_dtype, _launch, _levels, hash_encode
from .mlp import _NONE, MAX_LAYERS, _check_layers, check_tensor_cores, mlp
from .native import has_bfloat16, launch, on_gpu
from .ops import op

MAX_LOG_DENSITY = 15.0


class Found(NamedTuple):
    """What ``radiance_march`` found at points, of which ``radiance`` need then only find the colours."""

    features: Tensor  # (N, C) the encoding's
    geometry: Tensor  # (N, G) outputs of the density network


def radiance(
    points: Tensor,
    extras: Tensor,
    table: Tensor,
    layout: HashLayout,
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    *,
    half: Tensor | None = None,
    table_grad: Tensor | None = None,
    bfloat16: bool = False,
    found: Found | None = None,
) -> tuple[Tensor, Tensor]:
    """Densities and colours of points.

        h = hash_encode(points);  g = mlp(h, density_weights);  sigma = exp(min(g_0, 15));
        color = sigmoid(mlp([extras, g], color_weights))

    Args:
        points: (N, 3) in the unit cube.
        extras: (N, K), what the colour network is told besides g: spherical harmonics of view directions.
        table, layout, half, table_grad: as for ``hash_encode``; the table is float32 or float64.
        density_weights: 1 to 5 matrices (out, in) from the encoding's channels to those of g.
        color_weights: 1 to 5 matrices from K + G inputs to 3 outputs.
        bfloat16: as for ``mlp``.
        found: what the very same table and weights gave at these points, on a CPU.

    Returns:
        sigmas (N,) and colors (N, 3). Differentiable (once) in table and weights; points and extras get no gradients
        (``hash_encode`` and ``mlp`` give those).

    Source: Müller et al., "Instant Neural Graphics Primitives", 2022, section 5.4.
    """
    _check_field("radiance", points, table, layout, half, table_grad, density_weights, bfloat16)
    samples, width = len(points), density_weights[-1].shape[0]
    check_shape("radiance", "extras", extras, (samples, None))
    check_dtype("radiance", "extras", extras, points.dtype)
    _check_layers("radiance", "color_weights", color_weights, extras.shape[1] + width, points.dtype)
    check_range("radiance", "outputs of color_weights", color_weights[-1].shape[0], 3, 3)
    colors = {f"color_weights[{i}]": w for i, w in enumerate(color_weights)}
    check_device("radiance", points=points, extras=extras, **colors)
    for name, tensor in (("points", points), ("extras", extras)):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"radiance: {name}: expected a tensor without gradients, got one that requires them; "
                "compose hash_encode and mlp instead"
            )
    if found is not None:
        check_shape("radiance", "found.features", found.features, (samples, layout.out_channels))
        check_shape("radiance", "found.geometry", found.geometry, (samples, width))
        for name, tensor in found._asdict().items():
            check_dtype("radiance", f"found.{name}", tensor, points.dtype)
        check_device("radiance", points=points, **found._asdict())
        if on_gpu(points):
            raise ValueError("radiance: found: expected None on a GPU, got features; leave it out")
    if on_gpu(points) and not (bfloat16 and radiance_tensor.fits(density_weights, color_weights)):
        geometry = mlp(
            hash_encode(points, table, layout, half=half, table_grad=table_grad), density_weights, bfloat16=bfloat16
        )
        raw = mlp(torch.cat([extras, geometry], -1), color_weights, bfloat16=bfloat16)
        return _density(geometry), torch.sigmoid(raw)
    density = [*density_weights, *_NONE[len(density_weights) :]]
    color = [*color_weights, *_NONE[len(color_weights) :]]
    known = (None, None) if found is None else tuple(x.contiguous() for x in found)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (table, *density_weights, *color_weights))
    options = (layout._numbers, bfloat16, keep)
    return _radiance(points, extras, table, half, table_grad, *density, *color, *known, *options)[:2]


def radiance_density(
    points: Tensor,
    table: Tensor,
    layout: HashLayout,
    density_weights: Sequence[Tensor],
    *,
    half: Tensor | None = None,
    bfloat16: bool = False,
) -> Tensor:
    """The densities (N,) of ``radiance`` alone, without gradients: for what asks where something is."""
    _check_field("radiance_density", points, table, layout, half, None, density_weights, bfloat16)
    weights = [w.detach() for w in density_weights]
    if on_gpu(points) and not (bfloat16 and radiance_tensor.fits(weights, ())):
        features = hash_encode(points.detach(), table.detach(), layout, half=half)
        return _density(mlp(features, weights, bfloat16=bfloat16))
    return _radiance_density(points.detach(), table.detach(), half, weights, layout._numbers, bfloat16)


def _density(geometry: Tensor) -> Tensor:
    return geometry[:, 0].clamp(max=MAX_LOG_DENSITY).exp()


def _check_field(op, points, table, layout, half, table_grad, density_weights, bfloat16) -> None:
    _check(op, points, table, layout, half, table_grad)
    check_dtype(op, "table", table, torch.float32, *(() if bfloat16 else (torch.float64,)))
    check_range(op, "layout.dimensions", layout.dimensions, 3, 3)
    _check_layers(op, "density_weights", density_weights, layout.out_channels, points.dtype)
    check_device(op, points=points, **{f"density_weights[{i}]": w for i, w in enumerate(density_weights)})
    if bfloat16:
        check_tensor_cores(op, points, torch.bfloat16)


def _names(source: Tensor, bfloat16: bool) -> tuple[str, str, int]:
    """Instances of the forward and backward kernel, and whether operands are rounded one by one."""
    native = bfloat16 and has_bfloat16()
    product = "bf16" if native else "f64" if source.dtype == torch.float64 else "f32"
    table = {torch.bfloat16: "bf16_table_", torch.float16: "f16_table_"}.get(source.dtype, "")
    return f"radiance_{table}{product}", f"radiance_backward_{product}", int(bfloat16 and not native)


def _network(inputs: int, weights: Sequence[Tensor]) -> list[int | Tensor | None]:
    dims = [inputs, *(w.shape[0] for w in weights)]
    return [len(weights), *dims, *[0] * (MAX_LAYERS + 1 - len(dims)), *weights, *_NONE[len(weights) :]]


def _forward(points, extras, source, density, color, numbers, bfloat16, outputs) -> None:
    """outputs: sigmas, colors or None, features (L, N, F) or None, the same (N, L F) or None, geometry or None. Where
    there are no features (L, N, F), those two are what was found before."""
    name, _, rounded = _names(source, bfloat16)
    channels, width = (len(numbers) - 2) // 4 * numbers[1], density[-1].shape[0]
    # without colours, the colour network's place is taken by nothing: a layout without extras
    color_part = _network(extras.shape[1] + width, color) if color else [1, width, *[0] * 5, *_NONE]
    sizes = (len(points), (len(numbers) - 2) // 4, numbers[1], rounded)
    networks = (*_network(channels, density), *color_part)
    launch(name, None, points, source, _levels(tuple(numbers), points.device), extras, *outputs, *sizes, *networks)


@op("radiance_density")
def _radiance_density(
    points: Tensor, table: Tensor, half: Tensor | None, weights: list[Tensor], numbers: list[int], bfloat16: bool
) -> Tensor:
    points, source = points.contiguous(), (table if half is None else half).contiguous()
    sigmas = points.new_empty(len(points))
    weights = [w.contiguous() for w in weights]
    if on_gpu(points):
        radiance_tensor.densities(points, source, numbers, weights, sigmas)
        return sigmas
    _forward(
        points, None, source, weights, [], numbers, bfloat16, (sigmas, None, _new_features(points, numbers), None, None)
    )
    return sigmas


@_radiance_density.register_fake
def _(points, table, half, weights, numbers, bfloat16):
    return points.new_empty(points.shape[0])


@op("radiance")
def _radiance(
    points: Tensor,
    extras: Tensor,
    table: Tensor,
    half: Tensor | None,
    table_grad: Tensor | None,
    d0: Tensor,
    d1: Tensor | None,
    d2: Tensor | None,
    d3: Tensor | None,
    d4: Tensor | None,
    c0: Tensor,
    c1: Tensor | None,
    c2: Tensor | None,
    c3: Tensor | None,
    c4: Tensor | None,
    found_features: Tensor | None,
    found_geometry: Tensor | None,
    numbers: list[int],
    bfloat16: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> sigmas (N,), colors (N, 3), and what the backward pass reads, empty unless ``keep`` or if it was found before:
    features (N, L F), geometry (N, G); on a GPU features and weights as they are multiplied, see ``radiance_tensor``.
    """
    points, extras, source = points.contiguous(), extras.contiguous(), (table if half is None else half).contiguous()
    density = [w.contiguous() for w in (d0, d1, d2, d3, d4) if w is not None]
    color = [w.contiguous() for w in (c0, c1, c2, c3, c4) if w is not None]
    fresh = keep and found_features is None
    sigmas, colors, features, geometry = outputs = _new_outputs(points, density, color, numbers, fresh)
    if on_gpu(points):
        radiance_tensor.forward(points, extras, source, numbers, density, color, outputs)
        return outputs
    kept: tuple[Tensor | None, ...]
    if found_features is not None and found_geometry is not None:
        kept = (None, found_features, found_geometry)
    else:
        kept = (_new_features(points, numbers), *((features, geometry) if keep else (None, None)))
    _forward(points, extras, source, density, color, numbers, bfloat16, (sigmas, colors, *kept))
    return outputs


def _new_features(points: Tensor, numbers: list[int]) -> Tensor:
    return points.new_empty((len(numbers) - 2) // 4, points.shape[0], numbers[1])


def _new_outputs(points, density, color, numbers, keep) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, new = points.shape[0], points.new_empty
    if on_gpu(points):
        kept = radiance_tensor.new_kept(points, density[0].shape[1], keep)
        return new(n), new(n, 3), kept, radiance_tensor.new_packed(points, density, color)
    rows = n if keep else 0
    return new(n), new(n, 3), new(rows, density[0].shape[1]), new(rows, density[-1].shape[0])


@_radiance.register_fake
def _(
    points, extras, table, half, table_grad, d0, d1, d2, d3, d4, c0, c1, c2, c3, c4, found, _, numbers, __, keep
):  # fmt: skip
    networks = ([w for w in weights if w is not None] for weights in ((d0, d1, d2, d3, d4), (c0, c1, c2, c3, c4)))
    return _new_outputs(points, *networks, numbers, keep and found is None)


@op("radiance_backward")
def _radiance_backward(
    extras: Tensor,
    outputs: list[Tensor],
    grad_sigmas: Tensor,
    grad_colors: Tensor,
    density: list[Tensor],
    color: list[Tensor],
    bfloat16: bool,
    numbers: list[int],
    source: torch.dtype,
) -> list[Tensor]:
    """Gradients to the features (L, N, F), on a GPU (N, L F), and to all weights."""
    sigmas, colors, features, geometry = outputs
    density, color = [w.contiguous() for w in density], [w.contiguous() for w in color]
    if on_gpu(extras):
        grads = _new_grads(outputs, density, color, numbers)
        upstream = (grad_sigmas.contiguous(), grad_colors.contiguous())
        build = radiance_tensor.constants(source, numbers, density, color)
        radiance_tensor.backward(extras.contiguous(), outputs, *upstream, density, color, grads, build)
        return grads
    grads = _new_grads(outputs, density, color, numbers)
    _, name, rounded = _names(features, bfloat16)
    tensors = (extras.contiguous(), features, geometry, sigmas, colors, grad_sigmas.contiguous())
    levels, samples, width = grads[0].shape
    networks = (*_network(levels * width, density), *_network(color[0].shape[1], color))
    gap_density, gap_color = _NONE[len(density) :], _NONE[len(color) :]
    of_density, of_color = grads[1 : 1 + len(density)], grads[1 + len(density) :]
    launch(
        name,
        None,
        *tensors,
        grad_colors.contiguous(),
        grads[0],
        samples,
        levels,
        width,
        rounded,
        *networks,
        *of_density,
        *gap_density,
        *of_color,
        *gap_color,
    )
    return grads


@_radiance_backward.register_fake
def _(extras, outputs, grad_sigmas, grad_colors, density, color, bfloat16, numbers, source):
    return _new_grads(outputs, density, color, numbers)


def _new_grads(outputs, density, color, numbers) -> list[Tensor]:
    sigmas = outputs[0]
    rows = on_gpu(sigmas)
    features = sigmas.new_empty(len(sigmas), density[0].shape[1]) if rows else _new_features(sigmas, numbers)
    return [features, *(torch.empty_like(t) for t in (*density, *color))]


@op("radiance_accumulate_", mutates=("table_grad",))
def _accumulate(table_grad: Tensor, points: Tensor, grad_features: Tensor, numbers: list[int]) -> None:
    if on_gpu(points):
        _add_table_gradient(table_grad, points, grad_features, None, numbers)
        return
    tensors = (points, _levels(tuple(numbers), points.device), grad_features, table_grad)
    _launch("hash_encode_backward_levels", points.dtype, numbers, points, *tensors)


@_accumulate.register_fake
def _(table_grad, points, grad_features, numbers):
    return None


def _setup_context(ctx, inputs, output):
    points, extras, table, half, ctx.table_grad = inputs[:5]
    ctx.source = (table if half is None else half).dtype
    ctx.numbers, ctx.bfloat16 = inputs[-3:-1]
    ctx.density = sum(w is not None for w in inputs[5:10])
    known = inputs[15:17]
    kept = output[2:] if known[0] is None else tuple(known)
    ctx.entries, ctx.dtype = table.shape[0], _compute_dtype(table)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(points, extras, *output[:2], *kept, *(w for w in inputs[5:15] if w is not None))


def _backward(ctx, grad_sigmas, grad_colors, _, __):
    nothing = (None,) * 20
    if grad_sigmas is None and grad_colors is None:
        return nothing
    points, extras, *rest = ctx.saved_tensors
    outputs, weights = rest[:4], rest[4:]
    density, color = weights[: ctx.density], weights[ctx.density :]
    grad_sigmas = torch.zeros_like(outputs[0]) if grad_sigmas is None else grad_sigmas
    grad_colors = torch.zeros_like(outputs[1]) if grad_colors is None else grad_colors
    upstream, networks = (grad_sigmas, grad_colors), (density, color)
    grad_features, *grads = _radiance_backward(
        extras, outputs, *upstream, *networks, ctx.bfloat16, ctx.numbers, ctx.source
    )
    grad_table = None
    if ctx.needs_input_grad[2]:
        grad_table = ctx.table_grad
        if grad_table is None:
            grad_table = points.new_zeros(ctx.entries, ctx.numbers[1])
        _accumulate(grad_table, points, grad_features, ctx.numbers)
    of_density = [*grads[: ctx.density], *_NONE[ctx.density :]]
    of_color = [*grads[ctx.density :], *_NONE[len(color) :]]
    returned = None if ctx.table_grad is not None else grad_table
    return None, None, returned, None, None, *of_density, *of_color, *nothing[15:]


_radiance.register_autograd(_backward, setup_context=_setup_context)
