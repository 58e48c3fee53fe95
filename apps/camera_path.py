"""Camera paths: key poses recorded in the viewer, a smooth curve through them, and paths made from a scene's cameras.

The file (``RUN/camera_path.json``) is JSON, in the user's world units, so that it outlives a run:

    {"format": "polyfield camera path", "version": 1, "width": 1280, "height": 720, "seconds": 6.0, "closed": false,
     "keys": [{"camera_to_world": [[r r r x], [r r r y], [r r r z], [0 0 0 1]], "fov_y": 0.9}, ...]}

with OpenCV axes (+x right, +y down, +z forward) and ``fov_y`` the vertical field of view in radians. Keys are evenly
spaced in time. Positions and angles follow a Catmull-Rom spline (Catmull & Rom 1974), rotations its counterpart on the
sphere of quaternions, squad (Shoemake 1987): both pass through every key without a kink, a closed path's start too.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..geometry import transforms
from ..geometry.cameras import Camera
from .checkpoint import write_whole
from .errors import UserError

if TYPE_CHECKING:
    from ..datasets.scene import Scene

FORMAT, VERSION = "polyfield camera path", 1


@dataclass(frozen=True)
class Key:
    """Where the camera is, and how wide it looks."""

    camera_to_world: Tensor  # (4, 4) float64, rigid
    fov_y: float  # radians


@dataclass(frozen=True)
class CameraPath:
    """Key poses in one frame (the file's is the user's world), evenly spaced in time."""

    keys: tuple[Key, ...] = ()
    width: int = 1280
    height: int = 720
    seconds: float = 6.0
    closed: bool = False  # ends where it began

    def transformed(self, a_to_b: Tensor) -> CameraPath:
        """The same path after a similarity (4, 4)."""
        moved = tuple(
            replace(k, camera_to_world=transforms.transform_poses(a_to_b.double(), k.camera_to_world))
            for k in self.keys
        )
        return replace(self, keys=moved)

    def poses(self, frames: int) -> tuple[Tensor, Tensor]:
        """``frames`` poses (frames, 4, 4) and vertical fields of view (frames,) along the curve, float64.

        An open path's first and last frame are its first and last key; a closed one stops one frame short of its start.
        """
        if not self.keys:
            raise ValueError("CameraPath: keys: expected at least one, got none; add one in the viewer")
        poses = torch.stack([k.camera_to_world.double() for k in self.keys])
        fovs = torch.tensor([k.fov_y for k in self.keys], dtype=torch.float64)
        count = len(self.keys)
        if count == 1:
            return poses.expand(frames, 4, 4), fovs.expand(frames)
        closed = self.closed and count > 2
        times = torch.arange(frames, dtype=torch.float64) * (count / max(frames, 1))
        if not closed:
            times = torch.linspace(0, count - 1, frames, dtype=torch.float64)
        quats = squad(transforms.matrix_to_quaternion(poses[:, :3, :3]), times, closed)
        moving = catmull_rom(torch.cat([poses[:, :3, 3], fovs[:, None]], 1), times, closed)
        return transforms.rigid(transforms.quaternion_to_matrix(quats), moving[:, :3]), moving[:, 3].clamp(
            1e-3, math.pi - 1e-3
        )

    def cameras(self, frames: int) -> list[Camera]:
        """``frames`` pinhole cameras along the curve, float32."""
        poses, fovs = self.poses(frames)
        wide = [2 * math.atan(math.tan(fov / 2) * self.width / self.height) for fov in fovs.tolist()]
        return [
            Camera.perspective(self.width, self.height, fov, pose)
            for pose, fov in zip(poses.float(), wide, strict=True)
        ]


def _neighbours(count: int, times: Tensor, closed: bool) -> tuple[list[Tensor], Tensor]:
    """Indices of the keys before, at, after and after next (N,), and the place between the middle two (N,)."""
    at = times.floor().long()
    if closed:
        return [(at + k) % count for k in (-1, 0, 1, 2)], times - at
    at = at.clamp(0, count - 2)
    return [(at + k).clamp(0, count - 1) for k in (-1, 0, 1, 2)], times - at


def catmull_rom(values: Tensor, times: Tensor, closed: bool = False) -> Tensor:
    """Values (V, C) at times 0, 1, ... -> the spline's values (N, C) at ``times`` (N,)."""
    (a, b, c, d), t = _neighbours(len(values), times, closed)
    before, start, end, after = values[a], values[b], values[c], values[d]
    if not closed:  # an end has no neighbour beyond it: continue straight
        before = torch.where((a == b)[:, None], 2 * start - end, before)
        after = torch.where((d == c)[:, None], 2 * end - start, after)
    t = t[:, None]
    return start + 0.5 * t * (
        (end - before) + t * ((2 * before - 5 * start + 4 * end - after) + t * (3 * (start - end) + after - before))
    )


