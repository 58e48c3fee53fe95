"""Poses for a folder of photographs or a video, from beginning to end, kept beside the data and used again.

DIR/polyfield/sparse/0     the COLMAP model (cameras.bin, images.bin, points3D.bin)
DIR/polyfield/report.json  what was asked and found
DIR/polyfield/images       the frames, of a video

The folder appears whole or not at all: it is made under another name and renamed. It holds for the photographs that
were there, by their names, sizes and dates, and for the options asked for; else it is made again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from ..scene import SceneError
from .checks import check_features, check_overlap, check_parallax, components
from .features import Features, all_features
from .intrinsics import Cameras, Lens
from .mapping import Mapper, reconstruct_model, triangulation_angle
from .matching import match, write_database
from .pairs import Matching, choose_pairs
from .survey import Survey, is_video, result_folder, survey
from .video import sharpest_frames

REPORT = "report.json"
VERSION = 1  # of what is kept; another one is made again
NARROW = 1.5  # degrees, between the rays of a point: less holds hardly any depth
LARGE_ERROR = 1.5  # pixels, mean reprojection error at the size that features were looked for

Tell = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True)
class SfmOptions:
    """How poses are found."""

    frames: int = 120
    """Frames to take of a video: the sharpest of as many stretches of equal length."""
    matching: Matching = Matching.AUTO
    """Which photographs are compared with each other."""
    mapper: Mapper = Mapper.INCREMENTAL
    """One photograph after the other (incremental), or all at once (global)."""
    cameras: Cameras = Cameras.AUTO
    """Which photographs share intrinsics: those of one size, maker and focal length (auto), all (one), none (each)."""
    lens: Lens = Lens.AUTO
    """COLMAP's model of the lens; auto: simple-radial, or radial for 15 photographs of a camera or more."""
    max_size: int = 1600
    """Longer side in pixels at which features are looked for; larger photographs are shrunk for it."""
    max_features: int = 4096
    """Key points of a photograph."""
    seed: int = 0
    """Two runs with the same seed find the same poses."""


@dataclass(frozen=True)
class SfmReport:
    """What came of it."""

    photographs: int
    registered: int
    cameras: tuple[str, ...]  # in words
    points: int
    track_length: float  # photographs that see a point, mean
    error: float  # pixels, mean reprojection error
    angle: float  # degrees, between the rays of a point, median
    pairs: int  # that overlap
    compared: int
    left_out: tuple[str, ...]  # photographs without a pose
    warnings: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)  # by stage


