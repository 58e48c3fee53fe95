"""What distances share, signed or not: a base shape, a network on top of an encoding, and colours.

    raw(x) = base(x) + network(encoding(x), x)[0]

A field says what its base is (what it begins as: features begin near zero, and the network's last layer at zero) and
what it makes of ``raw``. Colours, if it has any, are a network's of the view direction, the normal, the place and what
the first network leaves besides the distance.

Source: Müller et al., "Instant Neural Graphics Primitives", 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..cuda.native import CPU
from ..cuda.sh_basis import sh_basis
from ..geometry.types import Aabb
from .cp_grid import CpGridConfig
from .dense_grid import DenseGridConfig
from .encoding_kinds import EncodingKind
from .encodings import Encoding, HashGridConfig, contract
from .fourier import FourierConfig
from .gradient_kinds import Differences, Gradients, around, central_differences
from .networks import MlpConfig
from .no_encoding import NoEncodingConfig
from .protocols import FieldOutput
from .tri_plane import TriPlaneConfig
from .vm_grid import VmGridConfig


@dataclass(frozen=True)
class GridDistanceConfig:
    """The encoding, and sizes of it and of the networks."""

    encoding: EncodingKind = EncodingKind.HASH
    grid: HashGridConfig = field(default_factory=lambda: HashGridConfig(levels=8, features=4, log2_size=17))
    """Of the hash grid."""
    dense: DenseGridConfig = DenseGridConfig()
    tri_plane: TriPlaneConfig = TriPlaneConfig()
    vm: VmGridConfig = VmGridConfig()
    cp: CpGridConfig = CpGridConfig()
    fourier: FourierConfig = FourierConfig()
    network: MlpConfig = MlpConfig(width=64, hidden_layers=1)
    color: MlpConfig | None = MlpConfig(width=64, hidden_layers=2)
    """Network of the colours; None = a shape without."""
    geometry_features: int = 16
    """Outputs of the first network, the distance included."""
    sh_degree: int = 3
    """Highest spherical-harmonics band of the view direction, 0 to 4."""
    bfloat16: bool | None = None
    """Products of the colours' network in bfloat16; None = where the device has it. Distances are always in float32."""
    gradients: Gradients = Gradients.ANALYTIC
    """What the distance's spatial gradient comes from."""
    radius: float = 0.5
    """Of the sphere that it begins as, as a share of the bounds' smallest half extent."""

    def build_encoding(self) -> Encoding:
        """The encoding that was chosen."""
        made: dict[EncodingKind, Any] = {
            EncodingKind.HASH: self.grid,
            EncodingKind.DENSE: self.dense,
            EncodingKind.TRI_PLANE: self.tri_plane,
            EncodingKind.VM: self.vm,
            EncodingKind.CP: self.cp,
            EncodingKind.FOURIER: self.fourier,
            EncodingKind.NONE: NoEncodingConfig(),
        }
        return made[self.encoding].build()


class GridDistance(nn.Module):
    """Distances over ``bounds``, in scene units; outside, features are those of the nearest point of them."""

    signed: bool
    bounds_low: Tensor
    bounds_high: Tensor
    difference: Tensor  # () by which points are shifted for finite differences, as a share of the bounds

    def __init__(self, config: GridDistanceConfig, bounds: Aabb, device: torch.device = CPU) -> None:
        super().__init__()
        self.config = config
        self.encoding: Encoding = config.build_encoding()
        self.network = config.network.build(self.encoding.out_channels + 3, config.geometry_features, biases=True)
        with torch.no_grad():
            self.network.weights[-1][0].zero_()
        inputs = (config.sh_degree + 1) ** 2 + (6 if self.signed else 3) + config.geometry_features
        self.color_network = (
            None if config.color is None else config.color.build(inputs, 3, biases=True, bfloat16=config.bfloat16)
        )
        self.register_buffer("bounds_low", bounds.low.clone())
        self.register_buffer("bounds_high", bounds.high.clone())
        if config.gradients is Gradients.FINITE:
            self.register_buffer("difference", torch.tensor(1 / self.encoding.resolutions[-1]))
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

    def query(
        self, points: Tensor, directions: Tensor | None = None, *, gradients: bool | Differences = False
    ) -> FieldOutput:
        """Distances at points (N, 3), colours if directions (N, 3), gradients (N, 3) if asked for or for colours.

        Gradients are what ``config.gradients`` says, or what a callable makes of the distances. They are differentiable
        by the parameters as distances are: a loss on them needs no double backward.
        """
        if gradients is False and (directions is None or not self.signed):
            values, geometry = self._values(points)
            return FieldOutput(values, None, self._color(directions, None, self._place(points), geometry), geometry)
        if callable(gradients):
            values, geometry = self._values(points)
            gradient = gradients(values)
        else:
            finite = self.config.gradients is Gradients.FINITE
            values, gradient, geometry = self._finite(points) if finite else self._analytic(points)
        return FieldOutput(values, gradient, self._color(directions, gradient, self._place(points), geometry), geometry)

    def _place(self, points: Tensor) -> Tensor:
        """(N, 3) in [-1, 1]^3."""
        return 2 * self.bounds.normalize(points) - 1

    def _from_sphere(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Away from the middle (N, 3), how far (N,), and the distance from the first sphere (N,)."""
        away = points - (self.bounds_low + self.bounds_high) / 2
        length = away.norm(dim=-1).clamp(min=1e-12)
        return away, length, length - self.config.radius * self.bounds.extent.amin() / 2

    def _values(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (N,), and all that the network says (N, G)."""
        base, _ = self.base(self._from_sphere(points)[2])
        unit = self.bounds.normalize(points)
        geometry = self.network(torch.cat([self.encoding(unit), 2 * unit - 1], -1))
        return self.shape(base + geometry[:, 0])[0], geometry

    def _finite(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances, central differences (N, 3), and all that the network says."""
        steps = self.difference * self.bounds.extent
        values, geometry = self._values(around(points, steps))
        return values[: len(points)], central_differences(values, steps), geometry[: len(points)]

    def _analytic(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances, their gradients (N, 3), and all that the network says, from one pass."""
        away, length, from_sphere = self._from_sphere(points)
        base, base_slope = self.base(from_sphere)
        unit = self.bounds.normalize(points)
        moving = unit.requires_grad and torch.is_grad_enabled()
        features, jacobian = self.encoding.with_gradient(unit) if moving else (self.encoding(unit), None)
        geometry, slopes = self.network.with_gradient(torch.cat([features, 2 * unit - 1], -1))
        of_features = slopes[:, :-3]
        by_features = self.encoding.slopes(unit, of_features) if jacobian is None else contract(of_features, jacobian)
        by_unit = by_features + 2 * slopes[:, -3:]
        scale = 1 / length if base_slope is None else base_slope / length
        gradient = by_unit / self.bounds.extent + away * scale[:, None]
        values, slope = self.shape(base + geometry[:, 0])
        return values, gradient if slope is None else gradient * slope[:, None], geometry

    def _color(
        self, directions: Tensor | None, gradient: Tensor | None, place: Tensor, geometry: Tensor
    ) -> Tensor | None:
        """Of signed distances by their normals too; an unsigned one has none on the surface itself."""
        if self.color_network is None or directions is None:
            return None
        inputs = [sh_basis(directions, self.config.sh_degree), place, geometry]
        if self.signed:
            assert gradient is not None
            inputs.insert(1, torch.nn.functional.normalize(gradient, dim=-1))
        return torch.sigmoid(self.color_network(torch.cat(inputs, -1)))
