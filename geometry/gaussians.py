"""3D Gaussians as data: what files hold, fields are made of and surfaces are drawn from.

Gaussian i has density opacity_i exp(-1/2 (x - mean_i)^T C_i^-1 (x - mean_i)), C_i = R_i diag(scales_i)^2 R_i^T,
and, seen from direction d, the colour 1/2 + sum_k sh_ik Y_k(d) (Kerbl et al., "3D Gaussian Splatting", 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .types import _TensorDataclass

SH_C0 = 0.28209479177387814  # the constant basis function, 1 / (2 sqrt pi)


@dataclass(frozen=True)
class Gaussians(_TensorDataclass):
    """G Gaussians; bases of ``sh`` in the order of ``cuda.sh_basis``, B = (degree + 1)^2."""

    means: Tensor  # (G, 3)
    quats: Tensor  # (G, 4) w, x, y, z, of any length but zero
    log_scales: Tensor  # (G, 3) log of the standard deviations along the rotated axes
    logit_opacities: Tensor  # (G,)
    sh: Tensor  # (G, B, 3) colours minus 1/2, as spherical harmonics

    def __post_init__(self) -> None:
        G = self.means.shape[0]
        shapes = {"means": (G, 3), "quats": (G, 4), "log_scales": (G, 3), "logit_opacities": (G,)}
        for name, shape in shapes.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"Gaussians: {name}: expected shape {shape}, got {got}; reshape it")
        got = tuple(self.sh.shape)
        if len(got) != 3 or got[0] != G or got[1] not in (1, 4, 9, 16, 25) or got[2] != 3:
            raise ValueError(f"Gaussians: sh: expected shape ({G}, 1 or 4 or 9 or 16 or 25, 3), got {got}; reshape it")

    def __len__(self) -> int:
        return self.means.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Gaussians:
        """A selection, by slice, mask or indices."""
        return self._map(lambda t: t[index])

    @property
    def degree(self) -> int:
        """Highest band of the spherical harmonics."""
        return int(self.sh.shape[1] ** 0.5 + 0.5) - 1

    @property
    def opacities(self) -> Tensor:
        """(G,) in (0, 1)."""
        return torch.sigmoid(self.logit_opacities)

    @property
    def scales(self) -> Tensor:
        """(G, 3) standard deviations."""
        return torch.exp(self.log_scales)
