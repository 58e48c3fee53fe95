"""The parts of a ``.sog``: meta.json and pictures, from a zip or a folder, each read within stated bounds."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._checks import bad
from ._codes import Array

META = "meta.json"
_LONGEST_META = 1 << 20
_LARGEST_PALETTE = 1 << 20  # pixels: 65,536 entries of 15 each
_DAMAGED = "the file is cut short or damaged: copy or export it again"


@dataclass(frozen=True)
class Parts:
    """What ``open_parts`` hands out."""

    path: Path
    archive: zipfile.ZipFile | None  # or the folder of ``path``

    def meta(self) -> dict[str, Any]:
        """The content of meta.json."""
        try:
            found = json.loads(self._content(META, _LONGEST_META))
        except (ValueError, RecursionError) as error:
            raise bad(self.path, f"JSON in {META}", error, _DAMAGED) from error
        if not isinstance(found, dict):
            raise bad(self.path, f"an object in {META}", type(found).__name__, "export it again")
        return found

    def picture(self, name: str, count: int = 0) -> Array:
        """(H, W, 4) bytes of a picture that has something to say of ``count`` Gaussians."""
        from PIL import Image

        most = _LARGEST_PALETTE + 16 * count
        content = self._content(name, 8 * most)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound is ours
                image = Image.open(io.BytesIO(content), formats=("WEBP", "PNG"))
                if image.width * image.height > most:
                    size = f"{image.width} x {image.height}"
                    raise bad(self.path, f"at most {most} pixels in {name}", size, "it is not what it claims to be")
                return np.asarray(image.convert("RGBA"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise bad(self.path, f"a WebP picture {name}", error, _DAMAGED) from error

    def pixels(self, name: str, count: int) -> Array:
        """(count, 4) bytes: the first pixels of a picture, row by row."""
        found = self.picture(name, count).reshape(-1, 4)
        if len(found) < count:
            raise bad(self.path, f"at least {count} pixels in {name}", len(found), _DAMAGED)
        return found[:count]

    def _content(self, name: str, most: int) -> bytes:
        if not isinstance(name, str) or Path(name).name != name:
            raise bad(self.path, "names of files without folders", repr(name), "export it again")
        try:
            beside = self.path.with_name(name)
            size = self.archive.getinfo(name).file_size if self.archive else beside.stat().st_size
            if size > most:
                raise bad(self.path, f"at most {most} bytes of {name}", size, "it is not what it claims to be")
            return self.archive.read(name) if self.archive else beside.read_bytes()
        except (KeyError, OSError) as error:
            raise bad(self.path, f"a part named {name}", error, _DAMAGED) from error


@contextmanager
def open_parts(path: Path) -> Iterator[Parts]:
    """Parts of a zip, or of the folder that ``path``, a meta.json, lies in."""
    if path.name == META:
        yield Parts(path, None)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield Parts(path, archive)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise bad(path, f"a whole zip of {META} and pictures", error, _DAMAGED) from error


def encode_picture(rgb: Array, alpha: Array | None = None, *, width: int | None = None) -> bytes:
    """(N, 3) bytes [and (N,)] as lossless WebP, near square unless ``width`` is given; black fills the last row."""
    from PIL import Image

    count = len(rgb)
    width = width or int(np.ceil(np.sqrt(count)))
    pixels = np.zeros((-(-count // width) * width, 3 if alpha is None else 4), np.uint8)
    pixels[:count, :3] = rgb
    if alpha is not None:
        pixels[:count, 3] = alpha
    file = io.BytesIO()
    # exact: the colours of transparent pixels are numbers too
    Image.fromarray(pixels.reshape(-1, width, pixels.shape[1])).save(
        file, "WEBP", lossless=True, exact=True, quality=60
    )
    return file.getvalue()
