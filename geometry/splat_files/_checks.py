"""The error of a splat file that cannot be read, and the bounds that are checked before memory is taken.

A header may claim anything. So sizes are compared with what the file can hold and with ``max_memory`` first; compressed
streams are decoded no further than the size that the header implies.
"""

from __future__ import annotations

import zlib
from pathlib import Path

GIB = 1 << 30
MAX_MEMORY = 4 * GIB  # bytes that the Gaussians of one file may take; 18 million of degree 3


class SplatError(ValueError):
    """A file of Gaussians that cannot be used as it is; the message names the file and the remedy."""


def bad(path: Path, expected: object, got: object, remedy: str) -> SplatError:
    """``load_gaussians: FILE: expected ..., got ...; remedy``."""
    return SplatError(f"load_gaussians: {path}: expected {expected}, got {got}; {remedy}")


def check_memory(path: Path, count: int, degree: int, max_memory: int) -> None:
    """Refuse a file that claims no Gaussians, or more than ``max_memory`` bytes of them."""
    if count < 1:
        raise bad(path, "at least one Gaussian", count, "there is nothing to load")
    needed = count * 4 * (11 + 3 * (degree + 1) ** 2)
    if needed > max_memory:
        raise bad(
            path,
            f"at most {max_memory / GIB:.3g} GiB of Gaussians",
            f"a header that claims {count} of degree {degree}, {needed / GIB:.3g} GiB",
            "allow more with max_memory if the file can be trusted",
        )


def check_length(path: Path, what: str, expected: int, got: int) -> None:
    """Compare the bytes that are there with those that a header promises."""
    if expected != got:
        short = got < expected
        raise bad(
            path,
            f"{expected} bytes of {what}",
            f"{got}",
            "the file is cut short or damaged: copy or export it again" if short else "export it again",
        )


def inflate(path: Path, data: bytes, size: int) -> bytes:
    """The gzip stream in ``data``, its first ``size`` bytes at most."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data, size)
    except zlib.error as error:
        raise bad(path, "whole gzip data", error, "the file is damaged: copy or export it again") from error


def unzstd(path: Path, data: bytes, size: int) -> bytes:
    """The zstd frame in ``data``, its first ``size`` bytes at most."""
    import zstandard

    parts, missing = [], size
    try:
        # A frame may ask for a window of gigabytes; 2^27 bytes is the most that zstd itself takes unasked.
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as stream:
            while missing and (part := stream.read(min(missing, 1 << 20))):
                parts.append(part)
                missing -= len(part)
    except zstandard.ZstdError as error:
        raise bad(path, "whole zstd data", error, "the file is damaged: copy or export it again") from error
    return b"".join(parts)
