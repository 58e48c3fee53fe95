"""RGB-D sequences as 7-Scenes has them: ``frame-000000.color.png``, ``.depth.png`` and ``.pose.txt`` side by side.

A folder is one sequence, or holds several (``seq-01``; ``TestSplit.txt`` then names those held out). Poses are
camera-to-world (4 x 4, OpenCV axes); photographs whose pose is not finite are left out. K is looked for in
``camera-intrinsics.txt`` (3DMatch) and in ``info.txt`` (BundleFusion, 12-Scenes), in the sequence or beside it; where
there is none, photographs of 640 x 480 are taken to be a Kinect's: 7-Scenes states 585 pixels for its depth camera,
which the poses are of, and nothing for colour. Pixel positions count from the first pixel's centre; depths are 16-bit
millimetres, 65535 where unknown (Shotton et al. 2013).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from . import images
from .capture import Capture, Shot, build, plausible, rigid_pose
from .masks import with_masks
from .scannet import centred_camera, read_matrix
from .scene import LoadOptions, Scene, SceneError, Split

PREFERENCE = 4
POSES = "frame-*.pose.txt"
COLORS = (".png", ".jpg", ".jpeg")
KINECT = ((585.0, 0.0, 320.0), (0.0, 585.0, 240.0), (0.0, 0.0, 1.0))  # of 640 x 480
KEYS = {"color": "m_calibrationColorIntrinsic", "depth": "m_calibrationDepthIntrinsic"}


def matches(root: Path) -> bool:
    """A folder with ``frame-*.pose.txt``, or with such folders."""
    return bool(_sequences(root))


def load(root: Path, options: LoadOptions) -> Scene:
    """Read the sequences. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the files say; photographs in sorted order of their names."""
    sequences = _sequences(root)
    held_out = _held_out(root) if root not in sequences else set()
    shots, lost, guessed = [], 0, False
    for folder in sequences:
        K, K_depth = _intrinsics(folder, root)
        guessed |= K is None
        split = Split.TEST if _number(folder.name) in held_out else Split.TRAIN
        for file in sorted(folder.glob(POSES)):
            rows = read_matrix(file)
            if not bool(rows.isfinite().all()):
                lost += 1
                continue
            shot = _shot(file, root, K, K_depth, rigid_pose(str(file), rows))
            shots.append(replace(shot, split=split))
    with_mask, warnings = with_masks(root, shots, [s.name for s in shots])
    if guessed:
        warnings += ("no intrinsics: 585 pixels are taken for the focal length; say better in camera-intrinsics.txt",)
    if lost:
        warnings += (f"{lost} photographs without a finite pose are left out",)
    return Capture(
        format="RGB-D sequence (7-Scenes)",
        name=root.resolve().name,
        source=root,
        shots=tuple(with_mask),
        splits_stated=any(s.split is Split.TEST for s in shots),
        warnings=warnings,
    )


def _sequences(root: Path) -> list[Path]:
    """Folders with poses: the folder itself, or those in it."""
    has_poses = lambda folder: next(folder.glob(POSES), None) is not None  # noqa: E731
    if not root.is_dir():
        return []
    return [root] if has_poses(root) else sorted(p for p in root.iterdir() if p.is_dir() and has_poses(p))


def _number(name: str) -> str:
    """``sequence1`` and ``seq-01`` are the same."""
    return (re.findall(r"\d+", name) or [name])[-1].lstrip("0")


def _held_out(root: Path) -> set[str]:
    """Sequences that ``TestSplit.txt`` names."""
    file = root / "TestSplit.txt"
    return {_number(line) for line in file.read_text().split()} if file.is_file() else set()


def _shot(file: Path, root: Path, K: Tensor | None, K_depth: Tensor | None, pose: Tensor) -> Shot:
    stem = file.name.removesuffix(".pose.txt")
    image = next((p for p in (file.with_name(f"{stem}.color{ending}") for ending in COLORS) if p.is_file()), None)
    if image is None:
        raise SceneError(f"{file}: expected its photograph {stem}.color.png, found none; copy the sequence again")
    facts = images.image_facts(image)
    if K is None and (facts.width, facts.height) != (640, 480):
        raise SceneError(
            f"{image}: expected camera-intrinsics.txt or info.txt for an image of {facts.width} x {facts.height}, "
            "found neither; write the 3 x 3 numbers of K there"
        )
    camera = centred_camera(torch.tensor(KINECT, dtype=torch.float64) if K is None else K, pose, facts)
    camera = plausible(str(image), camera)
    shot = Shot(image.relative_to(root).as_posix(), camera, image, facts.channels)
    depth = file.with_name(f"{stem}.depth.png")
    if not depth.is_file():
        return shot
    grid = images.image_facts(depth)
    sensor = camera.resized(grid.width, grid.height) if K_depth is None else centred_camera(K_depth, pose, grid)
    return replace(shot, depth=depth, depth_camera=sensor)


def _intrinsics(folder: Path, root: Path) -> tuple[Tensor | None, Tensor | None]:
    """K of colours and of depths, each where it is stated."""
    for place in dict.fromkeys((folder, root, folder.parent)):
        stated = place / "camera-intrinsics.txt"
        if stated.is_file():
            return read_matrix(stated), None
        info = place / "info.txt"
        if info.is_file():
            return _stated_in(info, "color"), _stated_in(info, "depth")
    return None, None


def _stated_in(info: Path, kind: str) -> Tensor | None:
    """K (4, 4) of ``color`` or ``depth``; None if depths have none of their own."""
    found = re.search(rf"^{KEYS[kind]}\s*=(.*)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    if found is None and kind == "depth":
        return None
    try:
        return torch.tensor([float(word) for word in found[1].split()], dtype=torch.float64).view(4, 4)  # type: ignore[index]
    except (TypeError, ValueError, RuntimeError):
        got = "none" if found is None else found[1].strip()[:60]
        raise SceneError(f"{info}: {KEYS[kind]}: expected 16 numbers, got {got}; copy the file again") from None
