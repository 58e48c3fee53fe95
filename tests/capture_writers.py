"""A capture whose cameras are known, written in every format that polyfield reads.

The photographs are ramps: red is 10 times the x of a pixel's centre, green 10 times its y, so that a picture says where
it shows what, to a twentieth of a pixel, however it has been shrunk or straightened since.
"""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from polyfield.geometry import Camera, CameraModel
from polyfield.geometry.cameras import intrinsics
from polyfield.geometry.transforms import (
    look_at,
    matrix_to_quaternion,
    opengl_to_opencv,
    rigid_inverse,
    similarity,
    transform_poses,
)

UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
CENTER = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
WIDTH, HEIGHT = 24, 20
LENSES = {
    "SIMPLE_PINHOLE": (CameraModel.PINHOLE, None),
    "PINHOLE": (CameraModel.PINHOLE, None),
    "SIMPLE_RADIAL": (CameraModel.OPENCV, [0.06, 0, 0, 0]),
    "RADIAL": (CameraModel.OPENCV, [0.06, -0.02, 0, 0]),
    "OPENCV": (CameraModel.OPENCV, [0.06, -0.02, 0.002, -0.003]),
    "FULL_OPENCV": (CameraModel.OPENCV, [0.06, -0.02, 0.002, -0.003, 0.01, 0.03, -0.01, 0.002]),
    "OPENCV_FISHEYE": (CameraModel.FISHEYE, [0.04, -0.01, 0.002, -0.001]),
    "SIMPLE_RADIAL_FISHEYE": (CameraModel.FISHEYE, [0.04, 0, 0, 0]),
    "RADIAL_FISHEYE": (CameraModel.FISHEYE, [0.04, -0.01, 0, 0]),
}
COLMAP_NUMBERS = {
    "SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "OPENCV_FISHEYE": 5,
    "FULL_OPENCV": 6, "FOV": 7, "SIMPLE_RADIAL_FISHEYE": 8, "RADIAL_FISHEYE": 9, "THIN_PRISM_FISHEYE": 10,
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A data set on disk, and what is true of it."""

    root: Path
    cameras: dict[str, Camera]  # by the frame's name; world units
    points: torch.Tensor | None = None  # (N, 3) world: those that the scene should have


def poses(count: int = 9) -> list[torch.Tensor]:
    """Cameras around CENTER, each a little elsewhere and askew."""
    rng = np.random.default_rng(1)
    found = []
    for i in range(count):
        angle = 2 * np.pi * i / count
        offset = torch.tensor([4 * np.cos(angle), 4 * np.sin(angle), 1.5 + rng.uniform(-0.3, 0.3)])
        target = CENTER + torch.from_numpy(rng.uniform(-0.2, 0.2, 3))
        up = UP + 0.1 * torch.from_numpy(rng.normal(size=3))
        found.append(look_at(CENTER + offset.double(), target, up))
    return found


def truth(model: str = "PINHOLE", count: int = 9, *, width: int = WIDTH, height: int = HEIGHT, square: bool = False,
          middle: bool = False) -> list[Camera]:  # fmt: skip
    """Cameras with the lens of a COLMAP model; ``square`` pixels, principal point in the ``middle`` where asked."""
    one_focal = model.startswith("SIMPLE") or model in ("RADIAL", "RADIAL_FISHEYE")
    fx, fy = (26.0, 26.0) if one_focal or square else (26.0, 27.0)
    cx, cy = (width / 2, height / 2) if middle else (width / 2 + 0.7, height / 2 - 0.4)
    kind, lens = LENSES[model]
    distortion = None if lens is None else torch.tensor(lens, dtype=torch.float64)
    return [Camera(intrinsics(fx, fy, cx, cy, p), p, width, height, kind, distortion) for p in poses(count)]


def paint(path: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """The ramp."""
    y, x = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([10 * x, 10 * y, np.full_like(x, sum(map(ord, path.name)) % 7 * 20)], -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.round().astype(np.uint8)).save(path)


def some_points(count: int = 40) -> np.ndarray:
    """(N, 3) world, about CENTER."""
    return CENTER.numpy() + np.random.default_rng(2).uniform(-0.7, 0.7, (count, 3))


def colmap_params(model: str, camera: Camera) -> list[float]:
    K, k = camera.K, [] if camera.distortion is None else camera.distortion.tolist()
    focal = [float(K[0, 0])] if model.startswith("SIMPLE") or model in ("RADIAL", "RADIAL_FISHEYE") else [
        float(K[0, 0]), float(K[1, 1])]  # fmt: skip
    lens = {"SIMPLE_RADIAL": k[:1], "RADIAL": k[:2], "SIMPLE_RADIAL_FISHEYE": k[:1], "RADIAL_FISHEYE": k[:2]}
    return [*focal, float(K[0, 2]), float(K[1, 2]), *lens.get(model, k)]


def colmap_pose(camera: Camera) -> tuple[list[float], list[float]]:
    world_to_camera = camera.world_to_camera
    return matrix_to_quaternion(world_to_camera[:3, :3]).tolist(), world_to_camera[:3, 3].tolist()


def write_colmap(folder: Path, model: str = "OPENCV", *, binary: bool = False, inside: str = "sparse/0") -> Written:
    """Two cameras, one of them upright, and images in sub-folders; points of which three are bad."""
    lying, standing = truth(model), truth(model, width=HEIGHT, height=WIDTH)
    cameras = [standing[i] if i % 3 == 1 else lying[i] for i in range(9)]
    names = [f"{'b' if i % 3 == 1 else 'a a'}/{i:03d}.png" for i in range(9)]
    for name, camera in zip(names, cameras, strict=True):
        paint(folder / "images" / name, camera.width, camera.height)
    points = some_points()
    errors = np.full(len(points), 0.5)
    errors[0] = 50.0
    tracks = [[(1, 0), (2, 0), (3, 1)] if i not in (1, 2) else [(1, 0), (2, 0)] for i in range(len(points))]
    keys = [(3.25, 4.5, 7), (1.5, 2.0, -1)]
    (folder / inside).mkdir(parents=True, exist_ok=True)
    writer = _colmap_binary if binary else _colmap_text
    writer(folder / inside, model, {1: lying[0], 4: standing[0]}, names, cameras, keys, points, errors, tracks)
    return Written(folder, dict(zip(names, cameras, strict=True)), torch.from_numpy(points[3:]))


def _colmap_text(folder, model, intrinsic, names, cameras, keys, points, errors, tracks) -> None:
    lines = ["# a comment"]
    for number, camera in intrinsic.items():
        params = " ".join(map(repr, colmap_params(model, camera)))
        lines.append(f"{number} {model} {camera.width} {camera.height} {params}")
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n")
    lines = ["# two lines each"]
    for i, (name, camera) in enumerate(zip(names, cameras, strict=True)):
        quat, shift = colmap_pose(camera)
        head = " ".join(map(repr, [*quat, *shift]))
        lines.append(f"{i + 1} {head} {1 if camera.width == WIDTH else 4} {name}")
        lines.append(" ".join(f"{x} {y} {p}" for x, y, p in keys) if i else "")
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    lines = ["# points"]
    for i, (point, error, track) in enumerate(zip(points.tolist(), errors, tracks, strict=True)):
        words = " ".join(f"{a} {b}" for a, b in track)
        lines.append(f"{i + 5} {' '.join(map(repr, point))} 255 {i} 0 {error} {words}")
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")


def _colmap_binary(folder, model, intrinsic, names, cameras, keys, points, errors, tracks) -> None:
    data = struct.pack("<Q", len(intrinsic))
    for number, camera in intrinsic.items():
        params = colmap_params(model, camera)
        data += struct.pack("<IiQQ", number, COLMAP_NUMBERS[model], camera.width, camera.height)
        data += struct.pack(f"<{len(params)}d", *params)
    (folder / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", len(names))
    for i, (name, camera) in enumerate(zip(names, cameras, strict=True)):
        quat, shift = colmap_pose(camera)
        data += struct.pack("<I7dI", i + 1, *quat, *shift, 1 if camera.width == WIDTH else 4)
        data += name.encode() + b"\0" + struct.pack("<Q", len(keys) if i else 0)
        for x, y, p in keys if i else []:
            data += struct.pack("<ddq", x, y, p)
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(points))
    for i, (point, error, track) in enumerate(zip(points.tolist(), errors, tracks, strict=True)):
        data += struct.pack("<Q3d3BdQ", i + 5, *point, 255, i, 0, error, len(track))
        data += b"".join(struct.pack("<II", *pair) for pair in track)
    (folder / "points3D.bin").write_bytes(data)


def write_neus(folder: Path) -> Written:
    """Matrices in the pixel convention of NeuS; the unit sphere lies about CENTER, 1.3 units wide."""
    scale = torch.eye(4, dtype=torch.float64)
    scale[:3, :3] *= 1.3
    scale[:3, 3] = CENTER
    arrays, cameras = {}, {}
    for i, camera in enumerate(truth()):
        K = camera.K.clone()
        K[:2, 2] -= 0.5
        projection = torch.eye(4, dtype=torch.float64)
        projection[:3] = K @ camera.world_to_camera[:3] * 7.0
        arrays[f"world_mat_{i}"], arrays[f"scale_mat_{i}"] = projection.numpy(), scale.numpy()
        paint(folder / f"image/{i:06d}.png")
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[3:-3, 3:-3] = 255
        (folder / "mask").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / f"mask/{i:03d}.png")
        cameras[f"{i:06d}.png"] = camera
    np.savez(folder / "cameras_sphere.npz", **arrays)
    return Written(folder, cameras)


def write_llff(folder: Path) -> Written:
    """Poses of images four times larger than those that are there."""
    rows, cameras = [], {}
    for i, camera in enumerate(truth(square=True, middle=True)):
        pose = camera.camera_to_world
        columns = [pose[:3, 1], pose[:3, 0], -pose[:3, 2], pose[:3, 3]]
        size = torch.tensor([4.0 * HEIGHT, 4.0 * WIDTH, 4 * 26.0], dtype=torch.float64)
        rows.append([*torch.stack([*columns, size], 1).flatten().tolist(), 2.5, 7.0])
        paint(folder / f"images_4/{i:03d}.png")
        cameras[f"{i:03d}.png"] = camera
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return Written(folder, cameras)


def write_opensfm(folder: Path, kind: str = "brown") -> Written:
    """A brown or fisheye_opencv camera, points, and a smaller reconstruction besides."""
    model = {"brown": "OPENCV", "fisheye_opencv": "OPENCV_FISHEYE", "perspective": "SIMPLE_RADIAL"}[kind]
    size, shots, cameras = max(WIDTH, HEIGHT), {}, {}
    for i, camera in enumerate(truth(model, middle=kind == "perspective")):
        world_to_camera = camera.world_to_camera
        quat = matrix_to_quaternion(world_to_camera[:3, :3])
        angle = 2 * torch.acos(quat[0].clamp(-1, 1))
        axis = quat[1:] / quat[1:].norm() * angle
        name = f"{i}.png"
        shots[name] = {"camera": "c", "rotation": axis.tolist(), "translation": world_to_camera[:3, 3].tolist()}
        paint(folder / "images" / name)
        cameras[name] = camera
    first = next(iter(cameras.values()))
    k = first.distortion.tolist()
    values = {"projection_type": kind, "width": WIDTH, "height": HEIGHT}
    if kind == "perspective":
        values |= {"focal": float(first.K[0, 0]) / size, "k1": k[0], "k2": k[1]}
    else:
        values |= {
            "focal_x": float(first.K[0, 0]) / size, "focal_y": float(first.K[1, 1]) / size,
            "c_x": (float(first.K[0, 2]) - WIDTH / 2) / size, "c_y": (float(first.K[1, 2]) - HEIGHT / 2) / size,
        }  # fmt: skip
        names = ("k1", "k2", "k3", "k4") if kind == "fisheye_opencv" else ("k1", "k2", "p1", "p2")
        values |= dict(zip(names, k, strict=True))
    points = some_points(5)
    stored = {str(i): {"coordinates": p, "color": [255, 0, 51]} for i, p in enumerate(points.tolist())}
    whole = {"cameras": {"c": values}, "shots": shots, "points": stored}
    less = {"cameras": {"c": values}, "shots": {"x.png": next(iter(shots.values()))}, "points": {}}
    (folder / "reconstruction.json").write_text(json.dumps([less, whole]))
    return Written(folder, cameras, torch.from_numpy(points))


def write_polycam(folder: Path) -> Written:
    """Keyframes with depths of half the size."""
    cameras = {}
    for i, camera in enumerate(truth()):
        pose = opengl_to_opencv(camera.camera_to_world)
        values = {f"t_{a}{b}": float(pose[a, b]) for a in range(3) for b in range(4)}
        K = camera.K
        values |= {"fx": float(K[0, 0]), "fy": float(K[1, 1]), "cx": float(K[0, 2]), "cy": float(K[1, 2]),
                   "width": WIDTH, "height": HEIGHT}  # fmt: skip
        for part in ("cameras", "depth"):
            (folder / "keyframes" / part).mkdir(parents=True, exist_ok=True)
        (folder / f"keyframes/cameras/{100 + i}.json").write_text(json.dumps(values))
        paint(folder / f"keyframes/images/{100 + i}.png")
        depth = np.full((HEIGHT // 2, WIDTH // 2), 3500, np.uint16)
        Image.fromarray(depth).save(folder / f"keyframes/depth/{100 + i}.png")
        cameras[f"{100 + i}.png"] = camera
    return Written(folder, cameras)


def write_record3d(folder: Path) -> Written:
    """Twelve frames, so that sorting by name would exchange them; K by columns."""
    listed, cameras = [], {}
    for i, camera in enumerate(truth(count=12)):
        pose = opengl_to_opencv(camera.camera_to_world)
        w, x, y, z = matrix_to_quaternion(pose[:3, :3]).tolist()
        listed.append([x, y, z, w, *pose[:3, 3].tolist()])
        paint(folder / f"rgb/{i}.png")
        cameras[f"{i}.png"] = camera
    K = next(iter(cameras.values())).K.T.flatten().tolist()
    (folder / "metadata.json").write_text(json.dumps({"w": WIDTH, "h": HEIGHT, "K": K, "poses": listed, "fps": 60}))
    return Written(folder, cameras)


def write_scannet(folder: Path) -> Written:
    """Poses as text, one of them lost; depths with another principal point; pixels counted from centres."""
    cameras = {}
    for part in ("pose", "intrinsic", "depth"):
        (folder / part).mkdir(parents=True)
    for i, camera in enumerate(truth(count=12)):
        paint(folder / f"color/{i}.png")
        Image.fromarray(np.full((10, 12), 3500, np.uint16)).save(folder / f"depth/{i}.png")
        rows = np.full((4, 4), -np.inf) if i == 5 else camera.camera_to_world.numpy()
        np.savetxt(folder / f"pose/{i}.txt", rows, fmt="%.17g")
        if i != 5:
            cameras[f"{i}.png"] = camera
    K = np.eye(4)
    K[:3, :3] = truth()[0].K.numpy()
    K[:2, 2] -= 0.5
    np.savetxt(folder / "intrinsic/intrinsic_color.txt", K, fmt="%.17g")
    K[:2, :3] /= 2
    np.savetxt(folder / "intrinsic/intrinsic_depth.txt", K, fmt="%.17g")
    return Written(folder, cameras)


def write_metashape(folder: Path, kind: str = "frame") -> Written:
    """Chunk coordinates that a similarity leads to the world; one camera not aligned, one in a group."""
    turn = look_at(torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5]).double(), UP)[:3, :3]
    to_world = similarity(2.5, turn, torch.tensor([10.0, -3.0, 1.0]).double())
    to_chunk = torch.linalg.inv(to_world)
    cameras, rows = {}, []
    for i, camera in enumerate(truth("OPENCV" if kind == "frame" else "OPENCV_FISHEYE")):
        pose = transform_poses(to_chunk, camera.camera_to_world)
        text = " ".join(map(repr, pose.flatten().tolist()))
        row = f'<camera id="{i}" sensor_id="0" component_id="0" label="IMG {i}"><transform>{text}</transform></camera>'
        rows.append(f'<group id="0">{row}</group>' if i == 4 else row)
        paint(folder / f"images/IMG {i}.png")
        cameras[f"IMG {i}.png"] = camera
    K, k = camera.K, camera.distortion.tolist()
    calibration = {
        "f": K[1, 1], "cx": K[0, 2] - WIDTH / 2, "cy": K[1, 2] - HEIGHT / 2, "b1": K[0, 0] - K[1, 1],
        **dict(zip(("k1", "k2", "p2", "p1") if kind == "frame" else ("k1", "k2", "k3", "k4"), k, strict=True)),
    }  # fmt: skip
    fields = "".join(f"<{name}>{float(value)!r}</{name}>" for name, value in calibration.items())
    matrix = " ".join(map(repr, turn.flatten().tolist()))
    (folder / "cameras.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n<document version="2.0.0"><chunk label="Chunk 1" enabled="true">'
        f'<sensors><sensor id="0" type="{kind}"><resolution width="{WIDTH}" height="{HEIGHT}"/>'
        f'<calibration type="frame" class="initial"><f>1</f></calibration>'
        f'<calibration type="frame" class="adjusted">{fields}</calibration></sensor></sensors>'
        f"<cameras>{''.join(rows)}<camera id='99' sensor_id='0' label='IMG 99'/></cameras>"
        f"<transform><rotation>{matrix}</rotation><translation>10.0 -3.0 1.0</translation><scale>2.5</scale>"
        "</transform></chunk></document>"
    )
    return Written(folder, cameras)


def write_nerfstudio(folder: Path) -> Written:
    """``ply_file_path`` and ``applied_transform``: world axes (x, y, z) are the file's (y, z, x), with a shift."""
    applied = torch.tensor([[0, 1.0, 0, 0.5], [0, 0, 1.0, 0], [1.0, 0, 0, -1], [0, 0, 0, 1]], dtype=torch.float64)
    frames, cameras = [], {}
    first = truth("OPENCV")[0]
    for i, camera in enumerate(truth("OPENCV")):
        pose = transform_poses(applied, camera.camera_to_world)
        name = f"images/{i:03d}.png"
        frames.append({"file_path": name, "transform_matrix": opengl_to_opencv(pose).tolist()})
        paint(folder / name)
        cameras[name] = camera
    points = some_points(6)
    moved = points @ applied[:3, :3].numpy().T + applied[:3, 3].numpy()
    rows = "".join(f"{' '.join(map(repr, p))} 255 0 51\n" for p in moved.tolist())
    header = "".join(f"property double {a}\n" for a in "xyz") + "".join(
        f"property uchar {c}\n" for c in ("red", "green", "blue")
    )
    (folder / "sparse.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 6\n{header}end_header\n{rows}")
    K, k = first.K, first.distortion.tolist()
    head = {
        "camera_model": "OPENCV", "w": WIDTH, "h": HEIGHT, "fl_x": float(K[0, 0]), "fl_y": float(K[1, 1]),
        "cx": float(K[0, 2]), "cy": float(K[1, 2]), **dict(zip(("k1", "k2", "p1", "p2"), k, strict=True)),
        "applied_transform": applied[:3].tolist(), "ply_file_path": "sparse.ply", "frames": frames,
    }  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps(head))
    return Written(folder, cameras, torch.from_numpy(points))


