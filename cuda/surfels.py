"""2D Gaussians (surfels) drawn where rays meet their discs: ``render_surfels``.

A surfel is a Gaussian on the disc spanned by the first two axes of its rotation; the third axis is its normal, and the
third scale counts nothing. A pixel's ray meets the disc's plane (u, v) standard deviations from the mean, at depth z:

    alpha = opacity exp(-1/2 min(u^2 + v^2, 2 |x - mean2d|^2)),

the second term a round Gaussian of sqrt(1/2) pixels, so that no disc falls between the pixels or vanishes when seen
from its edge (there, z is the mean's). Sorting by the means' depths, blending and cutoffs are as in ``gaussians.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .checks import check_range
from .gaussians import check_drawn, check_gaussians, check_summed
from .surfel_splatting import Render, View

__all__ = ["Surfels", "render_surfels"]


@dataclass(frozen=True)
class Surfels:
    """What was drawn."""

    colors: Tensor  # (H, W, 3) over the background
    alphas: Tensor  # (H, W)
    z_depths: Tensor | None  # (H, W) sum_i w_i z_i: divide by alphas for the expected depth
    median_depths: Tensor | None  # (H, W) z of the intersection at which T falls to 1/2, 0 = it does not
    distortions: Tensor | None  # (H, W) sum_{i<j} w_i w_j (m_i - m_j)^2
    features: Tensor | None  # (H, W, C) sum_i w_i f_i
    extents: Tensor  # (G, 2) half width and half height in pixels, 0 = not seen; no gradients


def render_surfels(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    logit_opacities: Tensor,
    sh: Tensor | None,
    K: Tensor,
    world_to_camera: Tensor,
    width: int,
    height: int,
    *,
    features: Tensor | None = None,
    background: Tensor | None = None,
    depths: bool = False,
    degree: int | None = None,
    near: float = 0.01,
    planes: tuple[float, float] = (0.2, 100.0),
    grad_buffers: tuple[Tensor | None, ...] | None = None,
    statistics: Tensor | None = None,
) -> Surfels:
    """Surfels as a pinhole camera sees them.

    Args:
        means: (G, 3) world, float32 or float64 like all the others.
        quats: (G, 4) w, x, y, z of any length; zero = no rotation.
        log_scales: (G, 3) log of the standard deviations along the rotated axes; the third is not looked at.
        logit_opacities: (G,)
        sh: (G, B, 3) coefficients of the colour seen from each direction, minus 1/2; B = (d + 1)^2, d <= 4. None: no
            colours.
        K: (3, 3) in pixels; no gradient.
        world_to_camera: (4, 4) rigid.
        width, height: of the image, in pixels.
        features: (G, C) any number of further quantities, such as normals.
        background: (3,) behind everything; None = black.
        depths: whether to draw depths, median depths and distortions.
        degree: highest band of ``sh`` in use; None = all that there are.
        near: surfels whose mean is not farther than this along the optical axis are not seen, nor is what of others
            is nearer.
        planes: z of the near and the far plane: distortions are measured in normalised device coordinates,
            m = far (z - near) / (z (far - near)).
        grad_buffers, statistics: as in ``render_gaussians``.

    Returns:
        Differentiable in the surfels, ``features``, ``background`` and ``world_to_camera``.

    Raises:
        ValueError for shapes that do not fit together, and for planes that are not 0 < near < far.

    Source: Huang et al., "2D Gaussian Splatting for Geometrically Accurate Radiance Fields", 2024.
    """
    surfels = (means, quats, log_scales, logit_opacities, sh)
    degree = check_gaussians("render_surfels", surfels, K, world_to_camera, width, height, degree)
    check_drawn("render_surfels", means, features, background)
    check_summed("render_surfels", surfels, grad_buffers, statistics)
    low, high = planes
    if not 0 < low < high:
        raise ValueError(f"render_surfels: planes: expected 0 < near < far, got {low} and {high}; exchange them")
    check_range("render_surfels", "near", near, 0, 1e9)
    view = View(width, height, degree, near, low * high / (high - low), depths)
    return Surfels(*Render.apply(*surfels, K, world_to_camera, features, background, view, grad_buffers, statistics))
