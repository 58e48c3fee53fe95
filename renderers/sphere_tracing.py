"""Sphere tracing: pictures of the surface itself that a distance describes, one place per ray.

    x = o + t d,   f(x) = level;   dt = -(df + g.(do + t dd)) / (g.d),   g = grad f

Rays are marched by the distance (``cuda/sphere_tracing.py``) within the field's bounds, or where an occupancy grid
says that something may be. Nothing of the march is differentiated: the place met is a root of f, whose derivatives by
the field's parameters and by the rays follow from f alone. They say how surfaces move, not what rays come to miss.

An unsigned distance is met where it comes down to ``threshold``, on either side: a level like any other.

Source: Hart, "Sphere tracing", 1996; Yariv et al., "Multiview Neural Surface Reconstruction" (IDR), 2020, eq. 3;
Niemeyer et al., "Differentiable Volumetric Rendering", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..cuda.sphere_tracing import sphere_trace
from ..fields.protocols import Distance, Field, FieldOutput
from ..geometry import Camera, Pixels, Rays
from ..geometry.occupancy import OccupancyGrid
from ..geometry.rays import clip_to_box
from .background import FixedBackground
from .protocols import Background, Render
from .shading import Function, Lighting

GRAZING = 0.02  # cosine: rays flatter than this on the surface have gradients as if they were not
ON = 16.0  # tolerances: farther from the level than this, a place is where a ray begins, and has no gradient


class DistanceField(Field, Distance, Protocol):
    """What is drawn: distances, gradients, and colours if there are any."""


@dataclass(frozen=True)
class TraceConfig:
    """How surfaces are looked for. Lengths are in scene units."""

    tolerance: float = 1e-4
    """A distance that counts as zero."""
    threshold: float = 5e-3
    """Where an unsigned distance is met."""
    relaxation: float = 1.0
    """Steps are this many distances long, up to 2, and taken back where that was too much: fewer along surfaces."""
    steepness: float = 1.0
    """The slope that rays begin with: above 1 for what grows faster than distance. Rays raise it themselves."""
    max_steps: int = 256
    """After which a ray meets nothing."""
    normal_step: float = 0.0
    """Normals by differences of distances this far off, which smooths what a grid's gradients have of its cells; they
    have no gradients then. 0 = the field's own."""
    chunk: int = 65536
    """Rays at a time when an image is rendered: bounds the memory."""


