"""``.spz``: Niantic's compressed Gaussians, versions 2 to 4 (https://github.com/nianticlabs/spz).

A header of 16 bytes, then one array per attribute: positions in 24-bit fixed point, opacities, colours (0.15 f_dc +
1/2) and log scales (16 (s + 10)) in 8 bits, rotations, higher bands in 8 bits over [-1, 1). Versions 2 and 3 put all
that into one gzip stream; version 4 leaves the header as it is ("NGSP", 32 bytes), followed by a table of sizes and a
zstd stream per attribute. Rotations: x y z in 8 bits each (version 2), smallest three with sign and 9 bits (3 and 4).
The axes are right, up, back: splat_io turns them.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import IO

import numpy as np

from ..gaussians import Gaussians
from ._checks import SplatError, bad, check_length, check_memory, inflate, unzstd
from ._codes import (
    SQRT_HALF,
    Array,
    from_smallest_three,
    logit_of_bytes,
    opacity_bytes,
    smallest_three,
    to_arrays,
    to_bytes,
    to_gaussians,
)

SUFFIXES = (".spz",)
DEGREE = 4
UP = "y"
REORDERED = False
LOSS = "positions in 24 bits, the rest in 8 bits: log scales in [-10, 5.94], higher bands in [-1, 1)"
VERSIONS = (2, 3, 4)

_MAGIC = 0x5053474E  # "NGSP"
_HEADER = struct.Struct("<IIIBBBB")  # magic, version, count, degree, fractional bits, flags, streams (version 4)
_V4_HEADER_SIZE = 32
_HAS_EXTENSIONS = 2
_COLOR_SCALE = 0.15 * 255


def read(path: Path, max_memory: int) -> Gaussians:
    """See ``splat_io.load_gaussians``."""
    data = path.read_bytes()
    packed = data[:2] == b"\x1f\x8b"
    head = inflate(path, data, _HEADER.size) if packed else data[: _HEADER.size]
    check_length(path, "header", _HEADER.size, len(head))
    magic, version, count, degree, bits, flags, streams = _HEADER.unpack(head)
    if magic != _MAGIC:
        raise bad(path, "an .spz header (NGSP)", head[:4], "it is some other file")
    if version not in VERSIONS or packed != (version < 4):
        got = f"version {version}{' inside gzip' if packed else ''}"
        raise bad(path, "version 2 or 3 inside gzip, or version 4", got, "export it again")
    if degree > DEGREE or bits > 24:
        raise bad(
            path,
            "degree 0 to 4 and 0 to 24 fractional bits",
            f"{degree} and {bits}",
            "the file is damaged: copy it again",
        )
    check_memory(path, count, degree, max_memory)
    sizes = [n * count for n in _widths(version, degree)]
    if version == 4:
        parts = _streams(path, data, [n for n in sizes if n], streams)
    else:
        body = inflate(path, data, _HEADER.size + sum(sizes) + 1)[_HEADER.size :]
        body = body[: sum(sizes)] if flags & _HAS_EXTENSIONS else body
        check_length(path, "decompressed data", sum(sizes), len(body))
        parts = [body[sum(sizes[:i]) :][:n] for i, n in enumerate(sizes)]
    return _decode([np.frombuffer(p, np.uint8).reshape(count, -1) for p in parts], version, bits)


def write(file: IO[bytes], gaussians: Gaussians, *, version: int = 4) -> None:
    """See ``splat_io.save_gaussians``; ``version`` is 2, 3 or 4."""
    if version not in VERSIONS:
        raise SplatError(f"save_gaussians: version: expected 2, 3 or 4, got {version}")
    g = to_arrays(gaussians)
    bits = _fractional_bits(g.means)
    fixed = np.rint(g.means * 2.0**bits).astype("<i4")
    parts = [
        fixed[..., None].view(np.uint8).reshape(-1, 3, 4)[..., :3],
        opacity_bytes(g.opacities),
        to_bytes(g.sh[:, 0] * _COLOR_SCALE + 127.5),
        to_bytes((g.log_scales + 10) * 16),
        _pack_first_three(g.quats) if version == 2 else _pack_smallest_three(g.quats),
        to_bytes(g.sh[:, 1:] * 128 + 128),
    ]
    arrays = [p.tobytes() for p in parts if p.size]
    head = _HEADER.pack(_MAGIC, version, len(gaussians), gaussians.degree, bits, 0, len(arrays) if version == 4 else 0)
    if version < 4:
        file.write(gzip.compress(head + b"".join(arrays), mtime=0))
        return
    import zstandard

    streams = [zstandard.ZstdCompressor(level=12).compress(a) for a in arrays]
    file.write(head + struct.pack("<I12x", _V4_HEADER_SIZE))
    for array, stream in zip(arrays, streams, strict=True):
        file.write(struct.pack("<QQ", len(stream), len(array)))
    file.write(b"".join(streams))


def _widths(version: int, degree: int) -> list[int]:
    """Bytes per Gaussian of each attribute, in the order of the file."""
    return [9, 1, 3, 3, 3 if version == 2 else 4, 3 * ((degree + 1) ** 2 - 1)]


def _streams(path: Path, data: bytes, sizes: list[int], streams: int) -> list[bytes]:
    """The decompressed streams of version 4, whose sizes are known beforehand."""
    if len(data) < _V4_HEADER_SIZE:
        check_length(path, "header", _V4_HEADER_SIZE, len(data))
    (table,) = struct.unpack_from("<I", data, _HEADER.size)
    at = table + 16 * streams
    if streams != len(sizes) or table < _V4_HEADER_SIZE or at > len(data):
        got = f"{streams} at byte {table} of {len(data)}"
        raise bad(path, f"a table of {len(sizes)} streams", got, "the file is cut short or damaged: copy it again")
    parts = []
    for i, size in enumerate(sizes):
        stored, claimed = struct.unpack_from("<QQ", data, table + 16 * i)
        check_length(path, f"stream {i}, once decompressed", size, claimed)
        check_length(path, f"stream {i}", stored, min(stored, len(data) - at))
        parts.append(unzstd(path, data[at : at + stored], size + 1))
        check_length(path, f"stream {i}, once decompressed", size, len(parts[-1]))
        at += stored
    return parts


def _decode(parts: list[Array], version: int, bits: int) -> Gaussians:
    positions, opacities, colors, scales, quats, *higher = parts
    count = len(positions)
    fixed = np.zeros((count, 3, 4), np.uint8)
    fixed[..., 1:] = positions.reshape(count, 3, 3)  # in the upper bytes, so that the sign is carried down
    means = (fixed.view("<i4")[..., 0] >> 8) / 2.0**bits
    rest = higher[0].reshape(count, -1, 3) if higher else np.zeros((count, 0, 3), np.uint8)
    sh = np.concatenate([((colors - 127.5) / _COLOR_SCALE)[:, None], (rest - 128.0) / 128], 1)
    turn = _unpack_first_three(quats) if version == 2 else _unpack_smallest_three(quats)
    return to_gaussians(means, turn, scales / 16 - 10, logit_of_bytes(opacities[:, 0]), sh)


def _fractional_bits(means: Array) -> int:
    """12 as other writers; more where the scene is small (16 bits across it), fewer where 24 bits would not hold it."""
    largest = float(np.abs(means).max())
    if largest >= 2.0**23 - 1:
        raise SplatError(
            f"save_gaussians: means: expected less than 2^23 for .spz, got {largest:.4g}; scale the scene down"
        )
    needed = 16 - int(np.floor(np.log2(max(largest, 2.0**-8))))
    holds = int(np.floor(np.log2((2.0**23 - 1) / max(largest, 2.0**-8))))
    return min(max(12, needed), holds, 24)


def _pack_first_three(quats: Array) -> Array:
    xyz = quats[:, 1:] * np.where(quats[:, :1] < 0, -1, 1)
    return to_bytes(xyz * 127.5 + 127.5)


def _unpack_first_three(packed: Array) -> Array:
    xyz = packed / 127.5 - 1
    return np.concatenate([np.sqrt(np.maximum(0, 1 - np.square(xyz).sum(1, keepdims=True))), xyz], 1)


def _pack_smallest_three(quats: Array) -> Array:
    """Bits from the top: index of the largest of x y z w, then sign and magnitude of the others, 1 + 9 bits each."""
    largest, three = smallest_three(np.roll(quats.astype(np.float64), -1, 1))
    words: Array = largest.astype(np.uint32)
    for i in range(3):
        magnitude = np.minimum(np.rint(np.abs(three[:, i]) * (511 / SQRT_HALF)), 511).astype(np.uint32)
        words = (words << 10) | ((three[:, i] < 0).astype(np.uint32) << 9) | magnitude
    return words.astype("<u4")


def _unpack_smallest_three(packed: Array) -> Array:
    words = np.ascontiguousarray(packed).view("<u4")[:, 0]
    fields = np.stack([(words >> 20), (words >> 10), words], 1) & 1023
    three = np.where(fields & 512, -1, 1) * (fields & 511) * (SQRT_HALF / 511)
    return np.roll(from_smallest_three(words >> 30, three), 1, 1)
