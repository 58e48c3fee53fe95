"""The main job from Python, in the words of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .fit_run import Options, fit_run
from .recipes import ngp
from .run import Run


def fit_scene(data: str | Path, config: Any = None, **options: Any) -> Run:
    """Fit a scene and return the finished run, ready to render and extract from.

    Args:
        data: a folder with a posed capture, or "demo"; a file with a mesh or points for ``recipes.shape``.
        config: a recipe's ``Config``; instant-ngp's by default.
        options: as on the command line: run, steps, seconds, downscale, seed, threads, resume, overwrite, view, ...

    Raises:
        UserError: data that cannot be read, a run folder that exists, options that contradict each other.
    """
    return fit_run(data, ngp.Config() if config is None else config, Options(**options))
