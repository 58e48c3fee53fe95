"""Read and write files of Gaussians, whatever the format: one module each in ``geometry/splat_files``.

Gaussians are in the scene's own axes, as .ply, .splat and .sog have them: those files say nothing about what is up, and
nothing is turned. .spz and glTF define +y as up and the viewer's side as +z: ``up`` names the axis that points up in
the scene (-y in the camera axes of COLMAP and OpenCV, which most .ply files of Gaussians have), and means, rotations
and colours are turned on the way. The coefficients of colours have the order of ``cuda.sh_basis``, quaternions are w x
y z.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .gaussian_transforms import transform
from .gaussians import Gaussians
from .mesh_io import turn_to_y_up
from .morton import morton_order
from .splat_files._checks import MAX_MEMORY, SplatError, bad
from .transforms import rigid
from .whole_file import write_whole_file

__all__ = ["SplatError", "file_order", "format_of", "load_gaussians", "save_gaussians", "suffixes"]


def load_gaussians(
    path: str | os.PathLike[str], *, up: str = "-y", drop_invalid: bool = False, max_memory: int = MAX_MEMORY
) -> Gaussians:
    """Read Gaussians.

    Args:
        path: a file with one of ``suffixes()``, or a folder with a ``meta.json`` (an unpacked .sog).
        up: which axis shall point up in the scene: "-y", "z" or "y". Only .spz and glTF are turned.
        drop_invalid: leave out Gaussians with NaN, infinite numbers or quaternions of length zero, instead of raising.
        max_memory: bytes that the Gaussians may take.

    Returns:
        Float32 Gaussians on the CPU, in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        SplatError: an ending that is not known; a file that is damaged, incomplete or not of its format; numbers that
            are no Gaussians; more of them than ``max_memory`` holds.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "meta.json"
    form = format_of(path, "load_gaussians")
    if not path.is_file():
        raise FileNotFoundError(
            f"load_gaussians: {path}: expected a file of Gaussians, got nothing there; check the path"
        )
    turn = _turn("load_gaussians", up, form)
    gaussians = form.read(path, max_memory)
    problems = _problems(gaussians)
    valid = torch.stack([~wrong for wrong in problems.values()]).all(0)
    if not bool(valid.all()):
        if not drop_invalid or not bool(valid.any()):
            found = "; ".join(f"{int(w.sum())} with {what}" for what, w in problems.items() if bool(w.any()))
            first = int((~valid).nonzero()[0])
            raise bad(
                path,
                f"{len(gaussians)} Gaussians of finite numbers, with quaternions",
                f"{found}; the first is number {first}",
                "leave them out with drop_invalid (polyfield convert --drop-invalid)",
            )
        gaussians = gaussians[valid]
    return gaussians if turn is None else transform(gaussians, turn.T)


def save_gaussians(path: str | os.PathLike[str], gaussians: Gaussians, *, up: str = "-y", **options: Any) -> None:
    """Write Gaussians to ``path``, replacing it only when all is written.

    Args:
        path: its ending, one of ``suffixes()``, names the format; its folder must exist.
        gaussians: at least one; of a degree that the format holds. Compressed .ply and .sog store them in Morton order.
        up: which axis points up in the scene: "-y", "z" or "y". Only .spz and glTF are turned.
        **options: the format's own: ``version`` (2, 3 or 4) for .spz.

    Raises:
        SplatError: an ending that is not known; no Gaussians; NaN, infinity or a quaternion of length zero; a degree
            that the format does not hold (``with_degree`` cuts it off); sizes beyond its range.
        OSError: the file cannot be written; what was there stays.
    """
    path = Path(path)
    form = format_of(path, "save_gaussians")
    turn = _turn("save_gaussians", up, form)
    if len(gaussians) == 0:
        raise SplatError(f"save_gaussians: gaussians: expected at least one, got none; nothing was written to {path}")
    for what, wrong in _problems(gaussians).items():
        if bool(wrong.any()):
            raise SplatError(
                f"save_gaussians: gaussians: expected finite numbers and quaternions, got {int(wrong.sum())} with "
                f"{what}; nothing was written to {path}"
            )
    if gaussians.degree > form.DEGREE:
        raise SplatError(
            f"save_gaussians: {path}: expected at most degree {form.DEGREE}, which the format holds, got "
            f"{gaussians.degree}; cut the higher bands off with with_degree"
        )
    if turn is not None:
        gaussians = transform(gaussians, turn)
    if path.suffix.lower() == ".gltf":
        options["text"] = True
    with torch.no_grad():
        write_whole_file(path, lambda file: form.write(file, gaussians, **options))


def format_of(path: Path, op: str) -> ModuleType:
    """The module for a file's ending. Raises SplatError listing the endings if there is none."""
    name = path.name.lower()
    fitting = [(len(s), m) for m in _formats() for s in m.SUFFIXES if name.endswith(s)]
    if not fitting:
        raise SplatError(
            f"{op}: {path}: expected a file ending with {', '.join(suffixes())}, got {path.name!r}; rename it"
        )
    return max(fitting, key=lambda pair: pair[0])[1]


def file_order(form: ModuleType, gaussians: Gaussians) -> Tensor:
    """(G,) the order in which a format (of ``format_of``) stores these Gaussians."""
    return morton_order(gaussians.means) if form.REORDERED else torch.arange(len(gaussians))


def suffixes() -> list[str]:
    """The endings of all formats."""
    return sorted(s for m in _formats() for s in m.SUFFIXES if s.startswith("."))


@functools.cache
def _formats() -> tuple[ModuleType, ...]:
    package = f"{__package__}.splat_files"
    names = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__))
    return tuple(importlib.import_module(f"{package}.{name}") for name in names if not name.startswith("_"))


def _turn(op: str, up: str, form: ModuleType) -> Tensor | None:
    """(4, 4) from the scene's axes to +y up; None where a format has the scene's own."""
    rotation = turn_to_y_up(op, up)
    return None if form.UP is None else rigid(rotation, rotation.new_zeros(3))


def _problems(gaussians: Gaussians) -> dict[str, Tensor]:
    """What may be wrong with a Gaussian -> (G,) where it is."""
    g = gaussians
    named = {
        "means": g.means,
        "quaternions": g.quats,
        "scales": g.log_scales,
        "opacities": g.logit_opacities,
        "sh": g.sh,
    }
    found = {f"NaN or infinite {name}": ~t.detach().isfinite().flatten(1).all(1) for name, t in _rows(named)}
    return found | {"quaternions of length zero": (g.quats.detach() == 0).all(1)}


def _rows(named: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name, t.reshape(len(t), -1)) for name, t in named.items()]
