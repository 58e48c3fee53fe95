"""``.splat``: 32 bytes for each Gaussian, no header (antimatter15's web viewer, https://github.com/antimatter15/splat).

float32 position[3], float32 scale[3] (linear), uint8 rgba[4], uint8 quaternion[4] as w x y z, steps of 1/128 about 128.
The colour is 1/2 + C0 f_dc cut to [0, 1]: all bands but the first are lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from ..gaussians import SH_C0, Gaussians
from ._checks import bad, check_memory
from ._codes import log_scales, logit_of_bytes, opacity_bytes, to_arrays, to_bytes, to_gaussians

SUFFIXES = (".splat",)
DEGREE = 0
UP = None
REORDERED = False
LOSS = "colours and opacities in 8 bits, colours cut to [0, 1], rotations in 8 bits a component, degree 0 only"

_RECORD = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def read(path: Path, max_memory: int) -> Gaussians:
    """See ``splat_io.load_gaussians``."""
    size = path.stat().st_size
    if size % _RECORD.itemsize:
        raise bad(path, "records of 32 bytes", f"{size} bytes", "the file is cut short: copy it again")
    check_memory(path, size // _RECORD.itemsize, 0, max_memory)
    records = np.fromfile(path, _RECORD)
    dc = (records["rgba"][:, :3] / 255 - 0.5) / SH_C0
    return to_gaussians(
        records["means"],
        (records["quats"].astype(np.float32) - 128) / 128,
        log_scales(records["scales"]),
        logit_of_bytes(records["rgba"][:, 3]),
        dc[:, None],
    )


def write(file: IO[bytes], gaussians: Gaussians) -> None:
    """See ``splat_io.save_gaussians``."""
    g = to_arrays(gaussians)
    records = np.empty(len(gaussians), _RECORD)
    records["means"], records["scales"] = g.means, np.exp(g.log_scales)
    records["rgba"][:, :3] = to_bytes((0.5 + SH_C0 * g.sh[:, 0]) * 255)
    records["rgba"][:, 3] = opacity_bytes(g.opacities)
    # Readers normalize, so what is of unit length but for rounding stays: a file's own bytes come back.
    raw = gaussians.quats.detach().cpu().double().numpy()
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    records["quats"] = to_bytes(np.where(np.abs(lengths - 1) < 1 / 64, raw, g.quats) * 128 + 128)
    file.write(records.tobytes())
