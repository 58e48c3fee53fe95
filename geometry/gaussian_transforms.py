"""Gaussians moved by a similarity x -> s R x + t, and cut to fewer bands.

Means and scales are moved, quaternions multiplied from the left by that of R. Colours turn with the scene: the new
function of directions is f'(d) = f(R^T d), so that sh' = D sh with Y(R^T d) = Y(d) D for every d. D is found by solving
that for more directions than there are bases; it is exact to rounding, because bands do not mix under rotations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda.sh_basis import sh_basis
from .gaussians import Gaussians
from .transforms import matrix_to_quaternion, similarity_scale, transform_points


def transform(gaussians: Gaussians, a_to_b: Tensor) -> Gaussians:
    """Gaussians in frame a -> the same scene in frame b.

    Args:
        gaussians: G of them, any floating dtype.
        a_to_b: (4, 4) a rotation, shift and positive scale.

    Raises:
        ValueError: ``a_to_b`` mirrors or skews.
    """
    a_to_b = a_to_b.double().cpu()
    if torch.equal(a_to_b, torch.eye(4, dtype=torch.float64)):
        return gaussians
    scale = similarity_scale(a_to_b)
    rotation = a_to_b[:3, :3] / scale
    gram = rotation @ rotation.T - torch.eye(3, dtype=torch.float64)
    if not bool(a_to_b.isfinite().all()) or float(gram.abs().max()) > 1e-4 or torch.det(rotation) < 0:
        raise ValueError(
            f"transform: a_to_b: expected a rotation, shift and positive scale, got {a_to_b[:3].tolist()}; "
            "Gaussians cannot be mirrored or skewed"
        )
    place = lambda x: x.to(gaussians.means)  # noqa: E731
    turn = _snapped(matrix_to_quaternion(rotation))
    means = transform_points(a_to_b, gaussians.means.double().cpu())
    return Gaussians(
        means=place(means),
        quats=quaternion_product(place(turn).expand_as(gaussians.quats), gaussians.quats),
        log_scales=gaussians.log_scales + place(scale.log()),
        logit_opacities=gaussians.logit_opacities,
        sh=torch.einsum("ij,gjc->gic", place(sh_rotation(rotation, gaussians.degree)), gaussians.sh),
    )


def with_degree(gaussians: Gaussians, degree: int) -> Gaussians:
    """The same with bands up to ``degree`` (0 to 4): higher ones are cut off, missing ones are zero."""
    if degree not in range(5):
        raise ValueError(f"with_degree: degree: expected 0 to 4, got {degree}")
    bases = (degree + 1) ** 2
    sh = gaussians.sh[:, :bases]
    sh = torch.nn.functional.pad(sh, (0, 0, 0, bases - sh.shape[1]))
    return Gaussians(gaussians.means, gaussians.quats, gaussians.log_scales, gaussians.logit_opacities, sh)


def quaternion_product(a: Tensor, b: Tensor) -> Tensor:
    """(*, 4) w x y z each -> (*, 4): the rotation b followed by a."""
    w, x, y, z = a.unbind(-1)
    p, q, r, s = b.unbind(-1)
    rows = [
        w * p - x * q - y * r - z * s,
        w * q + x * p + y * s - z * r,
        w * r - x * s + y * p + z * q,
        w * s + x * r - y * q + z * p,
    ]
    return torch.stack(rows, -1)


def sh_rotation(rotation: Tensor, degree: int) -> Tensor:
    """(3, 3) rotation -> (B, B) float64 matrix that turns coefficients with the scene."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(96, 3, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    still, turned = sh_basis(directions, degree), sh_basis(directions @ rotation.double().cpu(), degree)
    return _snapped(torch.linalg.lstsq(still, turned).solution)


def _snapped(x: Tensor) -> Tensor:
    """Entries that are whole numbers but for rounding, made whole: turns by half a circle stay exact."""
    whole = x.round()
    return torch.where((x - whole).abs() < 1e-12, whole, x)