def write_panoramas(folder: Path) -> Written:
    """Equirectangular images by way of OpenSfM."""
    shots, cameras = {}, {}
    for i, pose in enumerate(poses()):
        world_to_camera = rigid_inverse(pose)
        quat = matrix_to_quaternion(world_to_camera[:3, :3])
        axis = quat[1:] / quat[1:].norm() * 2 * torch.acos(quat[0].clamp(-1, 1))
        shots[f"{i}.png"] = {"camera": "p", "rotation": axis.tolist(), "translation": world_to_camera[:3, 3].tolist()}
        paint(folder / f"images/{i}.png", 24, 12)
        cameras[f"{i}.png"] = Camera.equirectangular(24, 12, pose)
    camera = {"projection_type": "spherical", "width": 24, "height": 12}
    (folder / "reconstruction.json").write_text(json.dumps([{"cameras": {"p": camera}, "shots": shots}]))
    return Written(folder, cameras)


def write_panorama_json(folder: Path) -> Written:
    """Equirectangular images by way of transforms.json."""
    frames, cameras = [], {}
    for i, pose in enumerate(poses()):
        name = f"{i}.png"
        frames.append({"file_path": name, "transform_matrix": opengl_to_opencv(pose).tolist()})
        paint(folder / name, 24, 12)
        cameras[name] = Camera.equirectangular(24, 12, pose)
    (folder / "transforms.json").write_text(json.dumps({"camera_model": "EQUIRECTANGULAR", "frames": frames}))
    return Written(folder, cameras)


