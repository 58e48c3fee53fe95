"""Where what is made of a data set is kept for the next start: beside it, or in the user's own cache folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

FOLDER = ".polyfield"


def kept_folders(root: Path) -> list[Path]:
    """Folders to try, which may not exist yet: in the data folder; and for data that cannot be written to."""
    folder = root if root.is_dir() else root.parent
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    own = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [folder / FOLDER, Path(own) / "polyfield" / "data" / key]
