"""How a mesh is made of a run: what ``polyfield extract`` and ``extract_mesh`` take; read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .errors import UserError, check_least
from .mesh_cleanup import Cleanup

TRIM = 1.5


class Method(Enum):
    """Where a surface is taken to be."""

    TSDF = "tsdf"
    """Where the rendered depths of the training views say, on average."""
    OPACITY = "opacity"
    """Where the density, or the signed distance, has a level."""
    DUAL = "dual"
    """Where a distance is zero, by its tangent planes: sharp edges stay (dual contouring; unsigned: DualMesh-UDF)."""
    PSEUDO_SIGNS = "pseudo-signs"
    """The same by marching cubes, gradients giving the signs (MeshUDF): coarser at boundaries and edges."""
    POISSON = "poisson"
    """Through oriented points, where rays of the training views meet the surface: smooth, and closed if asked for."""


@dataclass(frozen=True, kw_only=True)
class MeshOptions(Cleanup):
    """Where the surface is looked for, by which method, and what is done to the mesh then."""

    method: Method | None = None
    """tsdf fuses rendered depths, opacity is the density's (or signed distance's) level set by marching cubes, dual
    that of a distance by dual contouring, which keeps sharp edges, pseudo-signs the zero set of an unsigned distance,
    poisson a smooth surface through the points that training views see (needs polyfield[poisson]); by default tsdf for
    Gaussians, dual for unsigned distances, and else opacity."""
    resolution: int = 256
    """Cells along the longest edge of the box that is searched."""
    level: float | None = None
    """Density per scene unit (or distance) at the surface; by default half opaque within two cells (or 0)."""
    crop: tuple[float, float, float, float, float, float] | None = None
    """Low x y z and high x y z of a box, in the scene's own units; by default the innermost cube of the scene."""
    cascades: int = 1
    """Boxes, each twice the size of the one before and half as fine, for what lies around (tsdf)."""
    trim: float | None = None
    """Of poisson: the surface ends where points are 4^trim times sparser than in the median, 1.5 by default; 0 keeps
    all of it, closed."""

    def check(self) -> None:
        """Raises UserError for numbers that make no sense."""
        check_least("extract", resolution=(self.resolution, 8), cascades=(self.cascades, 1), trim=(self.trim, 0))
        super().check()

    def check_method(self, method: Method) -> None:
        """Raises UserError for what ``method``, which was chosen, would ignore."""
        if method is not Method.POISSON and self.trim is not None:
            raise UserError(
                f"extract: --trim: expected --method poisson as well, got {method.value}, which trims nothing; drop one"
            )
        if method is not Method.TSDF and self.cascades != 1:
            raise UserError(
                f"extract: --cascades: expected --method tsdf as well, got {method.value}, which searches one box; "
                "drop one"
            )

    @property
    def trimmed(self) -> float:
        """``trim``, or what it is by default."""
        return TRIM if self.trim is None else self.trim
