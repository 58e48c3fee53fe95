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

from ..gaussians import SH_C0, Gaussians
from ..morton import morton_order
from ._checks import bad, check_memory
from ._codes import (
    Array,
    from_smallest_three,
    logit_of_bytes,
    opacity_bytes,
    smallest_three,
    to_arrays,
    to_gaussians,
)
from ._ply_elements import columns

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
    if chunks is None or len(chunks) != -(-len(rows) // _CHUNK):
        got = "none" if chunks is None else len(chunks)
        raise bad(path, f"a chunk for each 256 of {len(rows)} Gaussians", got, "export the file again")
    width = len(higher.dtype.names or ()) if higher is not None else 0
    if width not in _REST or (higher is not None and len(higher) != len(rows)):
        raise bad(
            path, f"0, 9, 24 or 45 columns of sh in {len(rows)} rows", f"{width} columns", "export the file again"
        )
    check_memory(path, len(rows), _REST[width], max_memory)
    position, rotation, scale, color = columns(path, rows, list(_WORDS), np.uint32).T
    chunk = np.arange(len(rows)) // _CHUNK
    bounds = [
        _bounds(path, chunks, group) for group in (_BOUNDED if "min_r" in (chunks.dtype.names or ()) else _BOUNDED[:2])
    ]
    rgba = np.stack([color >> s & 255 for s in (24, 16, 8, 0)], 1)
    colors = _within(bounds[2], chunk, rgba[:, :3] / 255) if len(bounds) == 3 else rgba[:, :3] / 255
    sh = np.empty((len(rows), width // 3 + 1, 3), np.float32)
    sh[:, 0] = (colors - 0.5) / SH_C0
    if higher is not None:
        rest = columns(path, higher, [f"f_rest_{i}" for i in range(width)])
        sh[:, 1:] = _from_sh_bytes(rest).reshape(len(rows), 3, -1).transpose(0, 2, 1)
    three = np.stack([rotation >> s & 1023 for s in (20, 10, 0)], 1)
    return to_gaussians(
        _within(bounds[0], chunk, _unpack_11_10_11(position)),
        from_smallest_three(rotation >> 30, (three / 1023 - 0.5) * _SQRT_2),
        _within(bounds[1], chunk, _unpack_11_10_11(scale)),
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
    names = [f"{end}_{name}" for group in _BOUNDED for end in ("min", "max") for name in group]
    bounds = [(np.minimum.reduceat(v, starts), np.maximum.reduceat(v, starts)) for v in groups]
    bounds = [(low.astype(np.float32), high.astype(np.float32)) for low, high in bounds]
    chunks = np.empty(len(starts), [(name, "<f4") for name in names])
    for name, values in zip(names, np.concatenate([b for pair in bounds for b in pair], 1).T, strict=True):
        chunks[name] = values
    chunk = np.arange(count) // _CHUNK
    units = [_unit(pair, chunk, values) for pair, values in zip(bounds, groups, strict=True)]
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


Bounds = tuple[Array, Array]  # (chunks, 3) each: low and high


def _bounds(path: Path, chunks: Array, group: tuple[str, ...]) -> Bounds:
    low, high = (columns(path, chunks, [f"{end}_{name}" for name in group], np.float64) for end in ("min", "max"))
    return low, high


def _within(bounds: Bounds, chunk: Array, unit: Array) -> Array:
    """From [0, 1] to the bounds of the chunk that each Gaussian lies in."""
    low, high = bounds
    return low[chunk] * (1 - unit) + high[chunk] * unit


def _unit(bounds: Bounds, chunk: Array, values: Array) -> Array:
    """Inverse of ``_within``."""
    low, high = bounds
    return np.clip((values - low[chunk]) / np.where(high > low, high - low, 1)[chunk], 0, 1)


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
