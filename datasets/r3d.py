"""Record3D's own ``.r3d``: a zip archive of ``metadata`` and ``rgbd/0.jpg, 1.jpg, ...``, unpacked once and kept.

What is in them is that of the export "EXR + RGB" (``record3d.py``), but for depths: those are compressed by LZFSE,
which Python does not know, and are left out.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

from . import record3d
from .capture import Capture, build
from .kept import kept_folders
from .scene import LoadOptions, Scene, SceneError

PREFERENCE = 5
WANTED = re.compile(r"metadata|rgbd/\d+\.(jpg|jpeg|png)")
MOST = 20  # times the archive's own size: photographs hardly shrink


def matches(root: Path) -> bool:
    """A file ``*.r3d``."""
    return root.suffix.lower() == ".r3d" and root.is_file()


def load(root: Path, options: LoadOptions) -> Scene:
    """Read the recording. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the archive says; photographs in order of their numbers."""
    try:
        with zipfile.ZipFile(root) as archive:
            folder = _unpacked(root, archive)
            has_depths = any(name.endswith(".depth") for name in archive.namelist())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SceneError(f"{root}: expected a whole .r3d archive, got {error}; export it again") from None
    capture = record3d.read(folder, options)
    warning = "depth maps are left out: those in .r3d are LZFSE; export EXR + RGB from Record3D for them"
    return replace(
        capture,
        format="Record3D, .r3d",
        name=root.stem,
        warnings=capture.warnings + ((warning,) if has_depths else ()),
    )


def _unpacked(root: Path, archive: zipfile.ZipFile) -> Path:
    """The folder with the archive's photographs, made now if it is not kept. Raises SceneError."""
    members = [m for m in archive.infolist() if WANTED.fullmatch(m.filename)]
    if len(members) < 2 or all(m.filename != "metadata" for m in members):
        raise SceneError(f"{root}: expected metadata and rgbd/0.jpg in it, found neither; export it again")
    stat = root.stat()
    if sum(m.file_size for m in members) > MOST * stat.st_size:
        raise SceneError(
            f"{root}: expected photographs, got what unpacks to over {MOST} times its size; export it again"
        )
    name = f"{root.name}-{stat.st_size}-{stat.st_mtime_ns}"
    places = [folder / name for folder in kept_folders(root)]
    found = next((place for place in places if place.is_dir()), None)
    if found is not None:
        return found
    for place in places:
        try:
            return _unpack(archive, members, place)
        except OSError as error:
            problem = error
    raise SceneError(f"{root}: expected room to unpack it beside it, got {problem}; copy it to a folder of your own")


def _unpack(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], place: Path) -> Path:
    """The folder, whole; what was kept of the archive as it was before is removed."""
    stem = glob.escape(place.name.rsplit("-", 2)[0])
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        (part / "rgbd").mkdir(parents=True)
        for member in members:
            with archive.open(member) as source, open(part / member.filename, "wb") as target:
                shutil.copyfileobj(source, target)
        (part / "metadata").rename(part / record3d.FILE)
        for old in place.parent.glob(f"{stem}-*-*"):
            if old.suffix != ".part":
                shutil.rmtree(old, ignore_errors=True)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place
