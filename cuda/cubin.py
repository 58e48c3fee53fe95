"""Reads named constants out of CUDA machine code, which is an ELF file: kernels say there what their parameters are."""

from __future__ import annotations

import struct

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOLS, _OBJECT = 2, 1  # kinds of section and of symbol


def objects(code: bytes, suffix: str) -> dict[str, bytes]:
    """The bytes of all variables whose names end in ``suffix``, by name without it."""
    header = _HEADER.unpack_from(code)
    if header[0][:5] != b"\x7fELF\x02":
        raise ValueError(f"cubin: expected 64-bit ELF, got {header[0][:5]!r}")
    start, size, count = header[6], header[11], header[12]
    sections = [_SECTION.unpack_from(code, start + i * size) for i in range(count)]
    found = {}
    for kind, (begin, length), link in ((s[1], s[4:6], s[6]) for s in sections):
        if kind != _SYMBOLS:
            continue
        names = sections[link][4]
        for at in range(begin, begin + length, _SYMBOL.size):
            name_at, info, _, section, value, bytes_ = _SYMBOL.unpack_from(code, at)
            name = code[names + name_at : code.index(b"\0", names + name_at)].decode()
            if info & 15 == _OBJECT and name.endswith(suffix):
                # value is the place within the section, as in any object file that is not linked
                place = sections[section][4] + value
                found[name.removesuffix(suffix)] = code[place : place + bytes_]
    return found
