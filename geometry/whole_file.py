"""Files that appear whole or not at all: written beside their final name, flushed to the disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_whole_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write(file)``, then let what it wrote appear as ``path`` at once.

    Raises:
        OSError: the file cannot be written; what stood at ``path`` stays as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
