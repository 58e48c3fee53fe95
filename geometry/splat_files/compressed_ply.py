"""``.compressed.ply``: SuperSplat's packed PLY (https://developer.playcanvas.com, "The Compressed PLY Format").

Gaussians in Morton order, in chunks of 256 with the bounds of their positions, log scales and colours. Each Gaussian is
four words: position and log scale in 11, 10 and 11 bits within the chunk's bounds; the rotation as the index of the
largest of w x y z and the others in 10 bits; colour and opacity in 8 bits. Higher bands (degree 3 at most) are bytes in
an element ``sh``, over [-4, 4], in f_rest's order. Log scales are cut to [-20, 20].
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from ..gaussians import Gaussians
from ._checks import bad, check_memory
from ._codes import (
    SH_C0,
    Array,
    from_smallest_three,
    logit_of_bytes,
    morton_order,
    opacity_bytes,
    smallest_three,
    to_arrays,
    to_gaussians,
)

SUFFIXES = (".compressed.ply",)
DEGREE = 3
UP = None
REORDERED = True
LOSS = (
    "11 10 11 bits for positions and log scales within 256 neighbours, 10 for rotations, 8 for the rest, sh in [-4, 4]"
)

_CHUNK = 256
_WORDS = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_BOUNDED = (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
_SQRT_2 = 2.0**0.5
_REST = {0: 0, 9: 1, 24: 2, 45: 3}


def read(path: Path, max_memory: int) -> Gaussians:
    """See ``splat_io.load_gaussians``; plain and compressed files are told apart by their headers."""
    from . import ply

    return ply.read(path, max_memory)


def matches(elements: dict[str, Array]) -> bool:
    """Whether these are the elements of a compressed file."""
    return "packed_position" in (elements["vertex"].dtype.names or ())


def decode(path: Path, elements: dict[str, Array], max_memory: int) -> Gaussians:
    """Gaussians of the elements ``chunk``, ``vertex`` and ``sh``."""
    rows, chunks, higher = elements["vertex"], elements.get("chunk"), elements.get("sh")
    names = (chunks.dtype.names or ()) if chunks is not None else ()
    wanted = [f"{end}_{name}" for end in ("min", "max") for group in _BOUNDED[:2] for name in group]
    if chunks is None or not set(wanted) <= set(names) or any(w not in (rows.dtype.names or ()) for w in _WORDS):
        raise bad(
            path, f"words {', '.join(_WORDS)} and chunks of bounds", ", ".join(names) or "no chunks", "export again"
        )
    if len(chunks) != -(-len(rows) // _CHUNK):
        raise bad(path, f"a chunk for each 256 of {len(rows)} Gaussians", len(chunks), "export the file again")
    width = len(higher.dtype.names or ()) if higher is not None else 0
    if width not in _REST or (higher is not None and len(higher) != len(rows)):
        raise bad(
            path, f"0, 9, 24 or 45 columns of sh in {len(rows)} rows", f"{width} columns", "export the file again"
        )
    check_memory(path, len(rows), _REST[width], max_memory)
    chunk = np.arange(len(rows)) // _CHUNK
    words = [rows[w].astype(np.uint32) for w in _WORDS]
    rgba = np.stack([words[3] >> s & 255 for s in (24, 16, 8, 0)], 1)
    colors = rgba[:, :3] / 255
    if "min_r" in names:
        colors = _within(chunks, _BOUNDED[2], chunk, colors)
    sh = np.empty((len(rows), width // 3 + 1, 3), np.float32)
    sh[:, 0] = (colors - 0.5) / SH_C0
    if higher is not None:
        rest = np.stack([higher[f"f_rest_{i}"] for i in range(width)], 1)
        sh[:, 1:] = _from_sh_bytes(rest).reshape(len(rows), 3, -1).transpose(0, 2, 1)
    three = np.stack([words[1] >> s & 1023 for s in (20, 10, 0)], 1)
    return to_gaussians(
        _within(chunks, _BOUNDED[0], chunk, _unpack_11_10_11(words[0])),
        from_smallest_three(words[1] >> 30, (three / 1023 - 0.5) * _SQRT_2),
        _within(chunks, _BOUNDED[1], chunk, _unpack_11_10_11(words[2])),
        logit_of_bytes(rgba[:, 3]),
        sh,
    )


def write(file: IO[bytes], gaussians: Gaussians) -> None:
    """See ``splat_io.save_gaussians``."""
    import plyfile

    g = to_arrays(gaussians[morton_order(gaussians.means)])
    count, starts = len(gaussians), np.arange(0, len(gaussians), _CHUNK)
    colors = g.sh[:, 0] * SH_C0 + 0.5
    groups = (g.means, np.clip(g.log_scales, -20, 20), colors)
    names = [f"{end}_{n}" for group in _BOUNDED for end in ("min", "max") for n in group]
    chunks = np.empty(len(starts), [(n, "<f4") for n in names])
    units = []
    for values, group in zip(groups, _BOUNDED, strict=True):
        for end, reduce in (("min", np.minimum), ("max", np.maximum)):
            for axis, name in enumerate(group):
                chunks[f"{end}_{name}"] = reduce.reduceat(values[:, axis], starts)
        units.append(_unit(chunks, group, np.arange(count) // _CHUNK, values))
    rows = np.empty(count, [(w, "<u4") for w in _WORDS])
    rows["packed_position"], rows["packed_scale"] = _pack_11_10_11(units[0]), _pack_11_10_11(units[1])
    largest, three = smallest_three(g.quats)
    fields = np.clip(np.rint((three / _SQRT_2 + 0.5) * 1023), 0, 1023).astype(np.uint32)
    rows["packed_rotation"] = largest.astype(np.uint32) << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]
    rgb, alpha = np.rint(units[2] * 255).astype(np.uint32), opacity_bytes(g.opacities).astype(np.uint32)
    rows["packed_color"] = rgb[:, 0] << 24 | rgb[:, 1] << 16 | rgb[:, 2] << 8 | alpha
    elements = [plyfile.PlyElement.describe(chunks, "chunk"), plyfile.PlyElement.describe(rows, "vertex")]
    if gaussians.degree:
        rest = _to_sh_bytes(g.sh[:, 1:].transpose(0, 2, 1).reshape(count, -1))
        stored = np.empty(count, [(f"f_rest_{i}", "u1") for i in range(rest.shape[1])])
        for i in range(rest.shape[1]):
            stored[f"f_rest_{i}"] = rest[:, i]
        elements.append(plyfile.PlyElement.describe(stored, "sh"))
    plyfile.PlyData(elements, byte_order="<").write(file)


def _bounds(chunks: Array, group: tuple[str, ...], chunk: Array) -> tuple[Array, Array]:
    """(G, 3) each: the bounds of the chunk that a Gaussian lies in."""
    low, high = (np.stack([chunks[f"{end}_{n}"].astype(np.float64) for n in group], 1) for end in ("min", "max"))
    return low[chunk], high[chunk]


def _within(chunks: Array, group: tuple[str, ...], chunk: Array, unit: Array) -> Array:
    low, high = _bounds(chunks, group, chunk)
    return low * (1 - unit) + high * unit


def _unit(chunks: Array, group: tuple[str, ...], chunk: Array, values: Array) -> Array:
    low, high = _bounds(chunks, group, chunk)
    return np.clip((values - low) / np.where(high > low, high - low, 1), 0, 1)


def _pack_11_10_11(unit: Array) -> Array:
    x, y, z = (np.rint(unit[:, i] * n).astype(np.uint32) for i, n in enumerate((2047, 1023, 2047)))
    return x << 21 | y << 11 | z


def _unpack_11_10_11(words: Array) -> Array:
    return np.stack([(words >> 21) / 2047, (words >> 11 & 1023) / 1023, (words & 2047) / 2047], 1)


def _to_sh_bytes(values: Array) -> Array:
    """Byte b stands for the middle of its 256th of [-4, 4]; the first and the last for the ends."""
    return np.clip(np.floor((values / 8 + 0.5) * 256), 0, 255).astype(np.uint8)


def _from_sh_bytes(values: Array) -> Array:
    unit = np.where(values == 0, 0, np.where(values == 255, 1, (values + 0.5) / 256))
    return (unit - 0.5) * 8
