"""What losses need of photographs beside their colours, and whether a scene has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..datasets.scene import Frame, Scene, Split
from ..geometry.types import Aabb, Points
from ..renderers.protocols import Loss
from ..renderers.robust import RobustConfig, RobustMasks
from .devices import CPU
from .errors import UserError

SOURCES = {"depths": "depth_file_path", "normals": "normal_file_path"}  # in transforms.json
MORE = {"depths": ", open a COLMAP model with tracks", "normals": ""}
FACING, GRAZING = 0.8, 0.1  # share of normals that must; scalar product with the ray up to which one does
STORED = frozenset(SOURCES)  # colours and alphas are handed out in any case


def with_point_depths(losses: Mapping[str, Loss], scene: Scene) -> Scene:
    """The scene whose training views have the depths of the points they saw, if a loss needs depths and no training
    view has a map of them; says so."""
    wanted = any(getattr(loss, "needs", None) == "depths" for loss in losses.values())
    frames = [frame for frame in scene.train if frame.seen is not None and len(frame.seen.positions)]
    if not wanted or not frames or any(frame.depths is not None for frame in scene.train):
        return scene
    maps = {frame.name: frame.seen.depths(frame.camera) for frame in frames if frame.seen is not None}
    count = sum(int((depths > 0).sum()) for depths, _ in maps.values())
    print(f"{scene.name}: depths of {count} pixels, from points of structure from motion in {len(maps)} photographs")

    def told(frame: Frame) -> Frame:
        if frame.split is not Split.TRAIN or frame.name not in maps:
            return frame
        depths, weights = maps[frame.name]
        return replace(frame, depths=depths, depth_weights=weights)

    return scene.with_frames(tuple(told(frame) for frame in scene.frames))


def needed(losses: Mapping[str, Loss], scene: Scene) -> frozenset[str]:
    """The names of the ``Pixels`` that these losses compare: their ``needs``, and those of ``needs_any`` that exist.

    Raises UserError if a loss compares what no training view has.
    """
    names = {name: loss.needs for name, loss in losses.items() if hasattr(loss, "needs")}
    found = {what for name, loss in losses.items() for what in _any_of(name, loss, scene) if what in STORED}
    for option, what in names.items():
        if all(getattr(frame, what) is None for frame in scene.train):
            raise UserError(
                f"fit: --{option}.weight: expected {what} in a training view at least, {scene.name} has none; name "
                f"them by {SOURCES[what]} in transforms.json{MORE[what]}, or leave the option out"
            )
    if "normals" in names.values():
        check_normals(scene)
    return frozenset(names.values()) | found


def check_normals(scene: Scene) -> None:
    """Raises UserError if the photographs' normals do not face their cameras: what is seen has no other side."""
    frames = [frame for frame in scene.train if frame.normals is not None]
    frames = frames[:: max(1, len(frames) // 8)]
    facing = away = 0.0
    for frame in frames:
        assert frame.normals is not None
        normals, rays = frame.normals.float().view(-1, 3), frame.camera.rays().directions.float().view(-1, 3)
        cosines = (normals * rays).sum(-1)[normals.norm(dim=-1) > 0.5]
        facing += float((cosines < GRAZING).float().sum()) / max(len(cosines), 1) / len(frames)
        away += float((cosines > -GRAZING).float().sum()) / max(len(cosines), 1) / len(frames)
    if facing > FACING:
        return
    opposite = f", {100 * away:.0f} % face away: opengl and opencv may be mixed up, or normals point inwards"
    raise UserError(
        f"fit: --normal.weight: expected normals that face the cameras, {100 * facing:.0f} % of {scene.name}'s do"
        f"{opposite if away > FACING else ''}; state the maps' normal_axes (opengl, opencv, world) in transforms.json"
    )


def _any_of(name: str, loss: Loss, scene: Scene) -> set[str]:
    """Which of what ``needs_any`` names some training view has. Raises UserError for none."""
    wanted: tuple[str, ...] = getattr(loss, "needs_any", ())
    found = {what for what in wanted if any(getattr(frame, what) is not None for frame in scene.train)}
    if wanted and not found:
        raise UserError(
            f"fit: --{_option(name)}.weight: expected {' or '.join(wanted)} in a training view at least, {scene.name} "
            "has none; name depths by depth_file_path in transforms.json, take masks for alpha with --masks alpha, or "
            "leave the option out"
        )
    return found


def robust_masks(config: RobustConfig, scene: Scene, device: torch.device) -> RobustMasks | None:
    """What takes outliers out of a fit, if it is asked for. Raises UserError for numbers that are none."""
    if config.outliers == 0:
        return None
    if not 0 < config.outliers < 1:
        raise UserError(
            f"fit: --robust.outliers: expected a share of pixels from 0 to 1, got {config.outliers}; 0.1 suits "
            "photographs in which moving things cover a tenth"
        )
    if config.neighborhood < 3:
        raise UserError(
            f"fit: --robust.neighborhood: expected 3 pixels or more, got {config.neighborhood}; 8 is a good choice"
        )
    longest = max(max(frame.camera.width, frame.camera.height) for frame in scene.train)
    return config.build(len(scene.train), longest).to(device)


def known_points(losses: Mapping[str, Loss], scene: Scene, bounds: Aabb, device: torch.device) -> Points | None:
    """The scene's points in ``bounds``, if a loss needs them. Raises UserError if it has none there."""
    asking = [name for name, loss in losses.items() if getattr(loss, "needs_scene", None) == "points"]
    if not asking:
        return None
    low, high = bounds.low.to(CPU), bounds.high.to(CPU)
    inside = None if scene.points is None else Aabb(low, high).contains(scene.points.to(CPU))
    if scene.points is None or inside is None or not bool(inside.any()):
        raise UserError(
            f"fit: --{_option(asking[0])}.weight: expected points in the fitted space, {scene.name} has none; a COLMAP "
            "model or ply_file_path in transforms.json has them, or leave the option out"
        )
    normals = None if scene.point_normals is None else scene.point_normals[inside].float()
    return Points(scene.points[inside].float(), normals=normals).to(device)


def _option(name: str) -> str:
    """How the command line calls a loss."""
    return name.replace("_", "-")
