"""Which photographs a folder offers: sub-folders included, masks, shrunk copies and our own results left aside.

Links to folders are followed, each folder once, so a link that leads back to where it lies does no harm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..photo_folders import choose_folder, is_photo
from ..scene import SceneError

RESULT = "polyfield"  # folder of results beside the photographs
VIDEO_ENDINGS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mts", ".3gp")
RAW_ENDINGS = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
ASIDE = re.compile(rf"{RESULT}|.*\.{RESULT}|masks?(_\d+)?|images_\d+|depths?|normals?|sparse|runs")
DEPTH = 4  # folders below the data folder that are looked into


@dataclass(frozen=True)
class Survey:
    """What there is to work with."""

    folder: Path  # that names start from
    names: tuple[str, ...]  # of photographs, relative, "/" between folders, in sorted order
    notes: tuple[str, ...] = ()  # what was passed over, for people


def is_video(path: Path) -> bool:
    """Whether it is a video file by its ending."""
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith(".") and path.is_file()


def result_folder(root: Path) -> Path:
    """Where poses of a folder or a video are kept: DIR/polyfield, CLIP.polyfield beside CLIP.mp4."""
    return root / RESULT if root.is_dir() else root.with_name(f"{root.stem}.{RESULT}")


def survey(root: Path) -> Survey:
    """The photographs of a folder: below ``images`` where there is that, else anywhere in it.

    Raises SceneError where there are fewer than two, naming files that would have been photographs.
    """
    if not root.is_dir():
        raise SceneError(f"{root}: expected a folder of photographs or a video, found none; check the path")
    chosen = choose_folder(root, 1)
    folder = root if chosen is None else chosen.path
    files = sorted(files_below(folder))
    photos = [f for f in files if is_photo(f)]
    if len(photos) < 2:
        raise SceneError(f"{folder}: expected two photographs or more, found {len(photos)}{_instead(files)}")
    raw = [f.name for f in files if f.suffix.lower() in RAW_ENDINGS]
    videos = [f.name for f in files if is_video(f)]
    notes = [f"{len(raw)} raw files are left out, such as {raw[0]}; convert them to JPEG or PNG"] if raw else []
    notes += [f"videos are left out: {', '.join(videos[:3])}; process each by its own name"] if videos else []
    return Survey(folder, tuple(f.relative_to(folder).as_posix() for f in photos), tuple(notes))


def has_photos(root: Path) -> bool:
    """Whether a folder, or one below it, has a photograph."""
    return root.is_dir() and any(is_photo(f) for f in files_below(root))


def files_below(folder: Path) -> Iterator[Path]:
    """Files in a folder and its sub-folders, but for those that hold something else by their names."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        real = here.resolve()
        deep = len(here.relative_to(folder).parts) >= DEPTH
        again = real in seen
        seen.add(real)
        folders[:] = [] if deep or again else sorted(f for f in folders if f[0] != "." and not ASIDE.fullmatch(f))
        if not again:
            yield from (here / f for f in files)


def _instead(files: list[Path]) -> str:
    """What there is in place of photographs, and what to do about it."""
    videos = [f for f in files if is_video(f)]
    if videos:
        return f"; for the video: polyfield process {videos[0]}"
    raw = [f.name for f in files if f.suffix.lower() in RAW_ENDINGS]
    if raw:
        return f", but {len(raw)} raw files such as {raw[0]}; convert them to JPEG or PNG"
    endings = sorted({f.suffix.lower() or f.name for f in files})
    return f", but {len(files)} other files ({', '.join(endings[:4])}); put photographs there" if files else (
        "; put photographs there")  # fmt: skip