def write_mvsnet(folder: Path) -> Written:
    """As BlendedMVS: world-to-camera and K as text, masked copies, depths that grow from the first row to the last."""
    (folder / "cams").mkdir(parents=True)
    (folder / "rendered_depth_maps").mkdir()
    cameras = {}
    for i, camera in enumerate(truth()):
        rows = [" ".join(map(repr, row)) for row in camera.world_to_camera.tolist()]
        K = [" ".join(map(repr, row)) for row in camera.K.tolist()]
        text = "\n".join(["extrinsic", *rows, "", "intrinsic", *K, "", "2.5 0.01 128 7.0", ""])
        (folder / f"cams/{i:08d}_cam.txt").write_text(text)
        paint(folder / f"blended_images/{i:08d}.png")
        paint(folder / f"blended_images/{i:08d}_masked.png")
        depth = np.repeat(np.linspace(3, 4, HEIGHT, dtype="<f4")[:, None], WIDTH, 1)
        content = f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + depth[::-1].tobytes()
        (folder / f"rendered_depth_maps/{i:08d}.pfm").write_bytes(content)
        cameras[f"{i:08d}.png"] = camera
    (folder / "cams/pair.txt").write_text("9\n0\n1 1 1.0\n")
    return Written(folder, cameras)


def write_seven_scenes(folder: Path) -> Written:
    """Two sequences, the second held out, a lost pose; depths of which a corner is unknown; pixels from centres."""
    cameras = {}
    for i, camera in enumerate(truth(count=12)):
        name = f"seq-0{1 + i // 6}/frame-{i:06d}"
        paint(folder / f"{name}.color.png")
        depth = np.full((10, 12), 3500, np.uint16)
        depth[0, 0] = 65535
        Image.fromarray(depth).save(folder / f"{name}.depth.png")
        rows = np.full((4, 4), -np.inf) if i == 5 else camera.camera_to_world.numpy()
        np.savetxt(folder / f"{name}.pose.txt", rows, fmt="%.17g")
        if i != 5:
            cameras[f"{name}.color.png"] = camera
    K = camera.K.numpy().copy()
    K[:2, 2] -= 0.5
    np.savetxt(folder / "camera-intrinsics.txt", K, fmt="%.17g")
    (folder / "TestSplit.txt").write_text("sequence2\n")
    return Written(folder, cameras)


