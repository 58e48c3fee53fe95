"""Write a data set's cameras to another format: transforms.json, or COLMAP's text files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import UserError
from ..parse import parse


def main(arguments: list[str]) -> None:
    parse(run, "cameras", arguments)


def run(
    data: Annotated[Path, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    overwrite: bool = False,
) -> None:
    """Read the cameras of DATA, whatever its format, and write them in the user's units.

    OUTPUT is a .json file (nerfstudio's conventions; points go to points.ply beside it) or a folder for cameras.txt,
    images.txt and points3D.txt. A COLMAP model goes through with every number and track as it was.

    Args:
        data: a data set; see docs/data.md.
        output: a .json file, or a folder.
        overwrite: replace files that exist.
    """
    from ...datasets.colmap_model import PARTS, write_text
    from ...datasets.export import photo_folder, write_transforms
    from ...datasets.scene import LoadOptions, find_format

    module = find_format(data)
    if not hasattr(module, "read"):
        raise UserError(f"cameras: DATA: expected a data set with files of its own, got {data}")
    capture = module.read(data, LoadOptions())
    is_json = output.suffix.lower() == ".json"
    targets = [output] if is_json else [output / f"{part}.txt" for part in PARTS]
    existing = next((t for t in targets if t.exists()), None)
    if existing is not None and not overwrite:
        raise UserError(f"cameras: OUTPUT: {existing} exists; replace it with --overwrite, or choose another name")
    try:
        if is_json:
            base = write_transforms(capture, output, data if data.is_dir() else data.parent)
            print(f"{len(capture.shots)} cameras: {output}, with paths from {base}")
            return
        write_text(_model(module, data, capture), output)
    except OSError as error:
        raise UserError(f"cameras: OUTPUT: {error}") from error
    print(f"{len(capture.shots)} cameras: {output}/cameras.txt, images.txt, points3D.txt")
    print(f"  names are those of files in {photo_folder(capture.shots)}")


def _model(module: Any, data: Path, capture: Any) -> Any:
    """COLMAP's own model as it is, or one made of the capture."""
    from ...datasets.colmap_model import read_model
    from ...datasets.export import as_model

    folder = module.model_folder(data) if hasattr(module, "model_folder") else None
    return as_model(capture) if folder is None else read_model(folder)
