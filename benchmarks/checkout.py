"""``import polyfield`` from a checkout that is not installed, as on a bare machine: the CUDA kernels need no build."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make_importable() -> None:
    """Does nothing where the package is installed."""
    known = importlib.util.find_spec("polyfield")
    if known is not None and importlib.util.find_spec("polyfield.cuda") is not None:
        return
    place = ROOT / "polyfield" / "__init__.py"
    folders = [str(place.parent), str(ROOT)]  # the layers stand beside the package
    spec = importlib.util.spec_from_file_location("polyfield", place, submodule_search_locations=folders)
    assert spec is not None and spec.loader is not None
    sys.modules["polyfield"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