def write_bundle_fusion(folder: Path) -> Written:
    """One sequence with ``info.txt``: K of colours, and of depths of half the size."""
    cameras = {}
    for i, camera in enumerate(truth()):
        paint(folder / f"frame-{i:06d}.color.png")
        Image.fromarray(np.full((10, 12), 3500, np.uint16)).save(folder / f"frame-{i:06d}.depth.png")
        np.savetxt(folder / f"frame-{i:06d}.pose.txt", camera.camera_to_world.numpy(), fmt="%.17g")
        cameras[f"frame-{i:06d}.color.png"] = camera
    K = np.eye(4)
    K[:3, :3] = camera.K.numpy()
    K[:2, 2] -= 0.5
    color = " ".join(map(repr, K.flatten().tolist()))
    K[:2, :3] /= 2
    depth = " ".join(map(repr, K.flatten().tolist()))
    text = f"m_versionNumber = 4\nm_calibrationColorIntrinsic = {color}\nm_calibrationDepthIntrinsic = {depth}\n"
    (folder / "info.txt").write_text(text)
    return Written(folder, cameras)


def write_r3d(folder: Path) -> Written:
    """The archive of a Record3D recording, in an order of its own, with depths that nobody can read."""
    written = write_record3d(folder / "open")
    with zipfile.ZipFile(folder / "a scan.r3d", "w") as archive:
        for i in range(11, -1, -1):
            archive.write(folder / f"open/rgb/{i}.png", f"rgbd/{i}.png")
            archive.writestr(f"rgbd/{i}.depth", b"bvx2")
        archive.write(folder / "open/metadata.json", "metadata")
    shutil.rmtree(folder / "open")
    return Written(folder / "a scan.r3d", written.cameras)


WRITERS = {
    "colmap": (write_colmap, lambda f: write_colmap(f, binary=True), lambda f: write_colmap(
        f, "RADIAL_FISHEYE", inside="")),
    "neus": (write_neus,),
    "llff": (write_llff,),
    "opensfm": (write_opensfm, lambda f: write_opensfm(f, "fisheye_opencv"), lambda f: write_opensfm(f, "perspective"),
                write_panoramas),
    "polycam": (write_polycam,),
    "record3d": (write_record3d,),
    "scannet": (write_scannet,),
    "metashape": (write_metashape, lambda f: write_metashape(f, "fisheye")),
    "transforms_json": (write_nerfstudio, write_panorama_json),
    "mvsnet": (write_mvsnet,),
    "seven_scenes": (write_seven_scenes, write_bundle_fusion),
    "r3d": (write_r3d,),
}  # fmt: skip
CASES = [(name, i) for name, writers in WRITERS.items() for i in range(len(writers))]