def reconstruct(
    root: Path, options: SfmOptions, tell: Tell, output: Path | None = None, again: bool = False
) -> tuple[Path, SfmReport, bool]:
    """Poses of the photographs in a folder, or of a video's frames.

    Args:
        root: the folder or the video.
        options: how.
        tell: hears of the progress of each stage.
        output: where results go; by default ``result_folder(root)``. ``images`` leads to the photographs there.
        again: find poses also where they are known.

    Returns:
        The folder of results, the report, and whether it was there already.

    Raises:
        SceneError: photographs that cannot work, with why and what to do; a folder that cannot be written.
    """
    _check(options)
    folder = result_folder(root) if output is None else output
    found = None if is_video(root) else survey(root)
    asked = _asked(root, found, options)
    known = None if again else read_report(folder, **asked)
    if known is not None:
        return folder, known, True
    _check_library()
    _check_free(folder)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        with suppress(FileNotFoundError):
            shutil.rmtree(part)
        (part / "work").mkdir(parents=True)
        report = _reconstruct(root, found, options, part, tell)
        shutil.rmtree(part / "work")
        if output is not None and found is not None:  # so that it opens as COLMAP's
            (part / "images").symlink_to(found.folder.resolve(), target_is_directory=True)
        text = json.dumps({"version": VERSION, "asked": asked, "report": asdict(report)}, indent=1)
        (part / REPORT).write_text(text + "\n", encoding="utf-8")
        if folder.is_dir():
            shutil.rmtree(folder)
        part.rename(folder)
    except OSError as error:
        raise SceneError(
            f"process: {folder} cannot be written ({error}); copy the photographs to a folder of your own, or give "
            "--output"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder, report, False


def read_report(folder: Path, **asked: Any) -> SfmReport | None:
    """The report that was kept, if there is one; with ``options`` or ``files``, if it answers just these."""
    try:
        kept = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        if kept["version"] != VERSION or any(kept["asked"][k] != v for k, v in asked.items()):
            return None
        report: dict[str, Any] = kept["report"]
        lists = ("cameras", "left_out", "warnings")
        return SfmReport(**(report | {k: tuple(report[k]) for k in lists}))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reconstruct(root: Path, found: Survey | None, options: SfmOptions, part: Path, tell: Tell) -> SfmReport:
    """All stages; leaves ``sparse/0`` in ``part``."""
    clock = _Clock(tell)
    if found is None:
        (part / "images").mkdir()
        with clock.stage("frames") as progress:
            names = sharpest_frames(root, part / "images", options.frames, progress)
        found = Survey(part / "images", tuple(names))
        is_clip = True
    else:
        is_clip = False
    with clock.stage("features") as progress:
        features, unreadable = all_features(found.folder, found.names, options.max_size, options.max_features, progress)
    warnings = [*found.notes, *(f"left out: {problem}" for problem in unreadable), *check_features(root, features)]
    database = part / "work" / "database.db"
    numbers = write_database(database, features, options.cameras, options.lens)
    pairs = choose_pairs(features, options.matching, is_clip)
    with clock.stage("matching") as progress:
        verified = match(database, features, pairs, options.seed, progress)
    warnings += check_overlap(root, features, verified, len(pairs))
    check_parallax(root, features, verified)
    most = len(components(len(features), verified)[0])
    with clock.stage("mapping") as progress:
        model = reconstruct_model(database, features, options.mapper, options.seed, progress, most)
    if model is None:
        raise SceneError(
            f"{root}: expected photographs whose matches agree on where the cameras were, found no two to begin with "
            f"({len(verified)} of {len(pairs)} pairs overlap); take more photographs between these, or try --mapper "
            "global, --lens opencv or --cameras one"
        )
    target = part / "sparse" / "0"
    target.mkdir(parents=True)
    model.write_binary(target)
    report = _report(model, features, len(found.names), len(set(numbers)), options)
    return replace(
        report,
        warnings=(*warnings, *report.warnings),
        pairs=len(verified),
        compared=len(pairs),
        seconds=clock.seconds,
    )


def _report(model: Any, features: list[Features], photographs: int, cameras: int, options: SfmOptions) -> SfmReport:
    """What the model holds, and what to think of it."""
    there = {image.name for image in model.images.values() if image.has_pose}
    left_out = [f.name for f in features if f.name not in there]
    angle, error = triangulation_angle(model), float(model.compute_mean_reprojection_error())
    shrunk = max(1.0, max(max(f.taken.width, f.taken.height) for f in features) / options.max_size)
    warnings = []
    if left_out:
        names = ", ".join(left_out[:8]) + (f" and {len(left_out) - 8} more" if len(left_out) > 8 else "")
        warnings.append(
            f"{len(left_out)} photographs got no pose and are left out: {names}; more photographs between them and the "
            "others would help"
        )
    if angle < NARROW:
        warnings.append(f"points are seen under {angle:.1f} degrees only; walk farther around the scene")
    if error > LARGE_ERROR * shrunk:
        warnings.append(f"points miss their key points by {error:.1f} pixels; try --lens opencv")
    return SfmReport(
        photographs=photographs,
        registered=len(there),
        cameras=tuple(_camera_words(c) for _, c in sorted(model.cameras.items())),
        points=int(model.num_points3D()),
        track_length=float(model.compute_mean_track_length()),
        error=error,
        angle=angle,
        pairs=0,
        compared=0,
        left_out=tuple(left_out),
        warnings=tuple(warnings),
    )


def _camera_words(camera: Any) -> str:
    stated = "EXIF began it" if camera.has_prior_focal_length else "not in EXIF"
    size = f"{camera.width}x{camera.height}, {camera.model_name}"
    return f"{size}, focal length {camera.mean_focal_length():.1f} px ({stated})"


class _Clock:
    """Times stages, and passes their progress on."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.seconds = tell, dict[str, float]()

    def stage(self, name: str) -> _Stage:
        return _Stage(self, name)


class _Stage:
    """One stage: a context manager that yields ``progress(done, total)``."""

    def __init__(self, clock: _Clock, name: str) -> None:
        self.clock, self.name = clock, name

    def __enter__(self) -> Callable[[int, int], None]:
        self.start = time.perf_counter()
        self.clock.tell(self.name, 0, 1)
        return lambda done, total: self.clock.tell(self.name, done, total)

    def __exit__(self, *_: object) -> None:
        self.clock.seconds[self.name] = round(time.perf_counter() - self.start, 2)


def files_of(root: Path, found: Survey | None) -> list[list[Any]]:
    """Name, size and date of every photograph, or of the video: what a result holds for."""
    if found is None:
        return [_row(root.name, root)]
    return [_row(name, found.folder / name) for name in found.names]


def _row(name: str, path: Path) -> list[Any]:
    stat = path.stat()
    return [name, stat.st_size, stat.st_mtime_ns]


def _asked(root: Path, found: Survey | None, options: SfmOptions) -> dict[str, Any]:
    """What a result answers, as JSON has it."""
    plain = {k: v.value if isinstance(v, Enum) else v for k, v in asdict(options).items()}
    if found is not None:
        del plain["frames"]
    return {"options": plain, "files": files_of(root, found)}


def _check(options: SfmOptions) -> None:
    for name, least in (("frames", 2), ("max_size", 64), ("max_features", 64)):
        value = getattr(options, name)
        if value < least:
            raise SceneError(f"process: --{name.replace('_', '-')}: expected {least} or more, got {value}")


def _check_library() -> None:
    """Raises SceneError where pycolmap is missing; where it is there, only its fatal errors reach the terminal.

    Its logging library takes SIGTERM to print a stack trace; it is given back.
    """
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        import pycolmap
    except ImportError:
        raise SceneError(
            "process: expected the package pycolmap, which finds poses, found none; pip install pycolmap (there are "
            "wheels for Linux on x86-64, macOS on arm64 and Windows)"
        ) from None
    pycolmap.logging.minloglevel = 3
    if threading.current_thread() is threading.main_thread() and terminate is not None:
        signal.signal(signal.SIGTERM, terminate)


def _check_free(folder: Path) -> None:
    """Raises SceneError for a folder that holds something else."""
    if folder.exists() and not (folder / REPORT).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise SceneError(
            f"process: {folder}: expected a free name for the results, found something else there; move it away, or "
            "give --output"
        )
