"""Distortion of weights along rays: ``distortion(weights, ...)``. Kernel: ``kernels/distortion.cu``."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import FLOATS, check_device, check_dtype, check_range, check_shape
from .native import launch, on_gpu
from .ops import op


def distortion(weights: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor) -> Tensor:
    """Per ray sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 (t_end_i - t_start_i), m_i the middle of interval i.

    Args:
        weights: (S,) float32 or float64.
        t_starts: (S,) in order along each ray.
        t_ends: (S,)
        ray_offsets: (R + 1,) int32.

    Returns:
        (R,), in units of length; 0 for a ray without samples. Differentiable in ``weights``.

    Source: Barron et al., "Mip-NeRF 360", 2022, eq. 15; in one pass after Sun et al., "Improved Direct Voxel Grid
    Optimization", 2022.
    """
    check_shape("distortion", "weights", weights, (None,))
    check_dtype("distortion", "weights", weights, *FLOATS)
    for name, t in (("t_starts", t_starts), ("t_ends", t_ends)):
        check_shape("distortion", name, t, (weights.shape[0],))
        check_dtype("distortion", name, t, weights.dtype)
    check_shape("distortion", "ray_offsets", ray_offsets, (None,))
    check_dtype("distortion", "ray_offsets", ray_offsets, torch.int32)
    check_range("distortion", "len(ray_offsets)", len(ray_offsets), 1, 2**31)
    check_device("distortion", weights=weights, t_starts=t_starts, t_ends=t_ends, ray_offsets=ray_offsets)
    return _distortion(weights, t_starts, t_ends, ray_offsets)


@op("distortion")
def _distortion(weights: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor) -> Tensor:
    if not on_gpu(weights) and ray_offsets[-1].item() != len(weights):  # a GPU would have to be waited for
        raise ValueError(
            f"distortion: ray_offsets: expected to end at the number of samples, {len(weights)}, "
            f"got {ray_offsets[-1].item()}; pass weights and ray_offsets of the same samples"
        )
    arguments = [x.contiguous() for x in (weights, t_starts, t_ends, ray_offsets)]
    losses = weights.new_empty(len(ray_offsets) - 1)
    launch("distortion", weights.dtype, *arguments, losses, len(losses))
    return losses


@_distortion.register_fake
def _(weights, t_starts, t_ends, ray_offsets):
    return weights.new_empty(ray_offsets.shape[0] - 1)


@op("distortion_backward")
def _distortion_backward(
    weights: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor, grad_losses: Tensor
) -> Tensor:
    arguments = [x.contiguous() for x in (weights, t_starts, t_ends, ray_offsets, grad_losses)]
    grad_weights = torch.empty_like(arguments[0])
    launch("distortion_backward", weights.dtype, *arguments, grad_weights, len(grad_losses))
    return grad_weights


@_distortion_backward.register_fake
def _(weights, t_starts, t_ends, ray_offsets, grad_losses):
    return torch.empty_like(weights)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_losses):
    return _distortion_backward(*ctx.saved_tensors, grad_losses), None, None, None


_distortion.register_autograd(_backward, setup_context=_setup_context)
