"""Photographs or a video without poses, once ``polyfield process`` has found some: DIR/polyfield, CLIP.polyfield.

The model there is COLMAP's and is read as such; names in it start from ``images``, or from the folder itself. Held out
is the middle one of every so many photographs: no other may see what the two ends of somebody's walk do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from . import colmap
from .capture import Capture, build
from .photo_folders import PhotoFolder, choose_folder
from .scene import LoadOptions, Scene, SceneError
from .sfm.reconstruct import files_of, read_report
from .sfm.survey import has_photos, is_video, result_folder, survey

PREFERENCE = -10  # poses of any other kind come first


def matches(root: Path) -> bool:
    """A video, or a folder with photographs."""
    return is_video(root) or has_photos(root)


def is_posed(root: Path) -> bool:
    """Whether poses are known of just these photographs."""
    files = files_of(root, None if is_video(root) else survey(root))
    return read_report(result_folder(root), files=files) is not None


def model_folder(root: Path) -> Path:
    """The folder of the COLMAP model."""
    return result_folder(root) / "sparse/0"


def load(root: Path, options: LoadOptions) -> Scene:
    """Read the model that was found and the photographs. Raises SceneError."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the model says; shots in sorted order of their names."""
    folder = result_folder(root)
    report = read_report(folder)
    if report is None:
        raise SceneError(
            f"{root}: expected photographs with poses, found none (no transforms.json, no COLMAP model); find them: "
            f"polyfield process {root}"
        )
    if is_video(root):
        photos = PhotoFolder(folder / "images", 1)
    else:
        photos = choose_folder(root, options.downscale) or PhotoFolder(root, 1)
    masks_in = root if root.is_dir() else folder
    changed = () if is_posed(root) else (f"photographs have changed since; find poses again: polyfield process {root}",)
    capture = colmap.read_with(model_folder(root), photos, masks_in)
    return replace(
        capture,
        format=f"photographs, with poses from {folder}",
        name=root.name if root.is_dir() else root.stem,
        first_held_out=min(options.hold_out, len(capture.shots)) // 2,  # what the first sees, often no other does
        warnings=(*changed, *report.warnings, *capture.warnings),
    )
