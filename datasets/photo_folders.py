"""Where a data set's photographs lie: ``images``, and ``images_2``, ``images_4``, ``images_8`` shrunk beforehand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .scene import SceneError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".heif")


@dataclass(frozen=True)
class PhotoFolder:
    """One folder of photographs."""

    path: Path
    shrunk: int  # of the downscale asked for, how much these files have had already
    suffix: str = ""  # of the folder's name, such as _2


def choose_folder(root: Path, downscale: int, names: tuple[str, ...] = ("images",)) -> PhotoFolder | None:
    """The folder below ``root`` that needs least shrinking to be ``downscale`` times smaller than the largest there.

    None if there is no such folder.
    """
    found: dict[int, PhotoFolder] = {}
    for name in names:
        for path in sorted(root.glob(f"{name}*")):
            match = re.fullmatch(rf"{name}(?:_(\d+))?", path.name)
            if match and path.is_dir() and any(is_photo(p) for p in path.rglob("*")):
                factor = int(match[1] or 1)
                found.setdefault(factor, PhotoFolder(path, factor, path.name.removeprefix(name)))
    if not found:
        return None
    base = min(found)
    usable = [f for f in found if f % base == 0 and downscale % (f // base) == 0]
    best = found[max(usable)]
    return PhotoFolder(best.path, best.shrunk // base, best.suffix)


def photos_in(folder: Path) -> list[Path]:
    """All photographs directly in a folder, in sorted order."""
    return sorted(p for p in folder.iterdir() if is_photo(p)) if folder.is_dir() else []


def is_photo(path: Path) -> bool:
    """Whether it is an image file by its ending, and neither hidden nor a mask beside an image."""
    ordinary = not path.name.startswith((".", "dynamic_mask_"))
    return path.suffix.lower() in IMAGE_ENDINGS and ordinary and path.is_file()


def in_order(what: str, folder: Path, count: int) -> list[Path]:
    """As many photographs as there are cameras, in sorted order. Raises SceneError if the numbers differ."""
    photos = photos_in(folder)
    if len(photos) != count:
        raise SceneError(
            f"{what}: expected as many photographs as cameras ({count}), found {len(photos)} in {folder}; restore "
            "those that are missing, or move others away"
        )
    return photos


def by_number(path: Path) -> tuple[int, str]:
    """A key that sorts 2.jpg before 10.jpg, and names without numbers by name."""
    return (int(path.stem) if path.stem.isdecimal() else 0, path.name)
