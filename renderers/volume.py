"""Ray marching: occupied intervals along each ray, a field, an opacity law, and front-to-back compositing.

    w_i = alpha_i prod_{j<i} (1 - alpha_j);   colour = sum_i w_i c_i + (1 - sum_i w_i) background

Two passes keep it cheap: the law is first evaluated without gradients or colours on every marched interval, and what
is transparent or lies behind an opaque surface is dropped before colours and gradients are paid for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cuda.compositing import composite, prune
from ..cuda.native import on_gpu
from ..cuda.packing import append_packed
from ..fields.protocols import Field, FieldOutput, Marchable, Marched
from ..geometry import Camera, Pixels, Rays, Samples
from ..geometry.occupancy import OccupancyGrid
from .near_gradients import scaled_near
from .opacity import Density
from .patches import PatchDifferences, middle_rays, seen_with_neighbors
from .picture_parts import most_intervals, parts
from .protocols import Background, Opacity, Render
from .resampling import Resampling


@dataclass(frozen=True)
class MarchConfig:
    """How rays are cut into intervals."""

    steps_per_diagonal: int = 1024
    """Intervals along the diagonal of the innermost cube: the shortest step."""
    cone_angle: float = 0.0
    """Step per distance: 0 = constant steps (bounded scenes); 1/256 for unbounded ones."""
    min_transmittance: float = 1e-4
    """What lies behind less than this is dropped."""
    min_alpha: float = 1e-3
    """Intervals more transparent than this are dropped."""
    wave: int | None = None
    """Intervals of a ray that are looked at before asking whether it goes on; then twice as many, and so on. 0 = all at
    once; None = what is best for the field: a radiance grid's own march, else 24 on a CPU and 0 on a GPU, which would
    wait for each answer."""
    near_gradients: float = 0.0
    """While fitting, distance from a camera, scene units, below which gradients of densities and colours shrink with
    its square: keeps fog from growing right before cameras. 0 = as they are."""
    chunk: int = 8192
    """Rays at a time when an image is rendered, at most: bounds the memory."""
    chunk_intervals: int = 2**18
    """Intervals at a time that the field is asked for then; so many rays at a time as meet 16 times as many at most."""


class VolumeRenderer(nn.Module):
    """Renders any ``Field`` under any opacity law, where ``occupancy`` says that something may be."""

    oversampling = 2  # rays along a pixel, of pictures to be kept

    def __init__(self, occupancy: OccupancyGrid, opacity: Opacity, background: Background, config: MarchConfig) -> None:
        super().__init__()
        self.occupancy = occupancy
        self.opacity = opacity
        self.background = background
        self.config = config
        self.generator = torch.Generator()  # on the device where rays are marched while fitting
        self.coarseness = 1.0  # while fitting, intervals are this much longer
        self.resampling: Resampling | None = None  # finer intervals where rays meet surfaces
        self.patch = 1  # while fitting, rays come in patches of so many pixels a side, and their middle one is marched

    @property
    def device(self) -> torch.device:
        """Where it works: rays and field must be there too."""
        return self.occupancy.densities.device

    @property
    def backdrop(self) -> Tensor:
        """(3,) the colour behind the scene in pictures."""
        return self.background.shown.detach()

    @property
    def step(self) -> float:
        """Length of the shortest interval, scene units."""
        return 2 * 3**0.5 * self.occupancy.half_extent / self.config.steps_per_diagonal

    def render(self, field: Field, view: Camera | Rays, *, normals: bool = False) -> Render:
        """Flat pixels (R,) with samples and gradients for Rays; an image (H, W), without them, for a Camera.

        Normals, if asked for, are the composited directions against the gradient of the field's values. A Camera may be
        on any device: its rays are made where the renderer is, and so are the pixels.
        """
        if isinstance(view, Camera):
            return self._render_image(field, view, normals)
        return self._render_rays(field, view, normals)

    def _look(self, field: Field, rays: Rays, keep: bool = False) -> Marched:
        """Intervals in occupied cells, the field's values there without gradients, and the intervals that rays see.

        keep: the field will be asked for colours alone, and rays see few enough intervals for what it finds to be kept.
        """
        if self.config.wave is None and isinstance(field, Marchable) and isinstance(self.opacity, Density):
            jitter = self._jitter(rays)
            return field.march(self.occupancy, rays, **self._pace(), jitter=jitter, **self._limits, keep=keep)
        marched, values = self._march(field, rays)
        alphas = self._alphas(rays, marched, values)
        if self.opacity.needs_neighbors:
            return Marched(marched, values, seen_with_neighbors(alphas, marched, 1, **self._limits))
        return Marched(marched, values, prune(alphas, marched, **self._limits))

    @property
    def _limits(self) -> dict[str, float]:
        """From where on a ray sees nothing."""
        return dict(min_transmittance=self.config.min_transmittance, min_alpha=self.config.min_alpha)

    def _pace(self) -> dict[str, float]:
        """How long intervals are."""
        longer = self.coarseness if self.training else 1.0
        return dict(step=self.step * longer, cone_angle=self.config.cone_angle * longer)

    def _jitter(self, rays: Rays) -> Tensor | None:
        if not self.training:
            return None
        return torch.rand(len(rays), generator=self.generator, device=self.generator.device)

    def _march(self, field: Field, rays: Rays) -> tuple[Samples, Tensor]:
        """Intervals in occupied cells and the field's values there, without gradients.

        In waves, each of twice as many intervals as the one before: most rays end at a surface within the first few,
        and what lies behind it, two thirds of all in a room, needs no evaluation.
        """
        first = most = self._first_wave()
        samples, values = self._wave(field, rays, self._jitter(rays), most)
        onward, fresh = self._onward(rays, samples, values, most), samples
        while len(onward[0]):
            most = 2 * most if most < 8 * first else 0
            numbers, ends = onward
            rest = replace(rays[numbers], near=ends)
            fresh, fresh_values = self._wave(field, rest, None, most)
            among, ends = self._onward(rest, fresh, fresh_values, most)
            (starts, stops, values), indices, offsets = append_packed(
                (samples.t_starts, samples.t_ends, values),
                samples.ray_offsets,
                (fresh.t_starts, fresh.t_ends, fresh_values),
                fresh.ray_offsets,
                numbers,
            )
            samples, onward = Samples(starts, stops, indices, offsets), (numbers[among], ends)
        if self.resampling is None:
            return samples, values
        alphas = self._alphas(rays, samples, values)
        return self.resampling(field, rays, samples, values, alphas, self.generator if self.training else None)

    def _first_wave(self) -> int:
        if self.config.wave is None:
            return 0 if on_gpu(self.occupancy.densities) else 24
        return self.config.wave

    def _onward(self, rays: Rays, samples: Samples, values: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """The rays that have had all ``most`` intervals and still see something, and where each has come to."""
        if most == 0:
            return samples.ray_offsets.new_zeros(0, dtype=torch.long), samples.t_ends[:0]
        _, opacities, _ = composite(self._alphas(rays, samples, values), [], samples.ray_offsets)
        full = samples.ray_offsets.diff() == most
        onward = (full & (1 - opacities > self.config.min_transmittance)).nonzero()[:, 0]
        return onward, samples.t_ends[samples.ray_offsets[1:][onward] - 1]

    def _wave(self, field: Field, rays: Rays, jitter: Tensor | None, most: int) -> tuple[Samples, Tensor]:
        samples = self.occupancy.march(rays, **self._pace(), jitter=jitter, max_samples=most)
        points, chunk = samples.positions(rays), self.config.chunk_intervals
        with torch.no_grad():
            if self.training or len(points) <= chunk:
                return samples, field.query(points).values
            return samples, torch.cat([field.query(some).values for some in points.split(chunk)])

    def _alphas(self, rays: Rays, samples: Samples, values: Tensor) -> Tensor:
        with torch.no_grad():
            return self.opacity(FieldOutput(values), rays, samples)

    def _patch_intervals(self, field: Field, rays: Rays) -> Marched:
        """What the patches' middle rays met; what those see, every ray of a patch does."""
        middles = middle_rays(len(rays), self.patch, rays.origins.device)
        some = rays[middles]
        marched, values = self._march(field, some)
        alphas = self._alphas(some, marched, values)
        samples = seen_with_neighbors(alphas, marched, self.patch, **self._limits)
        counts = torch.zeros(len(rays), dtype=torch.int32, device=middles.device)
        counts[middles] = marched.ray_offsets.diff()
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0).int()])
        owners = middles.int().index_select(0, marched.ray_indices)
        return Marched(replace(marched, ray_indices=owners, ray_offsets=offsets), values, samples)

    def _render_rays(self, field: Field, rays: Rays, normals: bool = False) -> Render:
        still = rays.detach()  # where intervals lie has no gradient; the points in them do, if the rays have
        if self.patch > 1 and self.training:
            way = self._patch_intervals(field, still)
        else:
            moving = rays.origins.requires_grad or rays.directions.requires_grad  # then the field is asked otherwise
            way = self._look(field, still, keep=self.training and not (normals or moving))
        render = self._shade(field, rays, way.seen, normals, way.found)
        return replace(render, marched=way.met, marched_values=way.values)

    def _shade(self, field: Field, rays: Rays, samples: Samples, normals: bool, found: Any = None) -> Render:
        """The field in full where rays see something, blended front to back."""
        positions, directions = samples.positions(rays), samples.directions(rays)
        gradients: bool | PatchDifferences = normals or self.opacity.needs_gradients
        if self.patch > 1 and self.training:
            gradients = PatchDifferences(samples, positions, directions, self.patch)
        known = {} if found is None else dict(found=found)
        output = field.query(positions, directions, gradients=gradients, **known)  # type: ignore[arg-type]
        middles = ((samples.t_starts + samples.t_ends) * 0.5)[:, None]
        if self.training and self.config.near_gradients > 0:
            output = scaled_near(output, middles.detach()[:, 0], self.config.near_gradients)
        alphas = self.opacity(output, rays, samples)
        values = {"depths": middles}
        if output.colors is not None:
            values["colors"] = output.colors
        if normals and output.gradients is not None:
            outwards = functional.normalize(self.opacity.outwards * output.gradients, dim=-1)
            if not getattr(field, "signed", True):  # of no side: towards the viewer
                outwards = outwards * -(outwards.detach() * directions).sum(-1, keepdim=True).sign()
            values["normals"] = outwards
        weights, opacities, outputs = composite(alphas, list(values.values()), samples.ray_offsets)
        accumulated = dict(zip(values, outputs, strict=True))
        background = self.background(rays, self.training, 1 - opacities)
        if "colors" in accumulated:
            accumulated["colors"] = accumulated["colors"] + (1 - opacities)[:, None] * background
        means = None
        if "normals" in accumulated:
            means = accumulated["normals"] / opacities.clamp(min=1e-6)[:, None]
            accumulated["normals"] = functional.normalize(accumulated["normals"], dim=-1)
        accumulated["depths"] = accumulated["depths"][:, 0] / opacities.clamp(min=1e-6)
        pixels = Pixels(alphas=opacities, **accumulated)
        return Render(pixels, background, samples, weights, output, mean_normals=means)

    @torch.no_grad()
    def _render_image(self, field: Field, camera: Camera, normals: bool) -> Render:
        fitting, most = self.training, self.config.chunk_intervals
        self.eval()
        try:
            rays = camera.to(self.device).rays()
            met = most_intervals(self.occupancy, self.step, self.config.cone_angle)
            count = max(1, min(self.config.chunk, 16 * most // met))
            drawn = []
            for chunk in (rays[i : i + count] for i in range(0, len(rays), count)):
                seen = self._look(field, chunk).seen
                drawn += [
                    self._shade(field, chunk[some], samples, normals).pixels for some, samples in parts(seen, most)
                ]
        finally:
            self.train(fitting)
        return Render(Pixels.joined(drawn, camera.height, camera.width))
