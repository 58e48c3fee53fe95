"""Masks that lie beside the photographs without being named by a file: which mask belongs to which photograph.

Folders ``masks`` and ``mask`` (``masks_2`` first for ``images_2``), with names as the photographs have them, another
ending, or one added (COLMAP's ``a.jpg.png``); where no name agrees but there are as many, in sorted order (NeuS); and
instant-ngp's ``dynamic_mask_a.png`` beside ``a.jpg``. What black and white mean, ``MaskUse`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .capture import Shot
from .photo_folders import IMAGE_ENDINGS

FOLDERS = ("masks", "mask")


def with_masks(
    root: Path, shots: Sequence[Shot], names: Sequence[str | Path], suffix: str = ""
) -> tuple[list[Shot], tuple[str, ...]]:
    """The shots with the masks found below ``root``, and what a user should know.

    ``names``: the photographs', relative to their folder; ``suffix``: of the image folder, such as ``_2``.
    """
    found = [_dynamic(shot.image) for shot in shots]
    if any(found):
        shots = [replace(s, mask=m) for s, m in zip(shots, found, strict=True)]
        return shots, ("dynamic_mask_* files are read as masks; where white is to be ignored: --masks ignore-white",)
    folders = [root / (name + ending) for ending in dict.fromkeys((suffix, "")) for name in FOLDERS]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        return list(shots), ()
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS and p.is_file())
    by_name: dict[str, Path] = {}
    for path in files:
        inside = path.relative_to(folder)
        by_name[inside.as_posix().lower()] = path
        by_name.setdefault(inside.with_suffix("").as_posix().lower(), path)
    pairs = [_of_name(by_name, Path(n)) for n in names]
    if not any(pairs) and len(files) == len(shots):
        pairs = list(files)
    missing = pairs.count(None)
    warnings = () if not missing or not files else (f"{folder}: no mask for {missing} of {len(shots)} photographs",)
    return [replace(s, mask=m) for s, m in zip(shots, pairs, strict=True)], warnings


def _of_name(by_name: dict[str, Path], name: Path) -> Path | None:
    for key in (name.as_posix() + ".png", name.with_suffix("").as_posix(), name.as_posix()):
        if key.lower() in by_name:
            return by_name[key.lower()]
    return None


def _dynamic(image: Path) -> Path | None:
    path = image.with_name(f"dynamic_mask_{image.stem}.png")
    return path if path.is_file() else None
