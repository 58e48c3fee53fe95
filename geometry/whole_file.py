"""Files that appear whole or not at all: written beside their final name, flushed to the disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO


def write_whole_path(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary_path)``, then let the file that it made appear as ``path`` at once.

    Raises:
        OSError: the file cannot be written; what stood at ``path`` stays as it was, as it does after any other error.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_whole_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write(file)``, then let what it wrote appear as ``path`` at once; raises as ``write_whole_path``."""

    def fill(part: Path) -> None:
        with open(part, "wb") as file:
            write(file)

    write_whole_path(path, fill)