class SphereTracer(nn.Module):
    """Renders the surface of a distance field: colours, depths, normals and shades; alpha is 1 or 0.

    A field without colours is drawn in the lighting's. Shades, and colours that come from them, have no gradients.
    """

    up: Tensor
    oversampling = 2  # rays along a pixel, of pictures to be kept

    def __init__(
        self,
        config: TraceConfig | None = None,
        lighting: Lighting | None = None,
        *,
        background: Background | None = None,
        occupancy: OccupancyGrid | None = None,
        up: tuple[float, float, float] = (0.0, 0.0, 1.0),
    ) -> None:
        super().__init__()
        self.config, self.lighting = config or TraceConfig(), lighting or Lighting()
        self.background = FixedBackground((1.0, 1.0, 1.0)) if background is None else background
        self.occupancy = occupancy
        self.register_buffer("up", torch.tensor(up), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it works: rays and field must be there too."""
        return self.up.device

    @property
    def backdrop(self) -> Tensor:
        """(3,) the colour behind the scene in pictures."""
        return self.background.shown.detach()

    def render(self, field: DistanceField, view: Camera | Rays, *, normals: bool = True) -> Render:
        """Flat pixels (R,) with gradients for Rays; an image (H, W), without them, for a Camera.

        Normals are at hand in any case: ``normals`` is what other renderers are asked by.
        """
        if isinstance(view, Rays):
            return self._render_rays(field, view)
        with torch.no_grad():
            rays = view.to(self.device).rays()
            size = self.config.chunk
            parts = [self._render_rays(field, rays[i : i + size]).pixels for i in range(0, len(rays), size)]
        return Render(Pixels.joined(parts, view.height, view.width))

    def trace(self, field: Distance, rays: Rays) -> Tensor:
        """(R,) where rays meet the surface; infinite where they do not. No gradients."""
        rays, function = clip_to_box(rays.detach(), field.bounds), self._function(field)
        if self.occupancy is None:
            return self._march(function, rays)
        starts, ends, segments = self._segments(rays)
        depths = torch.full_like(rays.near, torch.inf)
        while len(segments):
            now = _first_of_each(segments)
            index = segments[now]
            depths[index] = self._march(function, replace(rays[index], near=starts[now], far=ends[now]))
            left = ~now & (depths[segments] == torch.inf)
            starts, ends, segments = starts[left], ends[left], segments[left]
        return depths

    def _segments(self, rays: Rays) -> tuple[Tensor, Tensor, Tensor]:
        """Stretches of occupied cells: starts, ends and rays (S,) of each, in order."""
        assert self.occupancy is not None
        step = self.occupancy.half_extent / self.occupancy.resolution  # half a cell
        samples = self.occupancy.march(rays, step=step)
        new = _first_of_each(samples.ray_indices)
        new[1:] |= samples.t_starts[1:] > samples.t_ends[:-1] + 2 * step
        last = torch.cat([new[1:], new.new_ones(min(1, len(new)))])
        index = samples.ray_indices[new].long()
        starts = torch.maximum(samples.t_starts[new] - step, rays.near[index])
        return starts, torch.minimum(samples.t_ends[last] + step, rays.far[index]), index

    def _march(self, function: Function, rays: Rays) -> Tensor:
        c = self.config
        options = dict(tolerance=c.tolerance, relaxation=c.relaxation, steepness=c.steepness, max_steps=c.max_steps)
        return sphere_trace(function, rays.origins, rays.directions, rays.near, rays.far, **options)  # type: ignore[arg-type]

    def level(self, field: Distance) -> float:
        """The distance at which a surface is met."""
        return 0.0 if field.signed else self.config.threshold

    def _function(self, field: Distance) -> Function:
        level = self.level(field)
        return (lambda points: field.distance(points) - level) if level else field.distance

    def _render_rays(self, field: DistanceField, rays: Rays) -> Render:
        depths = self.trace(field, rays)
        hit = (depths < torch.inf).nonzero()[:, 0]
        origins, directions = rays.origins[hit], rays.directions[hit]
        along = self.attached(field, origins, directions, depths[hit])
        output = field.query(origins + along[:, None] * directions, directions, gradients=True)
        assert output.gradients is not None
        points = (origins + along[:, None] * directions).detach()
        step = self.config.normal_step
        normals = normalize(differences(field.distance, points, step) if step else output.gradients, dim=-1)
        if not field.signed:
            normals = _facing(normals, directions)
        shades = self._shades(field, points, normals, directions)
        colors = output.colors
        if colors is None:
            colors = shades[:, None] * shades.new_tensor(self.lighting.color)
        background = self.background(rays, self.training)
        pixels = Pixels(
            colors=background.to(colors).index_put((hit,), colors),
            alphas=_spread(hit, torch.ones_like(along), len(rays)),
            depths=_spread(hit, along, len(rays)),
            normals=_spread(hit, normals, len(rays)),
            shades=_spread(hit, shades, len(rays)),
        )
        return Render(pixels, background, output=output)

    @torch.no_grad()
    def _shades(self, field: Distance, points: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
        offset = 4 * self.config.tolerance + 2 * self.level(field)
        up = self.up.to(points)
        return self.lighting.shades(self._function(field), points, normals.detach(), directions, up, offset)

    def attached(self, field: DistanceField, origins: Tensor, directions: Tensor, depths: Tensor) -> Tensor:
        """Depths (N,) at which rays (N, 3) meet the surface, with their derivatives, if any are asked for.

        Also nearer to the level than the march came, by one step of Newton's.
        """
        if not torch.is_grad_enabled():
            return depths
        depths, still = depths.detach(), directions.detach()
        at = origins.detach() + depths[:, None] * still
        output: FieldOutput = field.query(at, gradients=True)
        assert output.gradients is not None
        gradient = output.gradients.detach()
        least = GRAZING * gradient.norm(dim=-1)
        slope = -torch.maximum(-(gradient * still).sum(-1), least).clamp_min(1e-20)
        moved = ((origins + depths[:, None] * directions - at) * gradient).sum(-1)
        change = -(output.values - self.level(field) + moved) / slope
        most = ON * self.config.tolerance
        on = (output.values.detach() - self.level(field)).abs() <= most
        change = change + (change.detach().clamp(-most, most) - change.detach())
        return torch.where(on, depths + change, depths)


@torch.no_grad()
def differences(function: Function, points: Tensor, step: float) -> Tensor:
    """(N, 3) along the gradient of a function at points (N, 3), from values at four corners of a cube around each."""
    corners = points.new_tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return sum((function(points + step * corner)[:, None] * corner for corner in corners), torch.zeros_like(points))


def _first_of_each(sorted_numbers: Tensor) -> Tensor:
    """(N,) bool: which differ from the one before."""
    new = torch.ones(len(sorted_numbers), dtype=torch.bool, device=sorted_numbers.device)
    new[1:] = sorted_numbers[1:] != sorted_numbers[:-1]
    return new


def _spread(index: Tensor, values: Tensor, count: int) -> Tensor:
    """values (N, ...) at their places among so many; 0 elsewhere."""
    return values.new_zeros(count, *values.shape[1:]).index_put((index,), values)


def _facing(normals: Tensor, directions: Tensor) -> Tensor:
    """Normals (N, 3), those that point along directions (N, 3) turned round: of surfaces that have two sides."""
    away = (normals * directions).sum(-1, keepdim=True) > 0
    return torch.where(away, -normals, normals)
