"""NeuS and IDR: ``cameras_sphere.npz`` (or ``cameras.npz``), ``image`` and ``mask``; DTU and BlendedMVS come that way.

``world_mat_i`` is a projection matrix K [R | t] whose pixel positions count from the first pixel's centre (so that
half a pixel is added to the principal point here); ``scale_mat_i`` takes the unit sphere, where the object is, to the
world (Yariv et al. 2020, Wang et al. 2021). Poses are kept in the unit sphere's frame; the world is scene_to_world's.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import Camera, intrinsics
from ..geometry.transforms import similarity_scale
from . import images
from .capture import Capture, Shot, build, fitted_to_image, rigid_pose
from .masks import with_masks
from .photo_folders import choose_folder, in_order
from .scene import LoadOptions, Scene, SceneError

PREFERENCE = 9
FILES = ("cameras_sphere.npz", "cameras.npz", "cameras_large.npz")
FOLDERS = ("image", "images", "rgb")


def matches(root: Path) -> bool:
    """A folder with one of the camera files, or such a file."""
    return _file(root) is not None


def load(root: Path, options: LoadOptions) -> Scene:
    """Read cameras and photographs. Raises SceneError naming the file and the remedy."""
    return build(read(root, options), options, root)


def read(root: Path, options: LoadOptions) -> Capture:
    """What the files say; photographs in sorted order belong to matrices 0, 1, 2, ..."""
    file = _file(root)
    assert file is not None
    projections, scale = _matrices(file)
    photos = choose_folder(file.parent, options.downscale, FOLDERS)
    if photos is None:
        raise SceneError(f"{file}: expected photographs in a folder `image` beside it, found none; put them there")
    shots = []
    for index, path in enumerate(in_order(str(file), photos.path, len(projections))):
        what = f"{file}: world_mat_{index}"
        facts = images.image_facts(path)
        K, pose = decompose(what, projections[index] @ scale)
        camera = Camera(_centred(K), pose, facts.width, facts.height)
        if photos.suffix:  # the matrices are those of the images before they were shrunk
            largest = choose_folder(file.parent, 1, FOLDERS)
            assert largest is not None
            full = images.image_facts(in_order(str(file), largest.path, len(projections))[index])
            camera = fitted_to_image(str(path), Camera(_centred(K), pose, full.width, full.height), facts)
        if not (0 <= camera.K[0, 2] <= camera.width and 0 <= camera.K[1, 2] <= camera.height):
            raise SceneError(
                f"{what}: expected a principal point inside the image of {facts.width} x {facts.height}, got "
                f"({camera.K[0, 2]:.1f}, {camera.K[1, 2]:.1f}); use the images that the matrices were made for"
            )
        shots.append(Shot(path.name, camera, path, facts.channels, shrunk=photos.shrunk))
    with_mask, warnings = with_masks(file.parent, shots, [s.name for s in shots], photos.suffix)
    return Capture(
        format=f"NeuS / IDR, {file.name}",
        name=file.resolve().parent.name,
        source=file,
        shots=tuple(with_mask),
        to_world=torch.from_numpy(scale),
        unit_sphere=not np.array_equal(scale, np.eye(4)),
        warnings=warnings,
    )


def decompose(what: str, projection: np.ndarray) -> tuple[Tensor, Tensor]:
    """P (3 or 4, 4) = lambda K [R | t] -> K (3, 3), K_22 = 1, and camera-to-world (4, 4), by an RQ decomposition."""
    P = torch.from_numpy(np.ascontiguousarray(projection[:3], dtype=np.float64))
    M = P[:, :3] / P[2, :3].norm()
    P = P / P[2, :3].norm()
    if not bool(P.isfinite().all()) or float(torch.linalg.svdvals(M)[-1]) < 1e-9:
        raise SceneError(f"{what}: expected a projection matrix K [R | t], got {projection.tolist()}; export it again")
    if float(torch.linalg.det(M)) < 0:
        P, M = -P, -M
    flip = torch.eye(3, dtype=torch.float64).flip(0)
    q, r = torch.linalg.qr((flip @ M).T)
    K, rotation = flip @ r.T @ flip, flip @ q.T
    signs = torch.diag(torch.where(K.diagonal() < 0, -1.0, 1.0).double())
    K, rotation = K @ signs, signs @ rotation
    K = K / K[2, 2]
    if abs(float(K[0, 1])) > 1e-4 * float(K[0, 0]):
        raise SceneError(f"{what}: expected square-cornered pixels, got a skew of {float(K[0, 1]):.3g} pixels")
    position = -torch.linalg.solve(M, P[:, 3])
    return K, rigid_pose(what, torch.cat([rotation.T, position[:, None]], 1))


def _centred(K: Tensor) -> Tensor:
    """From positions that count from the first pixel's centre to those that count from its corner."""
    fx, fy, cx, cy = (float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return intrinsics(fx, fy, cx + 0.5, cy + 0.5, K)


def _file(root: Path) -> Path | None:
    if root.is_file():
        return root if root.name in FILES else None
    return next((root / name for name in FILES if (root / name).is_file()), None)


def _matrices(file: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """The world matrices (4, 4) in order, and the similarity from the unit sphere to the world."""
    try:
        with np.load(file, allow_pickle=False) as data:
            found = {key: np.asarray(data[key], np.float64) for key in data.files if not key.endswith("inv")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise SceneError(f"{file}: expected arrays world_mat_i and scale_mat_i, got {error}; copy it again") from None
    world = {int(k[10:]): m for k, m in found.items() if k.startswith("world_mat_") and k[10:].isdigit()}
    wrong = [k for k, m in found.items() if k.startswith(("world_mat", "scale_mat")) and m.shape != (4, 4)]
    if not world or sorted(world) != list(range(len(world))) or wrong:
        got = f"{wrong[0]} of shape {found[wrong[0]].shape}" if wrong else f"numbers {sorted(world)[:12]}"
        raise SceneError(
            f"{file}: expected matrices world_mat_0, world_mat_1, ... of 4 x 4, got {got}; export the file again"
        )
    scale = found.get("scale_mat_0", np.eye(4))
    matrix = torch.from_numpy(scale)
    size = similarity_scale(matrix)
    if not bool(matrix.isfinite().all()) or not float(size) > 0:
        raise SceneError(f"{file}: scale_mat_0: expected a scale and a shift, got {scale.tolist()}; export it again")
    rigid_pose(f"{file}: scale_mat_0 without its scale", torch.cat([matrix[:3, :3] / size, matrix[:3, 3:]], 1))
    return [world[i] for i in range(len(world))], scale
