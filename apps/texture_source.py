"""Where a texture's colours are from; apart from the baking, so that the command line reads it without torch."""

from __future__ import annotations

from enum import Enum


class TextureSource(Enum):
    """Where a texture's colours are from."""

    FIELD = "field"
    """What the fitted field shows of the surface, looked at as the photographs do."""
    PHOTOGRAPHS = "photographs"
    """The photographs that see a point, blended; the field where none does."""
