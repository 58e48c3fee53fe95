"""What is done to a mesh after extraction, in this order: parts chosen, holes filled, smoothed, decimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UserError, check_least

if TYPE_CHECKING:
    from ..geometry.types import Mesh

CRUMBS = 1e-3  # of the triangles: smaller parts are errors


@dataclass(frozen=True)
class Cleanup:
    """As ``polyfield extract`` has it."""

    components: int | None = None
    """Keep this many of the largest connected parts (of what the crop leaves); 0 keeps all, as do several cascades,
    whose meshes are not connected; by default 1, of a run of a shape all but those of less than a thousandth of the
    triangles."""
    fill_holes: int = 0
    """Then close holes of at most this many edges."""
    smooth: int = 0
    """Then smooth so many times (Taubin), which keeps the volume."""
    target_faces: int | None = None
    """Then decimate to about this many triangles."""

    def check(self) -> None:
        """Raises UserError for numbers that make no sense."""
        from ..geometry.hole_filling import MOST

        counts = {name: (getattr(self, name), 0) for name in ("components", "fill_holes", "smooth")}
        check_least("extract", **counts, target_faces=(self.target_faces, 4))
        if self.fill_holes and not 3 <= self.fill_holes <= MOST:
            raise UserError(f"extract: --fill-holes: expected 0, or 3 to {MOST} edges, got {self.fill_holes}")

    def clean(self, mesh: Mesh, *, several: bool = False, connected: bool = True) -> Mesh:
        """The mesh after all that. ``several``: it may have parts; not ``connected``: all of them are kept."""
        from ..geometry.hole_filling import fill_holes
        from ..geometry.mesh_ops import largest_components, simplify
        from ..geometry.smoothing import smooth

        if connected:
            count, share = (0, CRUMBS) if several else (1, 0.0)
            if self.components is not None:
                count, share = self.components, 0.0
            mesh = largest_components(mesh, count, min_fraction=share)
        if self.fill_holes:
            mesh = fill_holes(mesh, self.fill_holes)
        if self.smooth:
            mesh = smooth(mesh, self.smooth)
        return mesh if self.target_faces is None else simplify(mesh, self.target_faces)