def squad(quats: Tensor, times: Tensor, closed: bool = False) -> Tensor:
    """Unit quaternions (V, 4) at times 0, 1, ... -> (N, 4) at ``times`` (N,).

    slerp(slerp(q_0, q_1; t), slerp(s_0, s_1; t); 2 t (1 - t))
    s_i = q_i exp(-(log(q_i^-1 q_i+1) + log(q_i^-1 q_i-1)) / 4)
    """
    back = _log(_times(_conjugate(quats), quats.roll(1, 0)))
    ahead = _log(_times(_conjugate(quats), quats.roll(-1, 0)))
    if not closed:  # an end has no neighbour beyond it: turn on as before
        back[0], ahead[-1] = -ahead[0], -back[-1]
    inner = _times(quats, _exp(-(back + ahead) / 4))
    (_, b, c, _), t = _neighbours(len(quats), times, closed)
    # A rotation is q and -q: of the key ahead, the one on this side of the sphere. From there on no sign may change.
    sign = torch.where((quats[b] * quats[c]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return _arc(_arc(quats[b], sign * quats[c], t), _arc(inner[b], sign * inner[c], t), 2 * t * (1 - t))


def _arc(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """``slerp`` from a to b itself, even where -b is nearer."""
    angle = torch.atan2((b - a).norm(dim=-1, keepdim=True), (b + a).norm(dim=-1, keepdim=True)) * 2
    t = t[:, None]
    near = angle < 1e-9
    sine = torch.where(near, 1.0, angle.sin())
    low, high = ((1 - t) * angle).sin() / sine, (t * angle).sin() / sine
    return torch.nn.functional.normalize(torch.where(near, 1 - t, low) * a + torch.where(near, t, high) * b, dim=-1)


def _times(p: Tensor, q: Tensor) -> Tensor:
    w, v = p[:, :1] * q[:, :1] - (p[:, 1:] * q[:, 1:]).sum(-1, keepdim=True), p[:, :1] * q[:, 1:] + q[:, :1] * p[:, 1:]
    return torch.cat([w, v + torch.linalg.cross(p[:, 1:], q[:, 1:])], -1)


def _conjugate(q: Tensor) -> Tensor:
    return q * q.new_tensor([1.0, -1.0, -1.0, -1.0])


def _log(q: Tensor) -> Tensor:
    """Unit quaternions (N, 4) -> half the rotation vectors (N, 3), of the shorter way."""
    q = torch.where(q[:, :1] < 0, -q, q)
    sine = q[:, 1:].norm(dim=-1, keepdim=True)
    return q[:, 1:] * torch.where(sine < 1e-12, 1.0, torch.atan2(sine, q[:, :1]) / sine.clamp(min=1e-12))


def _exp(half: Tensor) -> Tensor:
    angle = half.norm(dim=-1, keepdim=True)
    return torch.cat([angle.cos(), half * torch.where(angle < 1e-12, 1.0, angle.sin() / angle.clamp(min=1e-12))], -1)


def save_camera_path(path: Path, camera_path: CameraPath) -> None:
    """Write a path given in world units, whole or not at all. Raises UserError if the disk refuses."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "width": camera_path.width,
        "height": camera_path.height,
        "seconds": camera_path.seconds,
        "closed": camera_path.closed,
        "keys": [{"camera_to_world": k.camera_to_world.tolist(), "fov_y": k.fov_y} for k in camera_path.keys],
    }
    text = json.dumps(content, indent=1) + "\n"

    def write(temporary: Path) -> None:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")

    write_whole(path, write)


def read_camera_path(path: Path) -> CameraPath:
    """What ``save_camera_path`` wrote, in world units. Raises UserError naming the file and what is wrong with it."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a camera path, could not read it ({error}); record one with `polyfield view`"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f'{path}: expected a camera path with "format": "{FORMAT}"; record one with `polyfield view`')
    if content.get("version") != VERSION:
        raise UserError(
            f"{path}: version: expected {VERSION}, got {content.get('version')}; use the polyfield that wrote it"
        )
    keys = content.get("keys")
    if not isinstance(keys, list) or not keys:
        raise UserError(f"{path}: keys: expected at least one key, got none; add keys in the viewer and save again")
    size = {name: int(_number(content, name, path, least=1)) for name in ("width", "height")}
    seconds = _number(content, "seconds", path, least=1e-3)
    return CameraPath(
        tuple(_key(k, f"{path}: keys[{i}]") for i, k in enumerate(keys)),
        **size,
        seconds=seconds,
        closed=bool(content.get("closed")),
    )


def _number(content: dict[str, Any], name: str, where: Path | str, least: float) -> float:
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise UserError(f"{where}: {name}: expected a number of at least {least:g}, got {value!r}")
    return float(value)


def _key(entry: Any, where: str) -> Key:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object with camera_to_world and fov_y, got {entry!r}")
    try:
        pose = torch.tensor(entry.get("camera_to_world"), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: camera_to_world: expected 4 rows of 4 numbers ({error})") from error
    if pose.shape != (4, 4) or not bool(pose.isfinite().all()):
        raise UserError(f"{where}: camera_to_world: expected 4 rows of 4 finite numbers, got shape {tuple(pose.shape)}")
    rotation = pose[:3, :3]
    if float((rotation @ rotation.T - torch.eye(3)).abs().max()) > 1e-3 or float(torch.linalg.det(rotation)) < 0:
        raise UserError(
            f"{where}: camera_to_world: expected a rotation in the upper left 3 x 3; give a rigid pose without scale"
        )
    fov = _number(entry, "fov_y", where, least=1e-3)
    if fov >= math.pi:
        raise UserError(f"{where}: fov_y: expected radians below pi, got {fov}")
    return Key(pose, fov)


def load_camera_path(path: Path | str, frames: int, scene_to_world: Tensor | None = None) -> list[Camera]:
    """``frames`` cameras along a recorded path, in world units; in the scene's frame if ``scene_to_world`` is given.

    Raises UserError naming the file if it is no camera path.
    """
    recorded = read_camera_path(Path(path))
    if scene_to_world is not None:
        recorded = recorded.transformed(transforms.similarity_inverse(scene_to_world.double()))
    return recorded.cameras(frames)


def _center_and_distance(scene: Scene) -> tuple[Tensor, float]:
    """The point that the cameras look at most nearly together (least squares), and its median distance from them."""
    cameras = [f.camera for f in scene.frames]
    eyes, forwards = (
        torch.stack([c.position for c in cameras]).double(),
        torch.stack([c.forward for c in cameras]).double(),
    )
    across = torch.eye(3, dtype=torch.float64) - forwards[:, :, None] * forwards[:, None, :]
    # A little pull to the origin keeps parallel cameras (which look at no common point) from running off to infinity.
    matrix = across.mean(0) + 1e-3 * torch.eye(3, dtype=torch.float64)
    center = torch.linalg.solve(matrix, (across @ eyes[:, :, None]).mean(0)[:, 0])
    return center, float((eyes - center).norm(dim=-1).median())


def orbit_of(scene: Scene, frames: int) -> list[Camera]:
    """Once around what the photographs look at, at their median distance and height, in the scene's frame."""
    center, distance = _center_and_distance(scene)
    up = scene.up.double()
    offsets = torch.stack([f.camera.position for f in scene.frames]).double() - center
    elevation = float(torch.asin(((offsets @ up) / offsets.norm(dim=-1).clamp(min=1e-9)).clamp(-1, 1)).median())
    poses = transforms.orbit(center, distance, frames, max(min(elevation, 1.2), -1.2), up).float()
    return [_like(scene, pose) for pose in poses]


def spiral_of(scene: Scene, frames: int) -> list[Camera]:
    """Circles about the middle photograph, within the spread of the others, in the scene's frame."""
    center, distance = _center_and_distance(scene)
    eyes = torch.stack([f.camera.position for f in scene.frames]).double()
    middle = scene.frames[int((eyes - eyes.mean(0)).norm(dim=-1).argmin())].camera
    pose = middle.camera_to_world.double()
    local = (eyes - pose[:3, 3]) @ pose[:3, :3]
    radii = local.abs().quantile(0.6, dim=0).clamp(max=0.3 * distance) * local.new_tensor([1.0, 1.0, 0.3])
    focus = float((center - pose[:3, 3]) @ pose[:3, 2])
    focus = focus if focus > 0.1 * distance else distance
    return [_like(scene, p) for p in transforms.spiral(pose, focus, radii, frames).float()]


def _like(scene: Scene, pose: Tensor) -> Camera:
    """A pinhole at ``pose`` with the first photograph's size and focal length."""
    first = scene.frames[0].camera
    wide = min(2 * math.atan(first.width / 2 / float(first.K[0, 0])), 2.0)
    return Camera.perspective(first.width, first.height, wide, pose)
