"""Matches between photographs, verified by two-view geometry, in a COLMAP database.

COLMAP matches descriptors and keeps what an essential matrix or a homography explains (RANSAC, 4 pixels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .features import Features
from .intrinsics import GUESS, Cameras, Lens, grouped

BLOCK = 100  # pairs between two reports
MIN_INLIERS = 15  # of a pair, else they do not overlap


@dataclass(frozen=True)
class Pair:
    """Two photographs that show the same thing; i < j index the features."""

    i: int
    j: int
    matches: np.ndarray  # (M, 2) int64: key points of i and of j


def write_database(path: Path, features: Sequence[Features], cameras: Cameras, lens: Lens) -> list[int]:
    """A COLMAP database of the features; image i + 1 is named by its number. Returns each one's camera, from 0."""
    import pycolmap

    numbers = grouped([f.taken for f in features], cameras)
    database = pycolmap.Database.open(path)
    for number in range(max(numbers) + 1):
        members = [f for f, n in zip(features, numbers, strict=True) if n == number]
        camera = _camera(members, lens)
        camera.camera_id = number + 1
        database.write_camera(camera, True)
        rig = pycolmap.Rig()
        rig.rig_id = number + 1
        rig.add_ref_sensor(camera.sensor_id)
        database.write_rig(rig, True)
    for index, (own, number) in enumerate(zip(features, numbers, strict=True), 1):
        image = pycolmap.Image()
        image.name, image.camera_id, image.image_id = str(index), number + 1, index
        database.write_image(image, True)
        frame = pycolmap.Frame()
        frame.frame_id, frame.rig_id = index, number + 1
        frame.add_data_id(image.data_id)
        database.write_frame(frame, True)
        database.write_keypoints(index, own.pixels)
        kind = pycolmap.FeatureExtractorType.SIFT
        database.write_descriptors(index, pycolmap.FeatureDescriptors(kind, own.descriptors))
    database.close()
    return numbers


def _camera(members: Sequence[Features], lens: Lens) -> Any:
    """The camera that these photographs share, before any geometry."""
    import pycolmap

    taken = members[0].taken
    known = [f.taken.focal for f in members if f.taken.focal is not None]
    focal = float(np.mean(known)) if known else GUESS * max(taken.width, taken.height)
    camera = pycolmap.Camera.create_from_model_name(0, lens.model(len(members)), focal, taken.width, taken.height)
    camera.has_prior_focal_length = bool(known)
    return camera


def match(
    database: Path,
    features: Sequence[Features],
    pairs: Sequence[tuple[int, int]],
    seed: int,
    tell: Callable[[int, int], None],
) -> list[Pair]:
    """Match and verify pairs; those that overlap, in sorted order. They are kept in the database as well."""
    import pycolmap

    options, verify = pycolmap.FeatureMatchingOptions(), pycolmap.TwoViewGeometryOptions()
    options.use_gpu, options.num_threads = False, torch.get_num_threads()
    verify.ransac.random_seed = seed
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = database.with_name("pairs.txt")
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        pairing.match_list_path.write_text("".join(f"{i + 1} {j + 1}\n" for i, j in block), encoding="utf-8")
        pycolmap.match_image_pairs(database, options, pairing, verify, pycolmap.Device.cpu)
        tell(start + len(block), len(pairs))
    opened = pycolmap.Database.open(database)
    numbers, geometries = opened.read_two_view_geometries()
    opened.close()
    found = []
    for number, geometry in zip(numbers, geometries, strict=True):
        i, j = (n - 1 for n in pycolmap.pair_id_to_image_pair(number))
        matches = np.asarray(geometry.inlier_matches, np.int64).reshape(-1, 2)
        if len(matches) >= MIN_INLIERS:
            found.append(Pair(i, j, matches) if i < j else Pair(j, i, matches[:, ::-1]))
    return sorted(found, key=lambda p: (p.i, p.j))
