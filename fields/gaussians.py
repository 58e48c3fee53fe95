"""A scene as 3D Gaussians (Kerbl et al. 2023): parameters of ``geometry.Gaussians``, as a module.

Drawn by a rasterizer, or asked at points as a mixture of densities:

    sigma(x) = sum_i s_i exp(-m_i^2 / 2),   m_i = |diag(scales_i)^-1 R_i^T (x - mean_i)| <= 3,
    s_i = -ln(1 - opacity_i) / (sqrt(2 pi) min(scales_i)):

a ray along the shortest axis through the middle is absorbed by the share that the rasterizer's ellipse has at its peak.
Colours are those of the Gaussians at x, weighted by their density.

Their number changes while fitting (``density_control.py``); a checkpoint of any number loads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cuda.sh_basis import sh_basis
from ..geometry.gaussians import Gaussians
from ..geometry.transforms import quaternion_to_matrix
from ..geometry.types import Aabb
from .gaussian_cells import GaussianCells, turned
from .protocols import FieldOutput

NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh")
SMALLEST = 1e-9  # standard deviation, scene units: a flat Gaussian's density stays finite


class GaussianField(nn.Module):
    """Gaussians in the scene's frame; ``bounds`` is what may hold content."""

    means: nn.Parameter
    quats: nn.Parameter
    log_scales: nn.Parameter
    logit_opacities: nn.Parameter
    sh: nn.Parameter

    def __init__(self, gaussians: Gaussians, bounds: Aabb) -> None:
        super().__init__()
        for name in NAMES:
            self.register_parameter(name, nn.Parameter(getattr(gaussians, name).detach().clone().contiguous()))
        self.register_buffer("bounds_low", bounds.low.clone())
        self.register_buffer("bounds_high", bounds.high.clone())
        self._cells: tuple[list[tuple[Tensor, int]], GaussianCells] | None = None  # and what they were made of

    @property
    def bounds(self) -> Aabb:
        return Aabb(self.bounds_low, self.bounds_high)

    def __len__(self) -> int:
        return self.means.shape[0]

    def stored(self) -> Gaussians:
        """The parameters themselves."""
        return Gaussians(*(getattr(self, name) for name in NAMES))

    def gaussians(self) -> Gaussians:
        """What is drawn, and asked at points."""
        return self.stored()

    def query(self, points: Tensor, directions: Tensor | None = None, *, gradients: bool = False) -> FieldOutput:
        """Densities at points (N, 3), colours if directions (N, 3), and density gradients (N, 3) if asked for.

        The first query after a change of the parameters sorts the Gaussians into cells. Memory without autograd is
        bounded by ``gaussian_cells.PAIRS``; with it, every Gaussian that reaches a point is kept for backward.
        """
        g = self.gaussians()
        axes, strengths = _axes(g), _strengths(g)
        values, totals = torch.zeros_like(points[:, 0]), torch.zeros_like(points)
        slopes = torch.zeros_like(points) if gradients else None
        bases = None if directions is None else sh_basis(directions, g.degree)
        cells = self.cells()
        for at, which in cells.pairs(points.detach()):
            local = turned(axes[which], points[at] - g.means[which])  # in standard deviations
            density = strengths[which] * torch.exp(-0.5 * local.square().sum(-1))
            values = values.index_add(0, at, density)
            if slopes is not None:
                slope = -turned(axes[which].transpose(1, 2), local) * density[:, None]
                slopes = slopes.index_add(0, at, slope)
            if bases is not None:
                color = (torch.einsum("pb,pbc->pc", bases[at], g.sh[which]) + 0.5).clamp(0, 1)
                totals = totals.index_add(0, at, color * density[:, None])
        colors = None if bases is None else (totals / values[:, None].clamp(min=1e-10)).clamp(max=1)
        return FieldOutput(values, slopes, colors)

    def cells(self) -> GaussianCells:
        """Which Gaussians reach where, for the parameters as they are now."""
        shape = (self.means, self.quats, self.log_scales, *self.buffers())
        if self._cells is not None:
            known, cells = self._cells
            if all(a is b and a._version == version for a, (b, version) in zip(shape, known, strict=True)):
                return cells
        with torch.no_grad():
            cells = GaussianCells(self.means.detach(), _axes(self.gaussians()))
        self._cells = [(t, t._version) for t in shape], cells
        return cells

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in NAMES:
            stored: Tensor | None = state_dict.get(prefix + name)
            parameter = getattr(self, name)
            if stored is not None and stored.shape[1:] == parameter.shape[1:] and len(stored) != len(parameter):
                parameter.data = parameter.data.new_empty(stored.shape)
                parameter.grad = None if parameter.grad is None else torch.zeros_like(parameter)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _axes(g: Gaussians) -> Tensor:
    """(G, 3, 3) from the scene's frame to standard deviations: diag(1 / scales) R^T."""
    return quaternion_to_matrix(g.quats).transpose(1, 2) / g.scales.clamp(min=SMALLEST)[:, :, None]


def _strengths(g: Gaussians) -> Tensor:
    """(G,) densities in the middle."""
    smallest = g.log_scales.amin(-1).exp().clamp(min=SMALLEST)
    return functional.softplus(g.logit_opacities) / (math.sqrt(2 * math.pi) * smallest)
