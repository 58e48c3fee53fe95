"""Real spherical harmonics by the associated Legendre recurrence, in torch: the definition, not the polynomials."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """directions (N, 3) unit -> (N, (degree + 1)^2), order (l, m = -l..l)."""
    x, y, z = directions.unbind(-1)
    # P[l][m] without the factor sin^m, which joins cos/sin(m phi) as the real and imaginary part of (x + iy)^m.
    legendre: dict[tuple[int, int], Tensor] = {}
    for m in range(degree + 1):
        legendre[m, m] = torch.full_like(z, (-1.0) ** m * math.prod(range(2 * m - 1, 0, -2)))
        for band in range(m + 1, degree + 1):
            below = legendre.get((band - 2, m), torch.zeros_like(z))
            legendre[band, m] = ((2 * band - 1) * z * legendre[band - 1, m] - (band + m - 1) * below) / (band - m)
    cos, sin = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(degree):
        cos, sin = [*cos, x * cos[-1] - y * sin[-1]], [*sin, x * sin[-1] + y * cos[-1]]
    basis = []
    for band in range(degree + 1):
        for m in range(-band, band + 1):
            k = math.sqrt(
                (2 * band + 1) / (4 * math.pi) * math.factorial(band - abs(m)) / math.factorial(band + abs(m))
            )
            trig = torch.ones_like(x) if m == 0 else math.sqrt(2) * (cos[m] if m > 0 else sin[-m])
            basis.append(k * legendre[band, abs(m)] * trig)
    return torch.stack(basis, -1)
