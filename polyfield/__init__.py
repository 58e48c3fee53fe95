"""polyfield: neural fields and 3D reconstruction that run fast everywhere.

The public names below are imported on first use, so that ``import polyfield`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Aabb": "geometry",
    "Camera": "geometry",
    "Gaussians": "geometry",
    "Mesh": "geometry",
    "Pixels": "geometry",
    "Rays": "geometry",
    "Samples": "geometry",
    "Scene": "datasets.scene",
    "extract_mesh": "apps.commands.extract",
    "fit_scene": "apps.api",
    "load_gaussians": "geometry.splat_io",
    "load_mesh": "geometry.mesh_io",
    "open_run": "apps.run",
    "open_scene": "datasets.scene",
    "save_gaussians": "geometry.splat_io",
    "save_mesh": "geometry.mesh_io",
}

__all__ = [
    "Aabb",
    "Camera",
    "Gaussians",
    "Mesh",
    "Pixels",
    "Rays",
    "Samples",
    "Scene",
    "__version__",
    "extract_mesh",
    "fit_scene",
    "load_gaussians",
    "load_mesh",
    "open_run",
    "open_scene",
    "save_gaussians",
    "save_mesh",
]

if TYPE_CHECKING:
    from polyfield.apps.api import fit_scene
    from polyfield.apps.commands.extract import extract_mesh
    from polyfield.apps.run import open_run
    from polyfield.datasets.scene import Scene, open_scene
    from polyfield.geometry import Aabb, Camera, Gaussians, Mesh, Pixels, Rays, Samples
    from polyfield.geometry.mesh_io import load_mesh, save_mesh
    from polyfield.geometry.splat_io import load_gaussians, save_gaussians


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'polyfield' has no attribute {name!r}")
    return getattr(importlib.import_module(f"polyfield.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
