"""``.sog``: PlayCanvas' Spatially Ordered Gaussians, pictures in a zip or a folder with ``meta.json``.

https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog. One pixel for each Gaussian, row by row:
sign(x) log(1 + |x|) of positions in 16 bits between bounds (two pictures), rotations as smallest three in 8 bits with
the index of the largest of w x y z in alpha (252 + index), log scales and f_dc as indices into codebooks of 256,
opacities in 8 bits; higher bands (degree 3 at most) as a label of 16 bits into a palette of rows whose numbers are
indices again. Version 1 (read only) has bounds instead of codebooks, and logits instead of opacities.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..gaussians import Gaussians
from ..morton import morton_order
from ._checks import SplatError, bad, check_memory
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
from ._palettes import codebook, nearest_codes, palette
from ._sog_parts import META, Parts, encode_picture, open_parts

SUFFIXES = (".sog", META)
DEGREE = 3
UP = None
REORDERED = True
LOSS = (
    "log positions in 16 bits, rotations in 8, the rest through codebooks of 256; 65,536 different sets of higher bands"
)

_PALETTE = 1 << 16
_PER_ROW = 64  # entries of the palette side by side


def read(path: Path, max_memory: int) -> Gaussians:
    """See ``splat_io.load_gaussians``; ``path`` is the zip, or the ``meta.json`` beside its pictures."""
    with open_parts(path) as parts:
        meta = parts.meta()
        try:
            version = meta.get("version", 1)
            if version not in (1, 2):
                raise bad(path, "version 1 or 2", f"version {version}", "export it again")
            count = int(meta["count"] if version == 2 else meta["means"]["shape"][0])
            bands = meta.get("shN", {}).get("bands", DEGREE if "shN" in meta else 0)
            if bands not in range(DEGREE + 1):
                raise bad(path, "bands 0 to 3", f"bands {bands}", "export it again")
            check_memory(path, count, bands, max_memory)
            return _decode(parts, meta, count, version)
        except SplatError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            remedy = "the file is damaged: export it again"
            raise bad(path, f"the entries of a version 1 or 2 {META}", repr(error), remedy) from error


def write(file: IO[bytes], gaussians: Gaussians) -> None:
    """See ``splat_io.save_gaussians``: version 2, zipped, pictures in lossless WebP."""
    g = to_arrays(gaussians[morton_order(gaussians.means)])
    logs = np.sign(g.means) * np.log1p(np.abs(g.means))
    low, high = logs.min(0), logs.max(0)
    fixed = np.rint((logs - low) / np.where(high > low, high - low, 1) * 65535).astype(np.uint16)
    largest, three = smallest_three(g.quats)
    scales, colors = codebook(g.log_scales.reshape(-1)), codebook(g.sh[:, 0].reshape(-1))
    pictures = {
        "means_l.webp": encode_picture(fixed & 255),
        "means_u.webp": encode_picture(fixed >> 8),
        "scales.webp": encode_picture(nearest_codes(g.log_scales, scales)),
        "quats.webp": encode_picture(to_bytes((three / SQRT_HALF + 1) * 127.5), 252 + largest),
        "sh0.webp": encode_picture(nearest_codes(g.sh[:, 0], colors), opacity_bytes(g.opacities)),
    }
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": "polyfield"},
        "count": len(gaussians),
        "antialias": False,
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": scales.tolist(), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": colors.tolist(), "files": ["sh0.webp"]},
    }
    if gaussians.degree:
        rows, labels = palette(g.sh[:, 1:].reshape(len(gaussians), -1), _PALETTE)
        codes = codebook(rows.reshape(-1))
        names = ["shN_centroids.webp", "shN_labels.webp"]
        meta["shN"] = {"count": len(rows), "bands": gaussians.degree, "codebook": codes.tolist(), "files": names}
        cells = nearest_codes(rows, codes).reshape(-1, 3)
        pictures[names[0]] = encode_picture(cells, width=_PER_ROW * (gaussians.sh.shape[1] - 1))
        pictures[names[1]] = encode_picture(np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], 1))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # WebP is compressed already
        for name, content in {META: json.dumps(meta).encode(), **pictures}.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def _decode(parts: Parts, meta: Mapping[str, Any], count: int, version: int) -> Gaussians:
    low_bytes, high_bytes = (parts.pixels(name, count)[:, :3].astype(np.uint16) for name in meta["means"]["files"])
    logs = _between(meta["means"], (low_bytes | high_bytes << 8) / 65535)
    quats = parts.pixels(meta["quats"]["files"][0], count)
    turn = from_smallest_three(quats[:, 3] & 3, (quats[:, :3] / 127.5 - 1) * SQRT_HALF)
    scales = parts.pixels(meta["scales"]["files"][0], count)[:, :3]
    colors = parts.pixels(meta["sh0"]["files"][0], count)
    if version == 1:
        log_scales, base = _between(meta["scales"], scales / 255), _between(meta["sh0"], colors / 255)
        dc, logits = base[:, :3], base[:, 3]
    else:
        log_scales = _codes(meta["scales"])[scales]
        dc, logits = _codes(meta["sh0"])[colors[:, :3]], logit_of_bytes(colors[:, 3])
    rest = _higher(parts, meta["shN"], count) if "shN" in meta else np.empty((count, 0, 3))
    return to_gaussians(
        np.sign(logs) * np.expm1(np.abs(logs)),
        np.where(quats[:, 3:] < 252, 0, turn),  # no index: found and named later
        log_scales,
        logits,
        np.concatenate([dc[:, None], rest], 1),
    )


def _higher(parts: Parts, meta: Mapping[str, Any], count: int) -> Array:
    """(G, B - 1, 3)"""
    cells = parts.picture(meta["files"][0])
    bases = cells.shape[1] // _PER_ROW
    if cells.shape[1] % _PER_ROW or bases not in (3, 8, 15):
        raise bad(parts.path, f"{meta['files'][0]} of 192, 512 or 960 pixels a row", cells.shape[1], "export it again")
    rows = cells[..., :3].reshape(-1, bases, 3)
    pixels = parts.pixels(meta["files"][1], count).astype(np.int64)
    labels = pixels[:, 0] | pixels[:, 1] << 8
    if labels.max() >= len(rows):
        raise bad(parts.path, f"labels below {len(rows)}", labels.max(), "the file is damaged: export it again")
    table = _codes(meta)[rows] if "codebook" in meta else meta["mins"] + (meta["maxs"] - meta["mins"]) * (rows / 255)
    return table.astype(np.float32)[labels]


def _between(meta: Mapping[str, Any], unit: Array) -> Array:
    low, high = np.array(meta["mins"], np.float64), np.array(meta["maxs"], np.float64)
    return low + (high - low) * unit


def _codes(meta: Mapping[str, Any]) -> Array:
    """The codebook, 256 entries. Some writers left the first one out (null): the step before the second."""
    codes = np.array(meta["codebook"], np.float64)
    if codes.shape != (256,):
        raise ValueError(f"a codebook of shape {codes.shape} instead of 256 numbers")
    if np.isnan(codes[0]):
        codes[0] = codes[1] + (codes[1] - codes[255]) / 255
    return codes
