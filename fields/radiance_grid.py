"""A radiance field on a hash grid: density and view-dependent colour (instant-ngp, Müller et al. 2022).

    features = hash_grid(x);  [log sigma, g] = density_network(features);  colour = sigmoid(colour_network(SH(d), g))

Values are densities per unit of scene length. The first of the density network's outputs is the log-density, and the
whole output, it included, goes on to the colour network.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..cuda.native import CPU
from ..cuda.radiance import MAX_LOG_DENSITY, Found, radiance, radiance_density
from ..cuda.radiance_march import radiance_march
from ..cuda.sh_basis import sh_basis
from ..geometry.occupancy import OccupancyGrid
from ..geometry.types import Aabb, Rays, Samples
from .encodings import HashGridConfig
from .networks import MlpConfig
from .protocols import FieldOutput, Marched


@dataclass(frozen=True)
class RadianceGridConfig:
    """Sizes of the hash grid and of the two networks."""

    grid: HashGridConfig = field(default_factory=HashGridConfig)
    density: MlpConfig = MlpConfig(width=64, hidden_layers=1)
    color: MlpConfig = MlpConfig(width=64, hidden_layers=2)
    geometry_features: int = 16
    """Outputs of the density network, the log-density included."""
    sh_degree: int = 3
    """Highest spherical-harmonics band of the view direction, 0 to 4."""
    bfloat16: bool | None = None
    """Products of the networks in bfloat16; None = where the device has it."""

    def build(self, bounds: Aabb, device: torch.device = CPU) -> RadianceGrid:
        return RadianceGrid(self, bounds, device)


class RadianceGrid(nn.Module):
    """Density and colour over ``bounds``; outside, those of the nearest point of the bounds."""

    def __init__(self, config: RadianceGridConfig, bounds: Aabb, device: torch.device = CPU) -> None:
        super().__init__()
        self.config = config
        self.encoding = config.grid.build()
        self.density_network = config.density.build(
            self.encoding.out_channels, config.geometry_features, bfloat16=config.bfloat16
        )
        inputs = (config.sh_degree + 1) ** 2 + config.geometry_features
        self.color_network = config.color.build(inputs, 3, bfloat16=config.bfloat16)
        self.register_buffer("bounds_low", bounds.low.clone())
        self.register_buffer("bounds_high", bounds.high.clone())
        self.to(device)  # made on the CPU: the same first values everywhere

    @property
    def bounds(self) -> Aabb:
        return Aabb(self.bounds_low, self.bounds_high)

    def query(
        self, points: Tensor, directions: Tensor | None = None, *, gradients: bool = False, found: Found | None = None
    ) -> FieldOutput:
        """Densities at points (N, 3), colours if directions (N, 3), and density gradients (N, 3) if asked for.

        found: what ``march`` found at these very points, since when nothing has changed; made use of where it can be.
        """
        unit = self.bounds.normalize(points)
        if gradients:
            return self._query_with_gradients(unit, directions)
        fused = self._fused(unit, directions, found)
        if fused is not None:
            return fused
        geometry = self.density_network(self.encoding(unit))
        return FieldOutput(self._density(geometry), colors=self._color(geometry, directions), features=geometry)

    def _fused(self, unit: Tensor, directions: Tensor | None, found: Found | None) -> FieldOutput | None:
        """The same from one kernel, where no gradient to the points or directions is asked for."""
        fit = torch.is_grad_enabled()
        if fit and (directions is None or unit.requires_grad or directions.requires_grad):
            return None
        encoding, density = self.encoding, list(self.density_network.weights)
        options = dict(half=encoding.half_table, bfloat16=self.density_network.rounds(unit))
        if directions is None:
            return FieldOutput(radiance_density(unit, encoding.table, encoding.layout, density, **options))
        extras, color = sh_basis(directions, self.config.sh_degree), list(self.color_network.weights)
        table_grad = encoding.table.grad if fit else None
        tables, known = (encoding.table, encoding.layout), dict(table_grad=table_grad, found=found)
        sigmas, colors = radiance(unit, extras, *tables, density, color, **known, **options)
        return FieldOutput(sigmas, colors=colors)

    @torch.no_grad()
    def march(
        self,
        occupancy: OccupancyGrid,
        rays: Rays,
        *,
        step: float,
        cone_angle: float,
        jitter: Tensor | None,
        min_transmittance: float,
        min_alpha: float,
        keep: bool = False,
    ) -> Marched:
        """Intervals that rays meet, densities there, and the intervals that they see: see ``protocols.Marchable``."""
        encoding, network = self.encoding, self.density_network
        *met, sigmas, seen, found = radiance_march(
            rays.origins,
            rays.directions,
            rays.near,
            rays.far,
            occupancy.bits,
            occupancy.states,
            self.bounds_low,
            self.bounds_high,
            encoding.table,
            encoding.layout,
            list(network.weights),
            resolution=occupancy.resolution,
            half_extent=occupancy.half_extent,
            step=step,
            cone_angle=cone_angle,
            jitter=jitter,
            min_transmittance=min_transmittance,
            min_alpha=min_alpha,
            half=encoding.half_table,
            bfloat16=network.rounds(rays.origins),
            keep=keep,
        )
        return Marched(Samples(*met), sigmas, Samples(*seen), found)

    def _density(self, geometry: Tensor) -> Tensor:
        return geometry[:, 0].clamp(max=MAX_LOG_DENSITY).exp()

    def _color(self, geometry: Tensor, directions: Tensor | None) -> Tensor | None:
        if directions is None:
            return None
        return torch.sigmoid(self.color_network(torch.cat([sh_basis(directions, self.config.sh_degree), geometry], -1)))

    def _query_with_gradients(self, unit: Tensor, directions: Tensor | None) -> FieldOutput:
        """d sigma/d x = d sigma/d features . d features/d x, the second factor from the encoding's own kernel."""
        features, jacobian = self.encoding.with_gradient(unit)
        with torch.enable_grad():
            probe = features if features.requires_grad else features.requires_grad_()
            geometry = self.density_network(probe)
            values = self._density(geometry)
            (by_features,) = torch.autograd.grad(values.sum(), probe, retain_graph=True)
        by_points = torch.einsum("nc,nci->ni", by_features, jacobian) / self.bounds.extent
        return FieldOutput(values, by_points, self._color(geometry, directions), geometry)
