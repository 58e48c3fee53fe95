"""Which photographs one camera took, and views of those cameras as a fit found them to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..datasets.capture import lens_key
from ..datasets.scene import Scene
from ..renderers.intrinsics import Intrinsics, IntrinsicsConfig


def owners_of(scene: Scene) -> dict[tuple[object, ...], int]:
    """The cameras of the training views by what is said of them, numbered as they come."""
    owners: dict[tuple[object, ...], int] = {}
    for frame in scene.train:
        owners.setdefault(lens_key(frame.camera), len(owners))
    return owners


def intrinsics_of(scene: Scene, config: IntrinsicsConfig, *, radial: bool = True) -> Intrinsics:
    """What is to be refined of a scene's training views: those of which the same is said share it."""
    owners, cameras = owners_of(scene), [frame.camera for frame in scene.train]
    return Intrinsics(cameras, [owners[lens_key(camera)] for camera in cameras], config, radial=radial)


def with_refined(scene: Scene, tensors: Mapping[str, Tensor]) -> Scene:
    """The scene with its cameras as a fit found them, held-out ones too where a camera took training views as well."""
    if not tensors:
        return scene
    found = intrinsics_of(scene, IntrinsicsConfig(), radial="radial" in tensors)
    found.load_state_dict(dict(tensors))
    owners, frames = owners_of(scene), []
    for frame in scene.frames:
        owner = owners.get(lens_key(frame.camera))
        camera = frame.camera if owner is None else found.refined(frame.camera, owner).detach()
        frames.append(replace(frame, camera=camera))
    return scene.with_frames(tuple(frames))
