"""What a renderer promises, what a loss is called with, and what a background is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..fields.protocols import FieldOutput
from ..geometry import Camera, Pixels, Points, Rays, Samples

F_contra = TypeVar("F_contra", contravariant=True)


@dataclass(frozen=True)
class Render:
    """A renderer's result. ``pixels.colors`` are already over ``background``."""

    pixels: Pixels
    background: Tensor | None = None  # (R, 3) or (3,) what stood behind: targets with alpha are laid over the same
    samples: Samples | None = None
    weights: Tensor | None = None  # (S,)
    output: FieldOutput | None = None
    marched: Samples | None = None  # intervals before those that cannot matter were dropped
    marched_values: Tensor | None = None  # the field's values there
    distortions: Tensor | None = None  # (*P) how far apart a pixel's surfels lie: sum_{i<j} w_i w_j (m_i - m_j)^2
    mean_normals: Tensor | None = None  # (*P, 3) of what a pixel meets, shorter than 1 where that disagrees


class Renderer(Protocol[F_contra]):
    """Draws a field: an image for a Camera, flat pixels for Rays (of renderers that work ray by ray)."""

    oversampling: int  # rays along a pixel, of pictures to be kept: 1 where pixels are areas anyway

    def render(self, field: F_contra, view: Camera | Rays) -> Render: ...


@dataclass(frozen=True)
class Step:
    """All that a loss may look at."""

    index: int
    field: object
    view: Camera | Rays | Points
    render: Render
    target: Pixels
    frames: Tensor | None = None  # which photographs: a number () of one, or each ray's (R,)
    spent: float = 1.0  # share of the budget, 0 to 1: some losses begin later than others
    known: Points | None = None  # places that the data knows to lie on surfaces

    @property
    def target_colors(self) -> Tensor:
        """(*P, 3) the photograph, laid over the render's background where it has alpha."""
        colors, alphas = self.target.colors, self.target.alphas
        if colors is None:
            raise ValueError("photometric: target: expected colours, got a view without them; drop the loss")
        if alphas is None:
            return colors
        if self.render.background is None:
            raise ValueError("photometric: render: expected a background for a target with alpha, got none")
        return colors * alphas[..., None] + self.render.background * (1 - alphas[..., None])

    @property
    def positions(self) -> Tensor:
        """(S, 3) where the field was asked: at points, or in the middle of a ray's intervals; without a gradient."""
        if isinstance(self.view, Points):
            return self.view.positions.detach()
        if self.render.samples is None or isinstance(self.view, Camera):
            raise ValueError("positions: render: expected samples of rays, got none; use a ray-marching renderer")
        return self.render.samples.positions(self.view.detach())

    def generator(self, device: torch.device) -> torch.Generator:
        """Random numbers of a loss: the same ones whenever this step is taken, so that a fit can be resumed."""
        return torch.Generator(device).manual_seed(self.index)

    @staticmethod
    def some(count: int, most: int, generator: torch.Generator) -> Tensor | slice:
        """An index of ``most`` out of ``count``, at random; of all, where they are no more."""
        if count <= most:
            return slice(None)
        return torch.randint(count, (most,), generator=generator, device=generator.device)

    def mean(self, values: Tensor, known: Tensor | None = None) -> Tensor:
        """values (*P,) -> (): their mean over the pixels that count, of those ``known`` (*P,) bool; 0 if none does."""
        masks = self.target.masks
        if known is not None:
            masks = known if masks is None else masks & known
        if masks is None:
            return values.mean()
        return values.where(masks, 0).sum() / masks.sum().clamp(min=1)


Loss = Callable[[Step], Tensor]  # a scalar, its weight included


class Opacity(Protocol):
    """A law: called with what a field says of samples: alphas (S,)."""

    needs_gradients: bool  # of the field's values
    needs_neighbors: bool  # on the ray, of a sample that is seen: the law goes by what is between them
    outwards: float  # 1 or -1: gradients times it point out of the surface

    def __call__(self, output: FieldOutput, rays: Rays, samples: Samples) -> Tensor: ...

    def densities(self, values: Tensor, reach: float = 0.0) -> Tensor:
        """(N,) densities per unit length that values (N,) stand for, at most; if values say so, within ``reach``."""
        ...


class Background(Protocol):
    """Called with rays, whether a fit is under way, and how much light (R,) they have left: colours (R, 3)."""

    met: int  # samples with colours that the last call took

    @property
    def shown(self) -> Tensor:
        """(3,) what stands behind the scene in pictures, and behind photographs that have alpha."""
        ...

    def __call__(self, rays: Rays, fitting: bool, light: Tensor | None = None) -> Tensor: ...
