"""Find the poses of photographs or of a video's frames, for data that has none (structure from motion)."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..parse import parse


def main(arguments: list[str]) -> None:
    from ...datasets.sfm.reconstruct import SfmOptions
    from ..find_poses import find_poses

    asked = parse(
        make_dataclass(
            "Process",
            [
                ("data", tyro.conf.Positional[Path]),
                ("output", Path | None, field(default=None)),
                ("again", bool, field(default=False)),
                ("options", Annotated[SfmOptions, tyro.conf.arg(name="")], field(default_factory=SfmOptions)),
            ],
            namespace={"__doc__": USAGE},
        ),
        "process",
        arguments,
    )
    folder, _ = find_poses(asked.data, asked.options, asked.output, asked.again)
    opened = asked.data if asked.output is None else folder
    print(f"  polyfield inspect {opened} --output cameras.png\n  polyfield fit splat {opened}")


USAGE = """Find poses for DATA, a folder of photographs or a video, by COLMAP's library on the CPU.

Results are kept in DATA/polyfield (CLIP.polyfield for a video CLIP.mp4) and used again until photographs or options
change; `polyfield fit` on such a folder does this by itself.

Args:
    data: a folder of photographs, sub-folders included, or a video.
    output: folder for the results, where DATA cannot be written to.
    again: find poses anew, also where they are known.
"""
