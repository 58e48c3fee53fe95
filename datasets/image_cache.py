"""Photographs decoded and shrunk once: all pixels in one block, a file mapped into memory where it is large.

Decoding is most of a start. So where photographs would take ``WORTH`` bytes decoded in full, the right-sized pixels are
kept in ``.polyfield/`` in the data folder, or in the user's cache folder where that cannot be written to. The file
begins with a header that says of which files it was made (name, size, time of change) and how; it is used if this is
what the header would be now, and replaced otherwise. It is written under another name and renamed when complete. A full
disk costs nothing but the cache.

Colours of all photographs lie together, then alphas, then masks; so a batch draws from all of them without a copy.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..geometry.whole_file import write_whole_path
from .images import in_threads
from .kept import kept_folders

WORTH = 1 << 30  # bytes of photographs decoded in full: fewer are decoded at each start
WORKING = 2 << 30  # bytes that decoders may take together
PER_PIXEL = 16  # bytes that decoding takes of a photograph's pixel
VERSION = 2  # of decoding and shrinking: another one, other pixels
PAGE = 4096
ABANDONED = 3600  # seconds


class Planes(NamedTuple):
    """A photograph's pixels."""

    colors: Tensor  # (H, W, 3) uint8
    alphas: Tensor | None  # (H, W) uint8
    mask: Tensor | None  # (H, W) bool


@dataclass(frozen=True)
class Layout:
    """What is known of a photograph before it is decoded."""

    width: int  # right-sized
    height: int
    alphas: bool
    mask: bool
    full: int  # pixels that its file holds
    files: tuple[Path, ...]  # that the planes are made of
    how: str  # and what else


def read_all(
    layouts: Sequence[Layout], decode: Callable[[int], Planes], root: Path, downscale: int
) -> tuple[list[Planes], Path | None]:
    """The planes of all photographs, by ``decode`` unless they are kept; and the file, if it was written now."""
    largest = max(layout.full for layout in layouts)
    threads = max(1, WORKING // (PER_PIXEL * largest))
    fill = lambda block: in_threads(lambda i: _fill(block[i], decode(i)), range(len(layouts)), threads)  # noqa: E731
    many = sum(layout.full for layout in layouts) * 3 >= WORTH
    header = _header(layouts, root) if many else None
    if header is not None:
        name = f"{'photographs' if root.is_dir() else root.stem}_{downscale}.pixels"
        places = [folder / name for folder in kept_folders(root)]
        for path in places:
            if (kept := _open(path, header, layouts)) is not None:
                return kept, None
        for path in places:
            if (written := _write(path, header, layouts, fill)) is not None:
                return written, path
    block = _cut(torch.empty(_size(layouts), dtype=torch.uint8), layouts)
    fill(block)
    return block, None


def _header(layouts: Sequence[Layout], root: Path) -> bytes | None:
    """Of what the pixels are made, in whole pages; None where a file cannot be found."""
    base = root if root.is_dir() else root.parent
    rows = []
    for layout in layouts:
        try:
            stats = [(os.path.relpath(path, base), path.stat()) for path in layout.files]
        except OSError:
            return None
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        rows.append([files, layout.width, layout.height, layout.alphas, layout.mask, layout.how])
    text = json.dumps({"polyfield": VERSION, "photographs": rows}).encode()
    return text + b" " * (-len(text) % PAGE)


def _size(layouts: Sequence[Layout]) -> int:
    return sum(p.width * p.height * (3 + p.alphas + p.mask) for p in layouts)


def _cut(block: Tensor, layouts: Sequence[Layout]) -> list[Planes]:
    """Every photograph's planes in the block."""
    pixels = [p.width * p.height for p in layouts]
    parts = [3 * n for n in pixels]
    parts += [n * p.alphas for n, p in zip(pixels, layouts, strict=True)]
    parts += [n * p.mask for n, p in zip(pixels, layouts, strict=True)]
    cut = block.split(parts)
    found = []
    for i, p in enumerate(layouts):
        alphas, mask = (cut[i + j * len(layouts)].view(-1, p.width) for j in (1, 2))
        colors = cut[i].view(p.height, p.width, 3)
        found.append(Planes(colors, alphas if p.alphas else None, mask.view(torch.bool) if p.mask else None))
    return found


def _fill(place: Planes, planes: Planes) -> None:
    for target, values in zip(place, planes, strict=True):
        if target is not None and values is not None:
            target.copy_(values)


def _open(path: Path, header: bytes, layouts: Sequence[Layout]) -> list[Planes] | None:
    """What is kept there, if it was made of just this. Changes in memory do not reach the file."""
    try:
        with open(path, "rb") as file:
            if file.read(len(header)) != header or os.fstat(file.fileno()).st_size != len(header) + _size(layouts):
                return None
        return _cut(torch.from_numpy(np.memmap(path, np.uint8, "c", len(header))), layouts)
    except (OSError, ValueError):
        return None


def _write(
    path: Path, header: bytes, layouts: Sequence[Layout], fill: Callable[[list[Planes]], object]
) -> list[Planes] | None:
    """Decode into a file; None if there cannot be one."""

    def write(part: Path) -> None:
        with open(part, "wb") as file:
            file.write(header)
            _allocate(file, _size(layouts))
        mapped = np.memmap(part, np.uint8, "r+", len(header))
        fill(_cut(torch.from_numpy(mapped), layouts))
        mapped.flush()

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        write_whole_path(path, write)
    except OSError:
        return None
    return _open(path, header, layouts)


def _allocate(file: BinaryIO, size: int) -> None:
    """Take room on the disk now: a full one would end the process while it writes to memory. Raises OSError."""
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), file.tell(), size)
        return
    for begin in range(0, size, 1 << 20):
        file.write(bytes(min(1 << 20, size - begin)))


def _clear(path: Path) -> None:
    """Remove what others began long ago and never finished."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
