"""The elements of a PLY file, read through ``plyfile`` once its header has been found to promise no more than there is.

The format: Greg Turk, "The PLY Polygon File Format", 1994. A binary row takes as many bytes as its types say, a number
in text at least two (a digit and what ends it): that bounds how many rows a file of a given size can hold.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ._checks import bad
from ._codes import Array

_SIZES = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8}
_SIZES |= {"int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4, "float64": 8}
_LONGEST_HEADER = 1 << 20
_AGAIN = "export it again"


def read_elements(path: Path) -> dict[str, Array]:
    """Name of each element -> its rows as a structured array. Raises SplatError for what is no whole PLY file."""
    import plyfile

    _check_header(path)
    try:
        with np.errstate(over="ignore"):  # text that float32 cannot hold
            return {element.name: element.data for element in plyfile.PlyData.read(str(path)).elements}
    except (plyfile.PlyParseError, ValueError, OverflowError, MemoryError) as error:
        raise bad(path, "a whole PLY file", error, "it is cut short or damaged: copy or export it again") from error


def element_counts(path: Path) -> dict[str, int]:
    """Name of each element -> the number of rows that the header promises."""
    return {name: count for name, count, _ in _parse(path, *_header(path))[1]}


def column_names(path: Path) -> dict[str, list[str]]:
    """Name of each element -> the names of its columns. Raises SplatError for what is no PLY file."""
    return {name: [p[-1] for p in properties if p] for name, _, properties in _parse(path, *_header(path))[1]}


def columns(path: Path, rows: Array, names: list[str], dtype: type = np.float32) -> Array:
    """(rows, names) numbers from the columns of these names."""
    missing = [n for n in names if n not in (rows.dtype.names or ())]
    if missing:
        remedy = "it may be a plain point cloud: fit Gaussians to the photographs instead"
        raise bad(path, f"columns {', '.join(names)}", f"none named {', '.join(missing)}", remedy)
    if any(rows.dtype[n].kind not in "fiu" for n in names):
        raise bad(path, f"numbers in columns {', '.join(names)}", "lists", _AGAIN)
    found: Array = np.empty((len(rows), len(names)), dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is infinite, and found later
        for i, name in enumerate(names):
            found[:, i] = rows[name]
    return found


def _header(path: Path) -> tuple[list[list[str]], int]:
    """Words of each line of the header, and the bytes that follow it."""
    with open(path, "rb") as file:
        start = file.read(_LONGEST_HEADER)
    end = start.find(b"end_header")
    if not start.startswith(b"ply") or end < 0:
        raise bad(path, "a PLY header, from 'ply' to 'end_header'", start[:16], "it is some other file, or cut short")
    after = start.find(b"\n", end) + 1 or len(start)
    lines = [line.split() for line in start[:end].decode("ascii", "replace").splitlines()]
    return lines, path.stat().st_size - after


def _parse(path: Path, lines: list[list[str]], _: int) -> tuple[str, list[tuple[str, int, list[list[str]]]]]:
    kind = ""
    elements: list[tuple[str, int, list[list[str]]]] = []
    try:
        for words in lines:
            if words[:1] == ["format"]:
                kind = words[1]
            elif words[:1] == ["element"]:
                elements.append((words[1], int(words[2]), []))
            elif words[:1] == ["property"]:
                elements[-1][2].append(words[1:])
    except (IndexError, ValueError) as error:
        raise bad(path, "a PLY header of elements and properties", error, _AGAIN) from error
    return kind, elements


def _check_header(path: Path) -> None:
    lines, size = _header(path)
    kind, elements = _parse(path, lines, size)
    needed = 0
    for name, count, properties in elements:
        if count < 0:
            raise bad(path, "counts of 0 or more", f"element {name} {count}", _AGAIN)
        try:
            row = [_SIZES[types[1] if types[0] == "list" else types[0]] for *types, _ in properties]
        except (KeyError, IndexError, ValueError) as error:
            raise bad(path, f"properties of the types {', '.join(_SIZES)}", error, _AGAIN) from error
        needed += count * (2 * len(row) if kind == "ascii" else sum(row))
    if needed > size + 1:  # the last number in text may end with the file
        promised = ", ".join(f"{name} {count}" for name, count, _ in elements)
        raise bad(
            path,
            f"at least {needed} bytes after the header, as it promises ({promised})",
            size,
            "the file is cut short: copy or export it again",
        )
