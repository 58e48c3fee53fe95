"""Reading JSON and numbers in it, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .scene import SceneError


def read_json(file: Path) -> Any:
    """The content. Raises SceneError if it is unreadable or no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SceneError(f"{file}: expected JSON, got {error}; export it again") from None
    except OSError as error:
        raise SceneError(f"{file}: expected a readable file, got {error}") from None


def numbers(what: str, values: Any, count: int) -> Tensor:
    """(count,) float64, all finite; a lone one as (). Raises SceneError if it is anything else."""
    try:
        found = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if tuple(found.shape) != (count,) or not bool(found.isfinite().all()):
        wanted = "a number" if count == 1 else f"{count} numbers"
        got = values[0] if count == 1 and isinstance(values, list) else values
        raise SceneError(f"{what}: expected {wanted}, got {str(got)[:60]}; export the file again")
    return found[0] if count == 1 else found
