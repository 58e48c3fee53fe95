"""What stands behind a bounded scene: a radiance field on contracted space, which begins where a ray leaves the cube.

    t_k = t_0 + s_k / (1 - s_k),   alpha_k = 1 - exp(-sigma_k l_k),   the last one 1

at evenly spread s_k from 0 to 1, l_k the length of an interval once contracted. t_0 is where a ray leaves the first of
the cube's slabs, so that nothing jumps beside the cube's outline, or else the camera: what lies between a camera and
the cube counts as empty. No ray goes on behind the last interval, so photographs without alpha have all of their
colour from what is fitted.

Source: Zhang et al., "NeRF++: Analyzing and Improving Neural Radiance Fields", 2020, sec. 4; Barron et al., "Mip-NeRF
360", CVPR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..cuda.compositing import composite, prune
from ..fields.encodings import HashGridConfig
from ..fields.networks import MlpConfig
from ..fields.radiance_grid import RadianceGridConfig
from ..geometry import Aabb, Rays, Samples
from ..geometry.contraction import contracted
from ..geometry.rays import slabs

FAR = 1e4  # half edges of the cube: where the last interval of a ray ends, as good as nowhere
LEAST = 1e-3  # of the light: less is not looked at


@dataclass(frozen=True)
class FieldBackgroundConfig:
    """Sizes of the background's field."""

    samples: int = 32
    """Intervals of a ray behind the cube."""
    field: RadianceGridConfig = field(
        default_factory=lambda: RadianceGridConfig(
            grid=HashGridConfig(levels=8, features=4, log2_size=16, finest_resolution=1024, half=True),
            density=MlpConfig(width=64, hidden_layers=1),
            color=MlpConfig(width=64, hidden_layers=1),
        )
    )

    def build(self) -> FieldBackground:
        """Raises ValueError for fewer than 2 samples."""
        return FieldBackground(self)


class FieldBackground(nn.Module):
    """Colours of rays behind [-1, 1]^3. While fitting, intervals are shifted by torch's default generator."""

    color: Tensor

    def __init__(self, config: FieldBackgroundConfig) -> None:
        super().__init__()
        if config.samples < 2:
            raise ValueError(f"FieldBackground: samples: expected at least 2, got {config.samples}")
        self.config = config
        self.field = config.field.build(Aabb.cube(2.0))
        self.register_buffer("color", torch.zeros(3), persistent=False)
        self.met = 0  # samples with colours of the last call

    @property
    def shown(self) -> Tensor:
        """(3,) behind pictures of the cube alone: black."""
        return self.color

    def forward(self, rays: Rays, fitting: bool, light: Tensor | None = None) -> Tensor:
        """(R, 3); black where less than LEAST of the ``light`` (R,) is left, which nothing behind would change."""
        asked = slice(None) if light is None else (light.detach() > LEAST).nonzero()[:, 0]
        some = rays[asked]
        colors = self._colors(some, fitting)
        if light is None:
            return colors
        return torch.zeros_like(rays.directions).index_put((asked,), colors)  # type: ignore[arg-type]

    def _colors(self, rays: Rays, fitting: bool) -> Tensor:
        still = rays.detach()
        samples = self._intervals(still, fitting)
        with torch.no_grad():
            points, lengths = self._places(still, samples)
            alphas = self._alphas(self.field.query(points).values, lengths)
            seen = prune(alphas, samples, min_transmittance=LEAST, min_alpha=LEAST)
        self.met = len(seen)
        points, lengths = self._places(rays, seen)
        output = self.field.query(points, seen.directions(rays))
        assert output.colors is not None
        return composite(self._alphas(output.values, lengths), [output.colors], seen.ray_offsets)[2][0]

    def _intervals(self, rays: Rays, fitting: bool) -> Samples:
        count, device = self.config.samples, rays.origins.device
        begin = torch.maximum(rays.near, slabs(rays, Aabb.cube(1.0).to(device))[1])
        share = torch.linspace(0, 1, count + 1, device=device).expand(len(rays), -1)
        if fitting:
            shift = (torch.rand(len(rays), 1, device=device) - 0.5) / count
            share = torch.cat([share[:, :1], share[:, 1:-1] + shift, share[:, -1:]], 1)
        ends = begin[:, None] + share / (1 - share)  # the last one infinite
        index = torch.arange(len(rays), dtype=torch.int32, device=device).repeat_interleave(count)
        offsets = torch.arange(0, count * len(rays) + 1, count, dtype=torch.int32, device=device)
        return Samples(ends[:, :-1].reshape(-1), ends[:, 1:].reshape(-1), index, offsets)

    def _places(self, rays: Rays, samples: Samples) -> tuple[Tensor, Tensor]:
        """Middles (S, 3) and lengths (S,) of intervals, contracted; the last ones' length is infinite."""
        which = samples.ray_indices.long()
        origins, directions = rays.origins.index_select(0, which), rays.directions.index_select(0, which)
        first = contracted(torch.addcmul(origins, directions, samples.t_starts[:, None]))
        on = samples.t_ends.isfinite()
        last = contracted(torch.addcmul(origins, directions, samples.t_ends.where(on, FAR)[:, None]))
        lengths = (last - first).detach().norm(dim=-1)
        return (first + last) / 2, lengths.where(on, torch.inf)

    def _alphas(self, densities: Tensor, lengths: Tensor) -> Tensor:
        return torch.where(lengths.isinf(), 1.0, -torch.expm1(-densities * lengths.nan_to_num(posinf=0.0)))
