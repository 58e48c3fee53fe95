"""polyfield: neural fields and 3D reconstruction that run fast everywhere."""

__version__ = "0.1.0"
