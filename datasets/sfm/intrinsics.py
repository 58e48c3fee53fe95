"""What photographs say of their cameras before any geometry: size, maker, focal length; and which share one.

The focal length in pixels comes from EXIF: f = f_35 * sqrt(w^2 + h^2) / 43.27 mm for one stated for a full frame of
24 x 36 mm, else from COLMAP's list of sensors by maker and model. Without either it begins at 1.2 longer sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from .. import images
from ..scene import SceneError

FULL_FRAME = math.hypot(24, 36)  # mm
EXIF, FOCAL, FOCAL_35, MAKER, MODEL = 0x8769, 0x920A, 0xA405, 0x010F, 0x0110
GUESS = 1.2  # focal length over the longer side where nothing is known


class Cameras(Enum):
    """Which photographs were taken with the same lens at the same setting."""

    AUTO = "auto"
    """Those of the same size, maker and focal length."""
    ONE = "one"
    """All; they must have one size."""
    EACH = "each"
    """None: every photograph has intrinsics of its own."""


class Lens(Enum):
    """COLMAP's model of a lens."""

    AUTO = "auto"
    """radial for 15 photographs of a camera or more, else simple-radial."""
    PINHOLE = "pinhole"
    SIMPLE_RADIAL = "simple-radial"
    RADIAL = "radial"
    OPENCV = "opencv"
    FISHEYE = "fisheye"

    def model(self, photos: int) -> str:
        """COLMAP's name for it, for a camera of so many photographs."""
        if self is Lens.AUTO:
            return (Lens.RADIAL if photos >= 15 else Lens.SIMPLE_RADIAL).model(photos)
        return {"pinhole": "SIMPLE_PINHOLE", "fisheye": "OPENCV_FISHEYE"}.get(
            self.value, self.value.upper().replace("-", "_")
        )


@dataclass(frozen=True)
class Taken:
    """How a photograph was taken."""

    width: int  # upright
    height: int
    focal: float | None  # pixels, if the file says so
    maker: str


def read_taken(path: Path) -> Taken:
    """What the header of a file says. Raises SceneError if it is no readable image."""
    facts = images.image_facts(path)
    try:
        with images.open_image(path) as image:
            exif = image.getexif()
            inner = exif.get_ifd(EXIF)
            maker = f"{exif.get(MAKER, '')} {exif.get(MODEL, '')}".replace("\0", "").strip()
            focal = _focal(path, inner, math.hypot(facts.width, facts.height))
    except (OSError, ValueError, SyntaxError, TypeError, ZeroDivisionError):  # a mangled tag says nothing
        return Taken(facts.width, facts.height, None, "")
    likely = focal is not None and 0.1 < focal / max(facts.width, facts.height) < 30
    return Taken(facts.width, facts.height, focal if likely else None, maker)


def _focal(path: Path, exif: Any, diagonal: float) -> float | None:
    if FOCAL_35 in exif and float(exif[FOCAL_35]) > 0:
        return float(exif[FOCAL_35]) * diagonal / FULL_FRAME
    if FOCAL not in exif:
        return None
    import pycolmap

    bitmap = pycolmap.Bitmap.read(str(path), False)
    return None if bitmap is None else bitmap.exif_focal_length()


def grouped(taken: Sequence[Taken], cameras: Cameras) -> list[int]:
    """The number of each photograph's camera, from 0 up in order of appearance. Raises SceneError for mixed sizes."""
    if cameras is Cameras.EACH:
        return list(range(len(taken)))
    if cameras is Cameras.ONE:
        sizes = {(t.width, t.height) for t in taken}
        if len(sizes) > 1:
            words = ", ".join(f"{w} x {h}" for w, h in sorted(sizes))
            raise SceneError(f"process: --cameras one: expected photographs of one size, got {words}; use auto")
        return [0] * len(taken)
    numbers: dict[object, int] = {}
    return [numbers.setdefault(_key(t), len(numbers)) for t in taken]


def _key(taken: Taken) -> object:
    """Focal lengths within about one percent count as the same."""
    focal = None if taken.focal is None else round(math.log(taken.focal) * 100)
    return taken.width, taken.height, focal, taken.maker
