"""The containers of glTF 2.0 (https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html): JSON, buffers, accessors.

Every accessor is checked against the bytes that are there before an array is made of it.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from ._checks import bad, check_length
from ._codes import Array

_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_DAMAGED = "the file is cut short or damaged: copy or export it again"


def open_gltf(path: Path) -> tuple[dict[str, Any], Buffers]:
    """The JSON of a .glb or .gltf file, and what reads its numbers."""
    data = path.read_bytes()
    binary = None
    if data[:4] == b"glTF":
        data, binary = _chunks(path, data)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise bad(path, "the JSON of a glTF file", error, _DAMAGED) from error
    if not isinstance(tree, dict):
        raise bad(path, "an object in the JSON", type(tree).__name__, "it is some other file")
    return tree, Buffers(path, tree, {} if binary is None else {0: binary})


def _chunks(path: Path, data: bytes) -> tuple[bytes, bytes | None]:
    """The JSON and the binary chunk of a .glb file."""
    if len(data) < 12:
        check_length(path, "header", 12, len(data))
    _, version, length = struct.unpack_from("<4sII", data)
    if version != 2:
        raise bad(path, "glTF version 2", version, "export it again")
    check_length(path, "glTF", length, min(length, len(data)))
    found: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, at)
        check_length(path, f"the chunk {kind!r}", size, min(size, length - at - 8))
        found.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size
    if b"JSON" not in found:
        raise bad(path, "a JSON chunk", sorted(found), _DAMAGED)
    return found[b"JSON"], found.get(b"BIN\0")


@dataclass
class Buffers:
    """Numbers of a glTF file by the index of their accessor. Raises KeyError and the like for entries that lack."""

    path: Path
    tree: dict[str, Any]
    loaded: dict[int, bytes] = field(default_factory=dict)

    def count(self, accessor: int) -> int:
        """How many elements an accessor claims to have."""
        return int(self.tree["accessors"][accessor]["count"])

    def read(self, accessor: int, count: int, width: int) -> Array:
        """(count, width) float32; whole numbers are divided by their largest where the accessor says normalized."""
        entry = self.tree["accessors"][accessor]
        if entry["componentType"] not in _TYPES or _WIDTHS[entry["type"]] != width or entry["count"] != count:
            got = f"{entry['count']} {entry['type']} of type {entry['componentType']}"
            raise bad(self.path, f"{count} elements of {width} bytes, shorts or floats", got, "export it again")
        if "sparse" in entry or "bufferView" not in entry:
            raise bad(self.path, "accessors with all their data", "a sparse one", "export it without")
        view = self.tree["bufferViews"][entry["bufferView"]]
        dtype = np.dtype(_TYPES[entry["componentType"]])
        row = dtype.itemsize * width
        stride = view.get("byteStride", row)
        start = view.get("byteOffset", 0) + entry.get("byteOffset", 0)
        buffer = self._buffer(view["buffer"])
        end = start + stride * (count - 1) + row
        if min(start, view["byteLength"]) < 0 or stride < row or end > len(buffer):
            raise bad(self.path, f"{end} bytes of buffer {view['buffer']}", len(buffer), _DAMAGED)
        values = np.ndarray((count, width), dtype, buffer, start, (stride, dtype.itemsize)).astype(np.float32)
        if entry.get("normalized") and dtype.kind != "f":
            values = np.maximum(values / np.iinfo(dtype).max, -1)
        return values

    def _buffer(self, index: int) -> bytes:
        if index not in self.loaded:
            entry = self.tree["buffers"][index]
            uri = entry.get("uri", "")
            try:
                if uri.startswith("data:"):
                    content = base64.b64decode(uri.partition(",")[2], validate=True)
                else:
                    name = unquote(uri)
                    if not name or Path(name).name != name:
                        raise bad(self.path, "buffers in files beside this one", repr(uri), "export it as .glb")
                    content = self.path.with_name(name).read_bytes()
            except (OSError, binascii.Error) as error:
                raise bad(self.path, f"a buffer {uri[:40]}", error, _DAMAGED) from error
            check_length(self.path, f"buffer {index}", entry["byteLength"], min(entry["byteLength"], len(content)))
            self.loaded[index] = content
        return self.loaded[index]
