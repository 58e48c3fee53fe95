"""Convert a file of Gaussians to another format: .ply, .compressed.ply, .splat, .spz, .sog, .glb, .gltf."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..errors import UserError
from ..parse import Up, parse


def main(arguments: list[str]) -> None:
    parse(run, "convert", arguments)


def run(
    source: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    degree: int | None = None,
    up: Up = "-y",
    drop_invalid: bool = False,
    spz_version: Literal[2, 3, 4] = 4,
    max_memory: float = 4.0,
    overwrite: bool = False,
) -> None:
    """Read SOURCE, write OUTPUT in the format that its ending names, read it back and say what that cost.

    Args:
        source: a file of Gaussians, or a folder with the parts of a .sog.
        output: the file to write; it appears whole or not at all.
        degree: highest band of the colours to keep, 0 to 4; by default all that the format holds.
        up: which axis points up in files that do not say so; .spz and glTF have +y up and are turned.
        drop_invalid: leave out Gaussians with NaN, infinite numbers or no rotation, instead of refusing the file.
        spz_version: 2, 3 or 4, where OUTPUT is an .spz.
        max_memory: GiB that the Gaussians may take.
        overwrite: replace OUTPUT if it exists.
    """
    from ...geometry.gaussian_transforms import with_degree
    from ...geometry.splat_io import SplatError, format_of, load_gaussians, save_gaussians

    if degree is not None and degree not in range(5):
        raise UserError(f"convert: --degree: expected 0 to 4, got {degree}")
    if output.exists() and not overwrite:
        raise UserError(f"convert: OUTPUT: {output} exists; replace it with --overwrite, or choose another name")
    options: dict[str, Any] = {"max_memory": int(max_memory * 2**30), "up": up}
    try:
        form = format_of(output, "convert")
        read = load_gaussians(source, drop_invalid=drop_invalid, **options)
        print(f"read     {_described(read)}: {source}")
        kept = with_degree(read, min(read.degree if degree is None else degree, form.DEGREE))
        own = {"version": spz_version} if output.suffix.lower() == ".spz" else {}
        save_gaussians(output, kept, up=up, **own)
        written = load_gaussians(output, **options)
    except (SplatError, OSError) as error:
        raise UserError(str(error)) from error
    print(f"written  {_described(written)}, {output.stat().st_size / 1e6:.2f} MB: {output}")
    _tell_loss(read, kept, written, form)


def _described(gaussians: Any) -> str:
    low, high = (
        " ".join(f"{x:.4g}" for x in end.tolist()) for end in (gaussians.means.amin(0), gaussians.means.amax(0))
    )
    return f"{len(gaussians)} Gaussians of degree {gaussians.degree} from ({low}) to ({high})"


def _tell_loss(read: Any, kept: Any, written: Any, form: Any) -> None:
    """What was cut off, what the format rounds, and the largest change that this made."""
    from ...geometry.gaussian_differences import largest_differences
    from ...geometry.splat_io import file_order

    if kept.degree < read.degree:
        print(f"lost     bands of the colours above degree {kept.degree}")
    print(f"rounded  {form.LOSS}")
    order = file_order(form, kept)
    print(f"change   {largest_differences(kept[order], written)} at most")
