"""Spherical-harmonics basis of directions: ``sh_basis(directions, degree)``. Kernel: ``kernels/sh_basis.cu``."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import FLOATS, check_dtype, check_range, check_shape
from .native import launch
from .ops import op


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics up to ``degree`` (0 to 4), as polynomials of the direction.

    Args:
        directions: (N, 3) unit vectors, float32 or float64.
        degree: highest band l; there are (degree + 1)^2 bases.

    Returns:
        (N, (degree + 1)^2). Differentiable in ``directions``.

    Source: Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013.
    """
    check_range("sh_basis", "degree", degree, 0, 4)
    check_shape("sh_basis", "directions", directions, (None, 3))
    check_dtype("sh_basis", "directions", directions, *FLOATS)
    return _sh_basis(directions, degree)


@op("sh_basis")
def _sh_basis(directions: Tensor, degree: int) -> Tensor:
    directions = directions.contiguous()
    basis = directions.new_empty(len(directions), (degree + 1) ** 2)
    launch("sh_basis", directions.dtype, directions, basis, len(directions), degree)
    return basis


@_sh_basis.register_fake
def _(directions, degree):
    return directions.new_empty(directions.shape[0], (degree + 1) ** 2)


@op("sh_basis_backward")
def _sh_basis_backward(directions: Tensor, grad_basis: Tensor, degree: int) -> Tensor:
    directions, grad_basis = directions.contiguous(), grad_basis.contiguous()
    grad_directions = torch.empty_like(directions)
    launch("sh_basis_backward", directions.dtype, directions, grad_basis, grad_directions, len(directions), degree)
    return grad_directions


@_sh_basis_backward.register_fake
def _(directions, grad_basis, degree):
    return torch.empty_like(directions)


def _setup_context(ctx, inputs, output):
    directions, ctx.degree = inputs
    ctx.save_for_backward(directions)


def _backward(ctx, grad_basis):
    (directions,) = ctx.saved_tensors
    return _sh_basis_backward(directions, grad_basis, ctx.degree), None


_sh_basis.register_autograd(_backward, setup_context=_setup_context)
