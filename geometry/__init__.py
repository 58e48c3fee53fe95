"""The vocabulary of the engine, and what is computed from geometry alone: cameras, transforms, surfaces, metrics."""

from .cameras import Camera
from .gaussians import Gaussians
from .types import Aabb, CameraModel, Mesh, Pixels, Points, Rays, Samples

__all__ = ["Aabb", "Camera", "CameraModel", "Gaussians", "Mesh", "Pixels", "Points", "Rays", "Samples"]
