"""What a field promises. Renderers, extraction and distillation know fields only by these protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ..geometry.gaussians import Gaussians
from ..geometry.occupancy import OccupancyGrid
from ..geometry.types import Aabb, Rays, Samples


@dataclass(frozen=True)
class FieldOutput:
    """What a field says about points."""

    values: Tensor  # (N,): density per unit length, or signed/unsigned distance, as the field's class states
    gradients: Tensor | None = None  # (N, 3) d values / d points, if asked for
    colors: Tensor | None = None  # (N, 3) in [0, 1], if directions were given
    features: Tensor | None = None  # (N, C)


@runtime_checkable
class Field(Protocol):
    """A pointwise field over ``bounds``, in the scene's frame."""

    bounds: Aabb

    def query(self, points: Tensor, directions: Tensor | None = None, *, gradients: bool = False) -> FieldOutput:
        """Values at points (N, 3); colours too if unit view directions (N, 3) are given.

        Gradients are analytic and differentiable with respect to the parameters, so that a caller never needs a
        double backward. Defined everywhere: outside of ``bounds`` a field extends itself continuously or is empty.
        """
        ...


class Marched(NamedTuple):
    """What rays met on their way through a field."""

    met: Samples
    values: Tensor  # (S,) the field's, at the middles of what was met
    seen: Samples  # those among the met that rays see
    found: Any = None  # what the field wants back when it is asked at the middles of the seen: a fit on a CPU asks soon


@runtime_checkable
class Marchable(Protocol):
    """A density field that rays can be marched through in one go, faster than interval by interval."""

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
        """Occupied intervals that rays meet, the densities there, and those intervals that they see.

        A ray ends once less light than ``min_transmittance`` is left; what is more transparent than ``min_alpha`` is
        not seen. keep: whether ``query`` will soon be given what was found. No gradients. The other arguments are those
        of ``OccupancyGrid.march``.
        """
        ...

    def query(
        self, points: Tensor, directions: Tensor | None = None, *, gradients: bool = False, found: Any = None
    ) -> FieldOutput:
        """As of every field. found: what ``march`` found at these very points, since when nothing has changed."""
        ...


@runtime_checkable
class Distance(Protocol):
    """What extraction and sphere tracing need of a distance field."""

    bounds: Aabb
    signed: bool

    def distance(self, points: Tensor) -> Tensor:
        """points (N, 3) -> (N,) distances in scene units, positive outside."""
        ...


@runtime_checkable
class Primitives(Protocol):
    """What splatting needs."""

    bounds: Aabb

    def gaussians(self) -> Gaussians:
        """All of them, in the scene's frame."""
        ...
