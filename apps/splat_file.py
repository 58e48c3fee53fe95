"""A file of Gaussians, whoever made it, opened as if it were a run: to be looked at, rendered, meshed.

Nothing but Gaussians is known. So the region of interest is where most of the opaque ones are, and there are no
photographs; what is made of FILE.ply goes into a folder FILE beside it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ..fields.gaussians import GaussianField
from ..geometry.gaussian_transforms import transform
from ..geometry.gaussians import Gaussians
from ..geometry.mesh_io import turn_to_y_up
from ..geometry.splat_files._ply_elements import column_names
from ..geometry.splat_io import SplatError, load_gaussians, suffixes
from ..geometry.transforms import similarity, similarity_inverse
from .devices import CPU
from .errors import UserError
from .recipes import splat
from .run import Asked, Run, SceneFacts, matrix_rows

MOST_CASCADES = 6
OPAQUE = 0.1  # less counts for nothing when the region of interest is looked for


def is_splat_file(path: Path) -> bool:
    """Whether its name is one of a file of Gaussians, and no folder has it."""
    return not path.is_dir() and any(path.name.lower().endswith(suffix) for suffix in suffixes())


def holds_gaussians(path: Path) -> bool:
    """The same of a file where points or meshes may be meant: a .ply must say so."""
    if path.suffix.lower() != ".ply":
        return is_splat_file(path)
    try:
        names = column_names(path)
    except (SplatError, OSError):
        return False  # whoever reads it as points says what is wrong
    return "chunk" in names or "rot_0" in names.get("vertex", ())


def folder_of(path: Path) -> Path:
    """Where what is made of it goes."""
    return path.with_suffix("")


def open_splat_file(path: Path, device: torch.device, up: str = "-y") -> Run:
    """Its Gaussians and what draws them, as a run. ``up``: as for ``load_gaussians``.

    Raises UserError for what cannot be read.
    """
    try:
        gaussians = load_gaussians(path, up=up)
    except (SplatError, OSError) as error:
        raise UserError(str(error)) from error
    scene_to_world, cascades = frame_of(gaussians)
    x, y, z = turn_to_y_up("open_splat_file", up)[1].tolist()
    config = splat.Config(sh_degree=gaussians.degree)
    near, rows = config.draw.near, matrix_rows(scene_to_world)
    facts = SceneFacts(cascades, near, False, rows, path.stem, (x, y, z), masked=False)
    asked = Asked("splat", config, str(path.resolve()), 1, 0, 0, None, facts)
    empty, renderer = config.build_model(facts, device)
    placed = transform(gaussians, similarity_inverse(scene_to_world))
    field = GaussianField(placed, empty.bounds.to(CPU)).to(device)
    return Run(folder_of(path), asked, field, renderer.eval(), 0, 0.0, of_file=True, mesh_up=up)


def frame_of(gaussians: Gaussians) -> tuple[Tensor, int]:
    """The scene's frame, (4, 4) scene_to_world float64, in which most of the opaque Gaussians lie in the unit ball; and
    how often that doubles until it holds all but a few.

    The middle is their median. An object's ball holds 98 % of them and a little more; where a background makes that
    more than twice the size of what holds 75 %, twice that size is taken.
    """
    opaque = gaussians.logit_opacities.sigmoid() > OPAQUE
    means = (gaussians.means[opaque] if bool(opaque.any()) else gaussians.means).double()
    middle = means.median(0).values
    away = (means - middle).norm(dim=-1).sort().values
    share = lambda p: float(away[min(len(away) - 1, int(p * len(away)))])  # noqa: E731
    half = max(min(1.1 * share(0.98), 2 * share(0.75)), 1e-6)
    cascades = 1 + math.ceil(math.log2(max(1.0, share(0.999) / half)))
    return similarity(half, torch.eye(3, dtype=torch.float64), middle), min(cascades, MOST_CASCADES)
