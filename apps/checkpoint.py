"""Checkpoints: one safetensors file per save, written whole or not at all; the newest readable one is resumed.

A file is written beside its final name, flushed to the disk and renamed, so that a crash at any moment leaves either
the old or the new one. A file cut short by other means fails its own header check and the one before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..geometry.whole_file import write_whole_path
from .errors import UserError

SUFFIX = ".safetensors"


def write_whole(path: Path, write: Any) -> None:
    """Call ``write(temporary_path)``, then make its file appear as ``path`` at once.

    Raises UserError naming the file if the disk refuses (full, read-only); what stood at ``path`` is untouched.
    """
    try:
        write_whole_path(path, write)
    except Exception as error:
        if isinstance(error, OSError) or "No space left" in str(error):
            raise UserError(
                f"{path}: could not be written ({error}); free some space or choose another folder with --run"
            ) from error
        raise


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to ``path``, whole or not at all."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    text = {"polyfield": json.dumps(dict(metadata))}
    write_whole(path, lambda temporary: save_file(plain, str(temporary), metadata=text))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``save_tensors`` wrote. Raises UserError if the file is missing, cut short or no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("polyfield", "{}"))
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a safetensors file written by polyfield, could not read it ({error})"
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, the newest first."""
    return sorted(folder.glob(f"step_*{SUFFIX}"), reverse=True)


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], keep: int = 2
) -> Path:
    """Add a checkpoint, and remove all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}{SUFFIX}"
    save_tensors(path, tensors, {**metadata, "step": step})
    for old in checkpoints(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path, warn: Any = print) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that can be read; ``warn`` is told of those that cannot. None if there is none."""
    for path in checkpoints(folder):
        try:
            return load_tensors(path)
        except UserError as error:
            warn(f"{error}; using the one before it")
    return None
