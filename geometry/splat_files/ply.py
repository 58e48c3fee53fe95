"""``.ply`` in the layout of Kerbl et al. 2023 (INRIA), which every viewer reads, and its variants.

One float32 row for each Gaussian: x y z [nx ny nz] f_dc_0..2 f_rest_0.. opacity scale_0..2 rot_0..3. Scales are logs,
the opacity a logit, the quaternion w x y z. f_rest lists all coefficients of red, then green, then blue. Columns may be
of any type and order, further ones are left out, text and either byte order are read. Files of points coloured by
red green blue instead of f_dc (nerfstudio) have degree 0. A file with packed_position is SuperSplat's: compressed_ply.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from ..gaussians import SH_C0, Gaussians
from . import compressed_ply
from ._checks import bad, check_memory
from ._codes import Array, to_gaussians
from ._ply_elements import columns, element_counts, read_elements

SUFFIXES = (".ply",)
DEGREE = 4
UP = None
REORDERED = False
LOSS = "nothing: float32"

_REST = {0: 0, 9: 1, 24: 2, 45: 3, 72: 4}  # columns f_rest_* -> degree


def read(path: Path, max_memory: int) -> Gaussians:
    """See ``splat_io.load_gaussians``."""
    counts = element_counts(path)
    if "vertex" not in counts:
        raise bad(path, "an element 'vertex'", ", ".join(counts) or "none", "it holds no Gaussians")
    check_memory(path, counts["vertex"], 0, max_memory)
    elements = read_elements(path)
    if compressed_ply.matches(elements):
        return compressed_ply.decode(path, elements, max_memory)
    rows = elements["vertex"]
    names = set(rows.dtype.names or ())
    rest = [n for n in names if n.startswith("f_rest_")]
    if len(rest) not in _REST:
        raise bad(path, "0, 9, 24, 45 or 72 columns f_rest_*", len(rest), "export the file again")
    degree = _REST[len(rest)]
    check_memory(path, len(rows), degree, max_memory)
    higher = columns(path, rows, [f"f_rest_{i}" for i in range(len(rest))])
    sh = np.empty((len(rows), (degree + 1) ** 2, 3), np.float32)
    sh[:, 0] = _base_colors(path, rows, names)
    sh[:, 1:] = higher.reshape(len(rows), 3, -1).transpose(0, 2, 1)
    return to_gaussians(
        columns(path, rows, ["x", "y", "z"]),
        columns(path, rows, [f"rot_{i}" for i in range(4)]),
        columns(path, rows, [f"scale_{i}" for i in range(3)]),
        columns(path, rows, ["opacity"])[:, 0],
        sh,
    )


def write(file: IO[bytes], gaussians: Gaussians) -> None:
    """See ``splat_io.save_gaussians``."""
    import plyfile

    g = gaussians.detach().to("cpu")._map(lambda t: t.float())
    count, bases = len(g), g.sh.shape[1]
    named = {
        **{name: g.means[:, i] for i, name in enumerate("xyz")},
        **{name: g.means.new_zeros(count) for name in ("nx", "ny", "nz")},
        **{f"f_dc_{i}": g.sh[:, 0, i] for i in range(3)},
        **{f"f_rest_{c * (bases - 1) + k}": g.sh[:, 1 + k, c] for c in range(3) for k in range(bases - 1)},
        "opacity": g.logit_opacities,
        **{f"scale_{i}": g.log_scales[:, i] for i in range(3)},
        **{f"rot_{i}": g.quats[:, i] for i in range(4)},
    }
    rows = np.empty(count, [(name, "<f4") for name in named])
    for name, values in named.items():
        rows[name] = values.numpy()
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")], byte_order="<").write(file)


def _base_colors(path: Path, rows: Array, names: set[str]) -> Array:
    """f_dc, or what stands for it in red green blue of 8 bits."""
    rgb = ["red", "green", "blue"]
    if "f_dc_0" not in names and names.issuperset(rgb) and all(rows.dtype[n] == np.uint8 for n in rgb):
        return (columns(path, rows, rgb) / 255 - 0.5) / SH_C0
    return columns(path, rows, [f"f_dc_{i}" for i in range(3)])
