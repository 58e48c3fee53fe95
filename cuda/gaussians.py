"""3D Gaussians drawn as ellipses: ``project_gaussians``, ``rasterize_gaussians``, and both at once.

A Gaussian is seen as the ellipse that the projection, linearised at its mean, makes of it (EWA); ellipses are sorted by
depth and blended front to back, alpha_i = opacity_i exp(-1/2 d^T conic_i d), T_i = prod_{j<i} (1 - alpha_j):

    colors = sum_i T_i alpha_i c_i + T background,    alphas = 1 - T.

An alpha below 1/255 counts as 0, one above 0.999 as 0.999; a pixel is done when T < 1e-4. So an ellipse ends exactly
where alpha = 1/255, and is sorted into just those blocks of pixels that it meets.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from . import splatting
from .checks import FLOATS, check_device, check_dtype, check_range, check_shape
from .sh_adam import FACTORS
from .splatting import Lens, View

__all__ = ["Lens", "Projected", "Splats", "project_gaussians", "rasterize_gaussians", "render_gaussians"]


@dataclass(frozen=True)
class Projected:
    """Gaussians as an image sees them. Those that it does not see have extents 0 (and zeros elsewhere)."""

    rows: Tensor  # (G, 16): what the properties below name
    counts: Tensor  # (*, 3) int64, to be summed: Gaussians seen, tiles and bands of tile rows that they touch at most
    width: int
    height: int

    @property
    def means2d(self) -> Tensor:
        """(G, 2) pixels."""
        return self.rows[:, 0:2]

    @property
    def conics(self) -> Tensor:
        """(G, 3) a, b, c of the inverse covariance [[a, b], [b, c]], per pixel^2."""
        return self.rows[:, 2:5]

    @property
    def opacities(self) -> Tensor:
        """(G,) after anti-aliasing."""
        return self.rows[:, 5]

    @property
    def extents(self) -> Tensor:
        """(G, 2) half width and half height of the ellipse alpha = 1/255, in pixels; no gradients."""
        return self.rows[:, 6:8].detach()

    @property
    def colors(self) -> Tensor:
        """(G, 3) seen from this camera, at least 0."""
        return self.rows[:, 8:11]

    @property
    def z_depths(self) -> Tensor:
        """(G,) along the optical axis (fisheye: distance from the camera)."""
        return self.rows[:, 11]


@dataclass(frozen=True)
class Splats:
    """What was drawn."""

    colors: Tensor  # (H, W, 3) over the background
    alphas: Tensor  # (H, W)
    z_depths: Tensor | None  # (H, W) sum_i w_i z_i: divide by alphas for the expected depth
    median_depths: Tensor | None  # (H, W) z of the Gaussian at which T falls to 1/2, 0 = it does not; no gradients
    features: Tensor | None  # (H, W, C) sum_i w_i f_i
    extents: Tensor  # (G, 2) half width and half height in pixels, 0 = not seen; no gradients


def project_gaussians(
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
    degree: int | None = None,
    near: float = 0.01,
    blur: float = 0.3,
    antialias: bool = False,
    lens: Lens = Lens.PINHOLE,
) -> Projected:
    """Gaussians as one camera sees them.

    Args:
        means: (G, 3) world, float32 or float64 like all the others.
        quats: (G, 4) w, x, y, z of any length; zero = no rotation.
        log_scales: (G, 3) log of the standard deviations along the rotated axes.
        logit_opacities: (G,)
        sh: (G, B, 3) coefficients of the colour seen from each direction, minus 1/2; B = (d + 1)^2, d <= 4. None: no
            colours.
        K: (3, 3) in pixels; no gradient.
        world_to_camera: (4, 4) rigid.
        width, height: of the image, in pixels.
        degree: highest band of ``sh`` in use; None = all that there are.
        near: Gaussians whose mean is not farther than this along the optical axis are not seen.
        blur: pixels^2 added to the projected covariance's diagonal.
        antialias: opacities shrink as the blur widens an ellipse (Mip-Splatting).
        lens: the projection; its distortion, if any, is to be taken out of the image first.

    Returns:
        Differentiable in the Gaussians and in ``world_to_camera``.

    Source: Zwicker et al., "EWA Splatting", 2002; Kerbl et al., "3D Gaussian Splatting", 2023; Yu et al.,
    "Mip-Splatting", 2024.
    """
    gaussians = (means, quats, log_scales, logit_opacities, sh)
    degree = check_gaussians("project_gaussians", gaussians, K, world_to_camera, width, height, degree)
    view = View(width, height, degree, near, blur, antialias, lens)
    rows, counts = splatting.Project.apply(*gaussians, K, world_to_camera, view)
    return Projected(rows, counts, width, height)


def rasterize_gaussians(
    projected: Projected,
    features: Tensor | None = None,
    *,
    background: Tensor | None = None,
    depths: bool = False,
    median_depths: bool = False,
) -> Splats:
    """Draw what was projected.

    Args:
        projected: of ``project_gaussians``.
        features: (G, C) any number of further quantities, such as normals.
        background: (3,) behind everything; None = black.
        depths, median_depths: whether to draw those.

    Returns:
        Differentiable in ``projected.rows``, ``features`` and ``background``.
    """
    check_drawn("rasterize_gaussians", projected.rows, features, background)
    drawing = splatting.Drawing(projected.width, projected.height, depths, median_depths)
    colors, alphas, z_depths, medians, drawn = splatting.Rasterize.apply(
        projected.rows, projected.counts, features, background, drawing
    )
    return Splats(colors, alphas, z_depths, medians, drawn, projected.extents)


def render_gaussians(
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
    median_depths: bool = False,
    degree: int | None = None,
    near: float = 0.01,
    blur: float = 0.3,
    antialias: bool = False,
    lens: Lens = Lens.PINHOLE,
    grad_buffers: tuple[Tensor | None, ...] | None = None,
    statistics: Tensor | None = None,
) -> Splats:
    """``project_gaussians`` and ``rasterize_gaussians`` as one op: what a fit's step calls.

    Args:
        grad_buffers: five tensors like means, quats, log_scales, logit_opacities and sh, or None for any: backward adds
            their gradients there and does not hand them to autograd: no allocation, and Gaussians that are not
            seen are not touched. The last may be (G, 6) instead: backward puts there the two factors, direction and
            gradient of the colour, of which ``sh_adam_`` makes the gradient to sh; so there is one pass before it.
        statistics: (G, 4), for density control; backward adds to it in place, per Gaussian that is seen: the length of
            the gradient to its ``means2d``, the same of the sum of absolute values over pixels (AbsGS), and 1; the
            last column becomes the largest half width or height so far, in pixels.
    """
    gaussians = (means, quats, log_scales, logit_opacities, sh)
    degree = check_gaussians("render_gaussians", gaussians, K, world_to_camera, width, height, degree)
    check_drawn("render_gaussians", means, features, background)
    check_summed("render_gaussians", gaussians, grad_buffers, statistics)
    view = View(width, height, degree, near, blur, antialias, lens)
    drawing = splatting.Drawing(width, height, depths, median_depths)
    return Splats(
        *splatting.Render.apply(
            *gaussians, K, world_to_camera, features, background, view, drawing, grad_buffers, statistics
        )
    )


def check_summed(
    op: str,
    gaussians: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    grad_buffers: tuple[Tensor | None, ...] | None,
    statistics: Tensor | None,
) -> None:
    """Refuse tensors that backward adds to in place unless they are as large as what they are of."""
    names = ("means", "quats", "log_scales", "logit_opacities", "sh")
    if grad_buffers is not None and len(grad_buffers) != len(names):
        raise ValueError(f"{op}: grad_buffers: expected 5 tensors, got {len(grad_buffers)}; one for each")
    for name, tensor, buffer in zip(names, gaussians, grad_buffers or (), strict=False):
        if tensor is not None and buffer is not None:
            factored = name == "sh" and buffer.dim() == 2
            shape = (tensor.shape[0], FACTORS) if factored else tuple(tensor.shape)
            check_shape(op, f"grad_buffers: {name}", buffer, shape)
            check_dtype(op, f"grad_buffers: {name}", buffer, tensor.dtype)
    if statistics is not None:
        check_shape(op, "statistics", statistics, (gaussians[0].shape[0], 4))
        check_dtype(op, "statistics", statistics, gaussians[0].dtype)


def check_drawn(op: str, gaussians: Tensor, features: Tensor | None, background: Tensor | None) -> None:
    """Refuse features and backgrounds of another shape or dtype than ``gaussians`` want."""
    if features is not None:
        check_shape(op, "features", features, (gaussians.shape[0], None))
        check_dtype(op, "features", features, gaussians.dtype)
    if background is not None:
        check_shape(op, "background", background, (3,))
        check_dtype(op, "background", background, gaussians.dtype)
    check_device(op, gaussians=gaussians, features=features, background=background)


def check_gaussians(
    op: str,
    gaussians: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    K: Tensor,
    world_to_camera: Tensor,
    width: int,
    height: int,
    degree: int | None,
) -> int:
    """Refuse inputs that do not fit together. -> the highest band in use, -1 if there are no colours."""
    means, quats, log_scales, logit_opacities, sh = gaussians
    check_shape(op, "means", means, (None, 3))
    check_dtype(op, "means", means, *FLOATS)
    G = means.shape[0]
    checks: list[tuple[str, Tensor, tuple[int | None, ...]]] = [
        ("quats", quats, (G, 4)),
        ("log_scales", log_scales, (G, 3)),
        ("logit_opacities", logit_opacities, (G,)),
        ("world_to_camera", world_to_camera, (4, 4)),
    ]
    if sh is not None:
        checks.append(("sh", sh, (G, None, 3)))
    for name, tensor, shape in checks:
        check_shape(op, name, tensor, shape)
        check_dtype(op, name, tensor, means.dtype)
    check_shape(op, "K", K, (3, 3))
    check_device(op, means=means, **{name: tensor for name, tensor, _ in checks})
    check_range(op, "width", width, 1, 65536)
    check_range(op, "height", height, 1, 65536)
    if sh is None:
        return -1
    bases = sh.shape[1]
    if bases not in (1, 4, 9, 16, 25):
        raise ValueError(f"{op}: sh: expected 1, 4, 9, 16 or 25 bases, got {bases}; cut or pad it")
    stored = round(bases**0.5) - 1
    if degree is None:
        return stored
    check_range(op, "degree", degree, 0, stored)
    return degree
