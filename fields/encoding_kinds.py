"""Which encoding a distance is built on."""

from __future__ import annotations

from enum import Enum


class EncodingKind(Enum):
    """What turns places into features."""

    HASH = "hash"
    """Multiresolution hash tables; sizes are those of ``grid``."""
    DENSE = "dense"
    """A grid with an entry per vertex; ``dense``."""
    TRI_PLANE = "tri-plane"
    """Features on three planes; ``tri_plane``."""
    VM = "vm"
    """Products of planes and lines; ``vm``."""
    CP = "cp"
    """Products of three lines; ``cp``."""
    FOURIER = "fourier"
    """Sines and cosines; ``fourier``."""
    NONE = "none"
    """The place alone."""
