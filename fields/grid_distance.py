"""What distances on a hash grid share, signed or not: a base shape, a network on top of it, and colours.

    raw(x) = base(x) + network(hash_grid(x), x)[0]

A field says what its base is (what it begins as: the tables begin near zero, and the network's last layer at zero) and
what it makes of ``raw``. Colours, if it has any, are a network's of the view direction, the normal, the place and what
the first network leaves besides the distance.

Source: Müller et al., "Instant Neural Graphics Primitives", 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..cuda.native import CPU
from ..cuda.sh_basis import sh_basis
from ..geometry.types import Aabb
from .encodings import HashGridConfig
from .networks import MlpConfig
from .protocols import FieldOutput


@dataclass(frozen=True)
class GridDistanceConfig:
    """Sizes of the hash grid and of the networks."""

    grid: HashGridConfig = field(default_factory=lambda: HashGridConfig(levels=8, features=4, log2_size=17))
    network: MlpConfig = MlpConfig(width=64, hidden_layers=1)
    color: MlpConfig | None = MlpConfig(width=64, hidden_layers=2)
    """Network of the colours; None = a shape without."""
    geometry_features: int = 16
    """Outputs of the first network, the distance included."""
    sh_degree: int = 3
    """Highest spherical-harmonics band of the view direction, 0 to 4."""
    bfloat16: bool | None = None
    """Products of the colours' network in bfloat16; None = where the device has it. Distances are always in float32."""
    radius: float = 0.5
    """Of the sphere that it begins as, as a share of the bounds' smallest half extent."""


class _Contract(torch.autograd.Function):
    """(N, C) and (N, C, 3) -> (N, 3): sum over channels. What torch's own does backward takes four times as long."""

    @staticmethod
    def forward(ctx, slopes, jacobian):
        ctx.save_for_backward(slopes, jacobian)
        return torch.bmm(slopes[:, None], jacobian)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        slopes, jacobian = ctx.saved_tensors
        return torch.bmm(jacobian, grad[:, :, None])[:, :, 0], slopes[:, :, None] * grad[:, None]


class GridDistance(nn.Module):
    """Distances over ``bounds``, in scene units; outside, features are those of the nearest point of them."""

    signed: bool
    bounds_low: Tensor
    bounds_high: Tensor

    def __init__(self, config: GridDistanceConfig, bounds: Aabb, device: torch.device = CPU) -> None:
        super().__init__()
        self.config = config
        self.encoding = config.grid.build()
        self.network = config.network.build(self.encoding.out_channels + 3, config.geometry_features, biases=True)
        with torch.no_grad():
            self.network.weights[-1][0].zero_()
        inputs = (config.sh_degree + 1) ** 2 + 6 + config.geometry_features
        self.color_network = (
            None if config.color is None else config.color.build(inputs, 3, biases=True, bfloat16=config.bfloat16)
        )
        self.register_buffer("bounds_low", bounds.low.clone())
        self.register_buffer("bounds_high", bounds.high.clone())
        self.to(device)  # made on the CPU: the same first values everywhere

    @property
    def bounds(self) -> Aabb:
        return Aabb(self.bounds_low, self.bounds_high)

    def distance(self, points: Tensor) -> Tensor:
        """points (N, 3) -> (N,)."""
        return self.query(points).values

    def base(self, from_sphere: Tensor) -> tuple[Tensor, Tensor | None]:
        """Distances (N,) from the first sphere -> what the field begins as (N,), and its derivative; None: 1."""
        return from_sphere, None

    def shape(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """raw (N,) -> distances (N,), and their derivative by it; None: 1."""
        return raw, None

    def query(self, points: Tensor, directions: Tensor | None = None, *, gradients: bool = False) -> FieldOutput:
        """Distances at points (N, 3); colours if directions (N, 3); gradients (N, 3) with colours or if asked for.

        Gradients are analytic, and differentiable by the parameters as distances are: a loss on them needs no double
        backward.
        """
        unit = self.bounds.normalize(points)
        away = points - (self.bounds_low + self.bounds_high) / 2
        length = away.norm(dim=-1).clamp(min=1e-12)
        base, base_slope = self.base(length - self.config.radius * self.bounds.extent.amin() / 2)
        place = 2 * unit - 1
        if not gradients and directions is None:
            geometry = self.network(torch.cat([self.encoding(unit), place], -1))
            return FieldOutput(self.shape(base + geometry[:, 0])[0], features=geometry)
        moving = unit.requires_grad and torch.is_grad_enabled()
        features, jacobian = self.encoding.with_gradient(unit) if moving else (self.encoding(unit), None)
        geometry, slopes = self.network.with_gradient(torch.cat([features, place], -1))
        of_features = slopes[:, :-3]
        by_features = (
            self.encoding.slopes(unit, of_features) if jacobian is None else _Contract.apply(of_features, jacobian)
        )
        by_unit = by_features + 2 * slopes[:, -3:]
        scale = 1 / length if base_slope is None else base_slope / length
        gradient = by_unit / self.bounds.extent + away * scale[:, None]
        values, slope = self.shape(base + geometry[:, 0])
        if slope is not None:
            gradient = gradient * slope[:, None]
        colors = None if directions is None else self._color(directions, gradient, place, geometry)
        return FieldOutput(values, gradient, colors, geometry)

    def facing(self, gradient: Tensor, directions: Tensor) -> Tensor:
        """(N, 3) normals that colours go by, from gradients (N, 3) and view directions (N, 3)."""
        return torch.nn.functional.normalize(gradient, dim=-1)

    def _color(self, directions: Tensor, gradient: Tensor, place: Tensor, geometry: Tensor) -> Tensor | None:
        if self.color_network is None:
            return None
        normal = self.facing(gradient, directions)
        inputs = [sh_basis(directions, self.config.sh_degree), normal, place, geometry]
        return torch.sigmoid(self.color_network(torch.cat(inputs, -1)))
