"""What every data set format promises, on scenes that the tests write themselves; and every mistake a user can make."""

import importlib
import json
import math
import pkgutil
import struct
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polyfield.datasets
import pytest
import torch
from PIL import Image
from polyfield.datasets import images
from polyfield.datasets.depths import read_depth
from polyfield.datasets.normalize import focus_point
from polyfield.datasets.scene import MaskUse, Scene, SceneError, Split, open_scene
from polyfield.datasets.sfm.reconstruct import REPORT, VERSION, SfmReport, files_of
from polyfield.datasets.sfm.survey import survey
from polyfield.geometry import Camera, CameraModel
from polyfield.geometry.transforms import (
    look_at,
    opengl_to_opencv,
    orbit,
    rigid_inverse,
    similarity_scale,
    transform_points,
    transform_poses,
)

from tests.capture_writers import WRITERS, write_colmap

UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def ball(pose: torch.Tensor, center: torch.Tensor, radius: float, size: int, focal: float) -> np.ndarray:
    """(size, size, 4) uint8: a ball before nothing."""
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
    rays = Camera(K, pose, size, size).rays()
    to_center = center - rays.origins
    along = (to_center * rays.directions).sum(-1, keepdim=True)
    off = (to_center - along * rays.directions).norm(dim=-1)
    rgba = torch.zeros(size * size, 4, dtype=torch.uint8)
    rgba[off < radius] = torch.tensor([200, 100, 50, 255], dtype=torch.uint8)
    return rgba.reshape(size, size, 4).numpy()


def capture(
    folder: Path,
    count: int = 9,
    *,
    center=(0.0, 0.0, 0.0),
    radius: float = 4.0,
    size: int = 24,
    rgba: bool = False,
    **head,
) -> dict:
    """A transforms.json of an orbit round a point, with images that differ; returned so that a test can spoil it."""
    middle = torch.tensor(center, dtype=torch.float64)
    frames = []
    for i, pose in enumerate(orbit(middle, radius, count, 0.5, UP)):
        name = f"images/{i:03d}.png"
        picture = ball(pose, middle, 0.8, size, size * 1.2)
        if not rgba:
            picture = np.random.default_rng(i).integers(0, 255, (size, size, 3), dtype=np.uint8)
        save(folder / name, picture)
        frames.append({"file_path": name, "transform_matrix": opengl_to_opencv(pose).tolist()})
    data = {"fl_x": size * 1.2, "cx": size / 2, "cy": size / 2, "w": size, "h": size, "frames": frames, **head}
    write(folder, data)
    return data


def write(folder: Path, data: dict, name: str = "transforms.json") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(data))


def blender(folder: Path) -> Path:
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        data = capture(folder / "scratch", count, rgba=True)
        for frame in data["frames"]:
            old = folder / "scratch" / frame["file_path"]
            stem = f"./{split}/r_{old.stem}"
            (folder / split).mkdir(exist_ok=True)
            old.rename(folder / f"{stem}.png")
            frame["file_path"] = stem
        write(
            folder, {"camera_angle_x": 2 * math.atan(0.5 / 1.2), "frames": data["frames"]}, f"transforms_{split}.json"
        )
    return folder


def instant_ngp(folder: Path) -> Path:
    capture(folder, k1=0.05, k2=-0.02, p1=0.001, p2=-0.0005, aabb_scale=4)
    return folder


def nerfstudio(folder: Path) -> Path:
    data = capture(folder, center=(1.0, 2.0, 3.0), camera_model="OPENCV", k1=0.01)
    for i, frame in enumerate(data["frames"]):
        mask = np.full((24, 24), 255, np.uint8)
        mask[:4] = 0
        save(folder / f"masks/{i}.png", mask)
        save(folder / f"depth/{i}.png", np.full((24, 24), 3500, np.uint16))
        frame.update(mask_path=f"masks/{i}.png", depth_file_path=f"depth/{i}.png", fl_x=28.8 + 0.1 * i)
    write(folder, data)
    return folder


def demo_example(_: Path) -> Path:
    return Path("demo")


def _rooted(writer):
    def make(folder: Path) -> Path:
        return writer(folder / "capture").root

    make.__name__ = getattr(writer, "__name__", "writer").strip("<>")
    return make


def found_poses(folder: Path) -> Path:
    """Photographs whose poses `polyfield process` has found."""
    root = write_colmap(folder / "photos", inside="polyfield/sparse/0").root
    report = SfmReport(9, 9, ("one",), 100, 3.0, 0.5, 10.0, 36, 36, (), ())
    asked = {"files": files_of(root, survey(root))}
    kept = {"version": VERSION, "asked": asked, "report": asdict(report)}
    (root / "polyfield" / REPORT).write_text(json.dumps(kept), encoding="utf-8")
    return root


# One or more examples per format: a new module without one fails test_every_format_has_an_example.
EXAMPLES = {
    **{name: tuple(_rooted(writer) for writer in writers[:1]) for name, writers in WRITERS.items()},
    "transforms_json": (blender, instant_ngp, nerfstudio),
    "demo": (demo_example,),
    "photos": (found_poses,),
}
CASES = [(module, make) for module, makers in EXAMPLES.items() for make in makers]


@pytest.fixture(scope="module", params=CASES, ids=[f"{module}-{make.__name__}" for module, make in CASES])
def example(request, tmp_path_factory):
    module, make = request.param
    folder = make(tmp_path_factory.mktemp(make.__name__))
    if module == "demo":
        from polyfield.datasets import demo

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo, "VIEWS", 10)
            patch.setattr(demo, "SIZE", 40)
            yield module, folder
    else:
        yield module, folder


def formats() -> list[str]:
    names = [m.name for m in pkgutil.iter_modules(polyfield.datasets.__path__)]
    return [n for n in names if hasattr(importlib.import_module(f"polyfield.datasets.{n}"), "matches")]


def test_every_format_has_an_example():
    assert sorted(EXAMPLES) == sorted(formats())


def test_contract(example):
    module, folder = example
    assert importlib.import_module(f"polyfield.datasets.{module}").matches(folder)
    scene = open_scene(folder)
    assert isinstance(scene, Scene)
    assert scene.name
    assert scene.train
    assert scene.test
    assert scene.near > 0
    assert scene.memory_bytes > 0
    half = 2.0 ** (scene.cascades - 1)
    assert scene.bounds.high.max() <= half
    assert scene.unbounded == (scene.cascades > 1)
    assert scene.scene_to_world.dtype == torch.float64
    linear = scene.scene_to_world[:3, :3] / similarity_scale(scene.scene_to_world)
    torch.testing.assert_close(linear @ linear.T, torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)
    for frame in scene.frames:
        camera = frame.camera
        rotation = camera.camera_to_world[:3, :3]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-5, rtol=0)
        assert float(torch.linalg.det(rotation)) > 0
        shape = (camera.height, camera.width)
        assert frame.colors.shape == (*shape, 3)
        assert frame.colors.dtype == torch.uint8
        for image, dtype in ((frame.alphas, torch.uint8), (frame.mask, torch.bool), (frame.depths, torch.float32)):
            assert image is None or (image.shape == shape and image.dtype == dtype)
        pixel, z_depth = camera.project(torch.zeros(1, 3))
        assert float(z_depth[0]) > 0
        assert bool((pixel[0] > 0).all() & (pixel[0] < torch.tensor([camera.width, camera.height])).all())
        over = frame.over((1.0, 1.0, 1.0))
        assert over.shape == (*shape, 3)
        assert 0 <= float(over.min()) <= float(over.max()) <= 1
        assert frame.pixels().colors.shape == (*shape, 3)
    counts = scene.cameras_seeing(torch.tensor([[0.0, 0.0, 0.0], [1e5, 1e5, -1e5]]))
    assert int(counts[0]) == len(scene.train)
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    counts = scene.cameras_seeing(points)
    for enough in (1, 2):
        assert torch.equal(scene.cameras_seeing(points, enough=enough), counts.clamp(max=enough))
    assert torch.allclose(scene.up.norm(), torch.ones(()))


def test_downscaling_scales_pixels_and_nothing_else(example):
    _, folder = example
    full, half = open_scene(folder), open_scene(folder, downscale=2)
    torch.testing.assert_close(half.scene_to_world, full.scene_to_world, atol=2e-2, rtol=2e-2)
    scale = float(similarity_scale(full.scene_to_world) / similarity_scale(half.scene_to_world))
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    moved = transform_points(torch.linalg.solve(half.scene_to_world, full.scene_to_world).float(), points)
    for a, b in zip(full.frames, half.frames, strict=True):
        assert (b.camera.width * 2, b.camera.height * 2) == (a.camera.width, a.camera.height)
        torch.testing.assert_close(b.camera.project(moved)[0] * 2, a.camera.project(points)[0], atol=2e-3, rtol=0)
        if a.depths is not None and a.name.startswith("images"):
            torch.testing.assert_close(b.depths * 1.0, a.depths[::2, ::2] * scale, atol=0.02, rtol=0.05)


def test_hold_out_every_eighth(tmp_path):
    capture(tmp_path, 18)
    scene = open_scene(tmp_path)
    assert [f.name for f in scene.test] == ["images/000.png", "images/008.png", "images/016.png"]
    assert len(scene.train) == 15
    assert len(open_scene(tmp_path, hold_out=0).train) == 18
    assert len(open_scene(tmp_path, hold_out=5).test) == 4


def test_frames_are_sorted_by_name_whatever_their_order(tmp_path):
    data = capture(tmp_path, 9)
    write(tmp_path, {**data, "frames": data["frames"][::-1]})
    assert [f.name for f in open_scene(tmp_path).test] == ["images/000.png", "images/008.png"]


def test_splits_of_nerfstudio_lists_and_of_files(tmp_path):
    data = capture(tmp_path / "lists", 6)
    names = [f["file_path"] for f in data["frames"]]
    write(
        tmp_path / "lists",
        {**data, "train_filenames": names[:3], "test_filenames": names[3:4], "val_filenames": names[4:5]},
    )
    scene = open_scene(tmp_path / "lists")
    assert [f.split for f in scene.frames] == [Split.TRAIN] * 3 + [Split.TEST, Split.VAL]
    scene = open_scene(blender(tmp_path / "files"))
    assert (len(scene.train), len(scene.test), len(scene.of(Split.VAL))) == (6, 3, 2)
    data = capture(tmp_path / "two", 6)
    write(tmp_path / "two", {**data, "frames": data["frames"][:2]}, "transforms_test.json")
    write(tmp_path / "two", {**data, "frames": data["frames"][2:]})
    scene = open_scene(tmp_path / "two")
    assert (len(scene.train), len(scene.test)) == (4, 2)
    assert len(open_scene(tmp_path / "two" / "transforms_test.json").frames) == 2


def test_intrinsics_of_every_flavour(tmp_path):
    data = capture(tmp_path, 4, size=20)
    bare = {k: v for k, v in data.items() if k not in ("fl_x", "cx", "cy", "w", "h")}
    write(tmp_path, {**bare, "camera_angle_x": 2 * math.atan(0.5), "camera_angle_y": 2 * math.atan(0.25)})
    torch.testing.assert_close(
        open_scene(tmp_path).frames[0].camera.K, torch.tensor([[20.0, 0, 10], [0, 40, 10], [0, 0, 1]])
    )
    frames = [dict(f, fl_x=30.0 + i, fl_y=31.0, cx=9.0, cy=11.5) for i, f in enumerate(data["frames"])]
    write(tmp_path, {**data, "frames": frames})
    for i, frame in enumerate(open_scene(tmp_path).frames):
        torch.testing.assert_close(frame.camera.K, torch.tensor([[30.0 + i, 0, 9], [0, 31, 11.5], [0, 0, 1]]))


@pytest.mark.parametrize(
    ("head", "model", "coefficients"),
    [
        ({"camera_model": "PINHOLE", "k1": 0.5}, CameraModel.PINHOLE, None),
        ({"camera_model": "SIMPLE_PINHOLE"}, CameraModel.PINHOLE, None),
        ({"camera_model": "SIMPLE_RADIAL", "k1": 0.1}, CameraModel.OPENCV, [0.1, 0, 0, 0]),
        (
            {"camera_model": "OPENCV", "k1": 0.1, "k2": 0.02, "p1": 0.01, "p2": 0.03},
            CameraModel.OPENCV,
            [0.1, 0.02, 0.01, 0.03],
        ),
        ({"k1": 0.1, "k3": 0.2}, CameraModel.OPENCV, [0.1, 0, 0, 0, 0.2]),
        ({"k1": 0.1, "k6": 0.2}, CameraModel.OPENCV, [0.1, 0, 0, 0, 0, 0, 0, 0.2]),
        ({"camera_model": "OPENCV"}, CameraModel.PINHOLE, None),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k4": 0.01}, CameraModel.FISHEYE, [0.1, 0, 0, 0.01]),
        ({"is_fisheye": True}, CameraModel.FISHEYE, [0, 0, 0, 0]),
        ({"camera_model": "EQUIRECTANGULAR"}, CameraModel.EQUIRECTANGULAR, None),
    ],
)
def test_camera_models(tmp_path, head, model, coefficients):
    capture(tmp_path, 3, **head)
    camera = open_scene(tmp_path).frames[0].camera
    assert camera.model is model
    if coefficients is None:
        assert camera.distortion is None
    else:
        torch.testing.assert_close(camera.distortion, torch.tensor(coefficients, dtype=torch.float32))


def test_pixels_that_a_fisheye_cannot_see_do_not_count(tmp_path):
    data = capture(tmp_path, 3, camera_model="OPENCV_FISHEYE")
    write(tmp_path, {**data, "fl_x": 3.0})
    mask = open_scene(tmp_path).frames[0].mask
    assert not bool(mask[0, 0])
    assert bool(mask[12, 12])


def test_poses_reach_world_units_again(tmp_path):
    applied = [[1.0, 0, 0, 0.5], [0, 0, 1.0, 0], [0, -1.0, 0, 2.0]]
    data = capture(tmp_path, 9, center=(5.0, -3.0, 2.0), applied_transform=applied, applied_scale=2.0)
    scene = open_scene(tmp_path)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] = torch.tensor(applied, dtype=torch.float64) * 2.0
    for entry, frame in zip(data["frames"], scene.frames, strict=True):
        world = transform_poses(scene.scene_to_world, frame.camera.camera_to_world.double())
        stored = opengl_to_opencv(torch.tensor(entry["transform_matrix"], dtype=torch.float64))
        torch.testing.assert_close(transform_points(matrix, world[:3, 3]), stored[:3, 3], atol=1e-5, rtol=1e-5)
        turn = matrix[:3, :3] / 2.0
        torch.testing.assert_close(turn @ world[:3, :3], stored[:3, :3], atol=1e-5, rtol=0)


def test_instant_ngp_unit_cube(tmp_path):
    data = capture(tmp_path, 9, aabb_scale=16)
    scene = open_scene(tmp_path)
    assert scene.cascades == 5
    assert float(scene.bounds.high[0]) == 16
    stored = torch.tensor(data["frames"][2]["transform_matrix"])[:3, 3]
    unit_cube = stored * 0.33 + 0.5
    torch.testing.assert_close(scene.frames[2].camera.position, unit_cube * 2 - 1, atol=1e-5, rtol=0)
    write(tmp_path, {**data, "aabb_scale": 1, "scale": 0.2, "offset": [0.1, 0.2, 0.3]})
    scene = open_scene(tmp_path)
    assert scene.cascades == 1
    unit_cube = stored * 0.2 + torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(scene.frames[2].camera.position, unit_cube * 2 - 1, atol=1e-5, rtol=0)


def test_blender_scenes_use_their_known_box(tmp_path):
    scene = open_scene(blender(tmp_path))
    torch.testing.assert_close(
        scene.scene_to_world, torch.diag(torch.tensor([1.5, 1.5, 1.5, 1.0], dtype=torch.float64))
    )
    assert scene.cascades == 1


@pytest.mark.parametrize("plain", [False, True])
def test_objects_are_found_by_their_silhouettes(tmp_path, plain):
    center = (12.0, -7.0, 3.0)
    data = capture(tmp_path, 24, center=center, radius=6.0, size=64, rgba=True)
    if plain:  # the same before a black backdrop, without alpha
        for frame in data["frames"]:
            rgba = np.asarray(Image.open(tmp_path / frame["file_path"]))
            save(tmp_path / frame["file_path"], rgba[..., :3] * (rgba[..., 3:] > 0))
    scene = open_scene(tmp_path)
    assert scene.has_alpha
    if plain:
        torch.testing.assert_close(scene.background, torch.zeros(3))
        cut = scene.frames[0].alphas
        assert cut[0, 0] == 0 and cut[32, 32] == 255 and 0 < float((cut > 0).float().mean()) < 0.5
    else:
        assert scene.background is None
    assert scene.cascades == 1
    torch.testing.assert_close(
        scene.scene_to_world[:3, 3], torch.tensor(center, dtype=torch.float64), atol=0.15, rtol=0
    )
    assert 0.8 < float(scene.scene_to_world[0, 0]) < 1.3


def test_captures_with_a_background_are_centred_on_their_subject(tmp_path):
    scene = open_scene(nerfstudio(tmp_path))
    torch.testing.assert_close(scene.scene_to_world[:3, 3], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert float(scene.scene_to_world[0, 0]) == pytest.approx(4.0 * 0.5 / 1.2, rel=0.02)
    assert scene.unbounded


def test_forward_facing_captures(tmp_path):
    data = capture(tmp_path, 9)
    eyes = torch.tensor([[x, 0.0, z] for x in (-0.5, 0.0, 0.5) for z in (-0.4, 0.0, 0.4)], dtype=torch.float64)
    poses = look_at(eyes, eyes + torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), UP)
    for frame, pose in zip(data["frames"], poses, strict=True):
        frame.update(transform_matrix=opengl_to_opencv(pose).tolist(), near=4.0, far=40.0)
    write(tmp_path, data)
    scene = open_scene(tmp_path)
    middle = 2 / (1 / 4.0 + 1 / 40.0)
    torch.testing.assert_close(scene.scene_to_world[:3, 3], torch.tensor([0.0, middle, 0.0], dtype=torch.float64))
    near_to_camera = float(scene.scene_to_world[0, 0]) * scene.near
    assert near_to_camera == pytest.approx(0.9 * 4.0)
    farthest = transform_points(
        torch.linalg.inv(scene.scene_to_world), torch.tensor([[0.0, 40.0, 0.0]], dtype=torch.float64)
    )
    assert bool(scene.bounds.contains(farthest.float()).all())


def test_masks_depths_and_their_units(tmp_path):
    folder = nerfstudio(tmp_path)
    scene = open_scene(folder)
    frame = scene.frames[0]
    assert not bool(frame.mask[:4].any())
    assert bool(frame.mask[4:].all())
    # 3500 millimetres along the optical axis, longer along slanted rays.
    z = (frame.camera.rays().at(frame.depths.reshape(-1)) - frame.camera.position) @ frame.camera.forward
    scale = float(similarity_scale(scene.scene_to_world))
    torch.testing.assert_close(z * scale, torch.full_like(z, 3.5), atol=1e-4, rtol=0)
    as_alpha = open_scene(folder, masks=MaskUse.ALPHA).frames[0]
    assert as_alpha.mask is None
    assert as_alpha.alphas[:4].max() == 0
    assert as_alpha.alphas[4:].min() == 255
    for i in range(9):
        np.save(folder / f"depth/{i}.npy", np.full((24, 24, 1), 2.0 if i else np.nan, np.float32))
    data = json.loads((folder / "transforms.json").read_text())
    for i, entry in enumerate(data["frames"]):
        entry["depth_file_path"] = f"depth/{i}.npy"
    write(folder, data)
    first, second = open_scene(folder).frames[:2]
    assert float(first.depths.max()) == 0
    assert float(second.depths.min()) * scale == pytest.approx(2.0, rel=1e-3)


def test_an_alpha_channel_that_says_nothing_is_dropped(tmp_path):
    data = capture(tmp_path, 3)
    for frame in data["frames"]:
        picture = np.asarray(Image.open(tmp_path / frame["file_path"]))
        save(tmp_path / frame["file_path"], np.concatenate([picture, np.full((24, 24, 1), 255, np.uint8)], -1))
    assert open_scene(tmp_path).frames[0].alphas is None


@pytest.mark.parametrize("mode", ["L", "P", "LA", "I;16", "CMYK"])
def test_other_pixel_formats(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        Image.fromarray(np.full((4, 6), 128 * 256, np.uint16)).save(path)
    else:
        Image.new("RGB", (6, 4), (128, 128, 128)).convert(mode).save(path)
    colors, alphas = images.read_image(path)
    assert colors.shape == (4, 6, 3)
    assert int((colors.int() - 128).abs().max()) <= (1 if mode != "P" else 40)  # a palette of 216 colours dithers
    assert (alphas is not None) == (mode == "LA")


TURNS = {  # of the pixels as stored, by EXIF orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def save_turned(path: Path, pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 98, "subsampling": 0}}.get(path.suffix, {})
    Image.fromarray(pixels).save(path, exif=exif, **options)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_photographs_are_turned_as_their_exif_says(tmp_path, ending, orientation):
    path = tmp_path / f"x{ending}"
    stored = np.kron(np.random.default_rng(3).integers(0, 256, (2, 3, 1)), np.ones((8, 8, 3))).astype(np.uint8)
    save_turned(path, stored, orientation)
    want = TURNS[orientation](stored)
    facts = images.image_facts(path)
    assert (facts.height, facts.width) == want.shape[:2]
    assert facts.turned == (orientation >= 5)
    colors, _ = images.read_image(path)
    assert colors.shape == want.shape
    assert int(np.abs(colors.numpy().astype(int) - want).max()) <= (8 if ending == ".jpg" else 0)
    assert np.array_equal(images.read_silhouette(path).numpy().shape, want.shape[:2])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12", b""])
def test_a_mangled_exif_says_nothing(tmp_path, exif):
    Image.new("RGB", (6, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert images.read_image(tmp_path / "x.jpg")[0].shape == (4, 6, 3)


def test_intrinsics_are_those_of_turned_photographs(tmp_path):
    data = capture(tmp_path, 4)
    stored = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    for frame in data["frames"]:
        frame["file_path"] = frame["file_path"].replace(".png", ".webp")
        save_turned(tmp_path / frame["file_path"], stored, 6)
    write(tmp_path, {**data, "w": 16, "h": 24, "cx": 8})
    frame = open_scene(tmp_path).frames[0]
    assert (frame.camera.width, frame.camera.height) == (16, 24)
    assert np.array_equal(frame.colors.numpy(), np.rot90(stored, -1))
    write(tmp_path, {**data, "w": 24, "h": 16, "cy": 8})
    message = (
        r"frame images/000.webp: w: expected 24 pixels as the intrinsics say, got an image of 16 x 24 when turned as "
        r"its EXIF orientation says; .* remove the tag from the images"
    )
    with pytest.raises(SceneError, match=message):
        open_scene(tmp_path)


def save_png_16(path: Path, pixels: np.ndarray, transparent: tuple[int, ...] = ()) -> None:
    """(H, W, C) uint16 as PNG, which Pillow cannot write for C > 1."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))
        + (chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits(tmp_path, channels):
    pixels = np.random.default_rng(1).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    save_png_16(tmp_path / "x.png", pixels)
    colors, alphas = images.read_image(tmp_path / "x.png")
    upper = (pixels >> 8).astype(np.uint8)
    assert np.array_equal(colors.numpy(), upper[..., :3] if channels >= 3 else upper[..., :1].repeat(3, -1))
    assert (alphas is not None) == (channels in (2, 4)) == (images.image_facts(tmp_path / "x.png").channels == 4)
    if alphas is not None:
        assert np.array_equal(alphas.numpy(), upper[..., -1])


def test_sixteen_bits_with_a_transparent_grey(tmp_path):
    save_png_16(tmp_path / "x.png", np.array([[[1000], [1001], [40000]]], np.uint16), (1000,))
    colors, alphas = images.read_image(tmp_path / "x.png")
    assert colors[0, :, 1].tolist() == [3, 3, 156]
    assert alphas.tolist() == [[0, 255, 255]]


def test_big_endian_grey(tmp_path):
    Image.frombytes("I;16B", (2, 1), b"\x43\x21\xff\xff").save(tmp_path / "x.tif")
    assert images.read_image(tmp_path / "x.tif")[0][0, :, 0].tolist() == [0x43, 0xFF]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bits_are_refused(tmp_path, dtype):
    Image.fromarray(np.zeros((4, 6), dtype)).save(tmp_path / "x.tif")
    for read in (images.read_image, images.read_mask):
        with pytest.raises(SceneError, match=r"x.tif: expected 8 or 16 bits per channel, got 32; convert"):
            read(tmp_path / "x.tif")


def test_palettes(tmp_path):
    """Colours and masks come from the palette's colours, not from its indices; one colour may be transparent."""
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 255, 255, 255, 200, 100, 0])
    picture.save(tmp_path / "x.png")
    colors, alphas = images.read_image(tmp_path / "x.png")
    assert colors.tolist() == [[[10, 20, 30], [255, 255, 255], [200, 100, 0]]]
    assert alphas is None
    assert images.read_mask(tmp_path / "x.png").tolist() == [[False, True, False]]
    picture.save(tmp_path / "y.png", transparency=1)
    colors, alphas = images.read_image(tmp_path / "y.png")
    assert colors[0, 2].tolist() == [200, 100, 0]
    assert alphas.tolist() == [[255, 0, 255]]


def test_masks_of_every_depth(tmp_path):
    wanted = np.array([[True, False, True], [False, False, True]])
    for name, pixels in {
        "bits": wanted,
        "labels": wanted.astype(np.uint8),
        "soft": np.where(wanted, 128, 127).astype(np.uint8),
        "deep": np.where(wanted, 0x8000, 0x7FFF).astype(np.uint16),
        "rgb": np.where(wanted, 255, 0).astype(np.uint8)[..., None].repeat(3, -1),
    }.items():
        save(tmp_path / f"{name}.png", pixels)
        assert np.array_equal(images.read_mask(tmp_path / f"{name}.png").numpy(), wanted), name
    assert np.array_equal(images.read_silhouette(tmp_path / "labels.png").numpy(), wanted * 255)
    save(tmp_path / "nothing.png", np.zeros((2, 3), np.uint8))
    assert not images.read_mask(tmp_path / "nothing.png").any()


def save_exr(path: Path, **channels: np.ndarray) -> None:
    exr = pytest.importorskip("OpenEXR")
    header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
    with exr.File(header, {name.replace("__", "."): values for name, values in channels.items()}) as file:
        file.write(str(path))


DEPTH = np.arange(12, dtype=np.float32).reshape(3, 4) / 4


@pytest.mark.parametrize(
    "channels",
    [
        {"Z": DEPTH},
        {"Whatever": DEPTH},
        {"V": DEPTH.astype(np.float16)},
        {"Layer__Depth__Z": DEPTH, "Layer__Combined__R": DEPTH * 2},
        {"R": DEPTH, "G": DEPTH, "B": DEPTH, "A": np.ones_like(DEPTH)},
    ],
)
def test_depths_in_exr(tmp_path, channels):
    save_exr(tmp_path / "d.exr", **channels)
    assert np.array_equal(read_depth(tmp_path / "d.exr").numpy(), DEPTH)
    assert np.array_equal(read_depth(tmp_path / "d.exr", 0.5).numpy(), DEPTH / 2)


def test_unknown_depths_in_exr(tmp_path):
    depth = np.array([[1.0, np.inf, np.nan, 1e10, -1.0, 0.0, 70000.0]], np.float32)
    save_exr(tmp_path / "d.EXR", Z=depth)
    assert read_depth(tmp_path / "d.EXR").tolist() == [[1.0, 0, 0, 0, 0, 0, 70000.0]]


def test_exr_files_that_hold_no_depths(tmp_path):
    save_exr(tmp_path / "color.exr", R=DEPTH, G=DEPTH, B=DEPTH + 1)
    with pytest.raises(SceneError, match=r"color.exr: expected a channel of depths .*, got B, G, R; name it Z"):
        read_depth(tmp_path / "color.exr")
    (tmp_path / "cut.exr").write_bytes((tmp_path / "color.exr").read_bytes()[:300])
    with pytest.raises(SceneError, match=r"cut.exr: expected a complete EXR file, got: .*; write it again"):
        read_depth(tmp_path / "cut.exr")


def test_exr_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    data = capture(tmp_path, 3)
    (tmp_path / "d.exr").write_bytes(b"")
    write(tmp_path, {**data, "frames": [dict(f, depth_file_path="d.exr") for f in data["frames"]]})
    with pytest.raises(SceneError, match=r"d.exr: expected the package OpenEXR .*; pip install polyfield\[exr\], or"):
        open_scene(tmp_path)


def test_units_of_depths(tmp_path):
    """Integers are millimetres and floats world units, unless the file states its unit."""
    save(tmp_path / "d.png", np.full((4, 6), 2500, np.uint16))
    np.save(tmp_path / "d.npy", np.full((4, 6), 2.5))
    for name, unit, want in (("d.png", None, 2.5), ("d.png", 0.01, 25), ("d.npy", None, 2.5), ("d.npy", 0.01, 0.025)):
        torch.testing.assert_close(read_depth(tmp_path / name, unit), torch.full((4, 6), float(want)))
    picture = Image.fromarray(np.zeros((4, 6), np.uint8), "P")
    picture.putpalette([0, 0, 0])
    picture.save(tmp_path / "p.png")
    with pytest.raises(SceneError, match=r"p.png: expected depths, got an image of mode P; use 16-bit grey PNG"):
        read_depth(tmp_path / "p.png")


def test_shrinking_is_an_area_average():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (12, 18, 3), dtype=np.uint8)
    got, _ = images.shrink(picture, None, 3)
    mean = picture.reshape(4, 3, 6, 3, 3).astype(np.float64).mean((1, 3))
    assert np.array_equal(got, np.floor(mean + 0.5).astype(np.uint8))
    alphas = rng.integers(0, 256, (12, 18), dtype=np.uint8)
    alphas[:3, :3] = 0
    got, weight = images.shrink(picture, alphas, 3)
    blocks = alphas.reshape(4, 3, 6, 3).astype(np.float64)
    total = (picture.reshape(4, 3, 6, 3, 3) * blocks[..., None]).sum((1, 3))
    straight = total / np.maximum(blocks.sum((1, 3)), 1e-9)[..., None]
    assert np.abs(got - straight).max() <= 0.5 + 1e-4
    assert np.array_equal(weight, np.floor(blocks.mean((1, 3)) + 0.5))
    assert got[0, 0].tolist() == [0, 0, 0]
    assert weight[0, 0] == 0


def test_shrinking_sizes_that_do_not_divide_keeps_a_ramp_straight():
    ramp = np.repeat((np.arange(31, dtype=np.float64) * 8)[None, :, None].astype(np.uint8), 17, 0).repeat(3, -1)
    got, _ = images.shrink(ramp, None, 2)
    assert got.shape == (9, 16, 3)
    # Cell i of 16 covers [i, i + 1] * 31 / 16: the mean of a staircase ramp there.
    edges = np.arange(17) * 31 / 16
    integral = np.concatenate([[0], np.cumsum(ramp[0, :, 0].astype(np.float64))])
    mean = np.diff(np.interp(edges, np.arange(32), integral)) / (31 / 16)
    assert np.abs(got[4, :, 0] - mean).max() <= 0.5 + 1e-6


def test_shrinking_depths_invents_no_surface_between_two(tmp_path):
    depth = np.full((4, 4), 9.0, np.float32)
    depth[0, 0], depth[0, 1], depth[2:, 2:] = 1.0, 1.01, 0.0
    np.save(tmp_path / "d.npy", depth)
    got = read_depth(tmp_path / "d.npy", 1.0, 2)
    torch.testing.assert_close(got, torch.tensor([[1.005, 9.0], [9.0, 0.0]]))


def test_memory_is_bounded(tmp_path):
    capture(tmp_path, 9, size=64)
    needed = open_scene(tmp_path).memory_bytes
    assert needed == 9 * 64 * 64 * 3
    assert open_scene(tmp_path, max_memory=needed).memory_bytes == needed
    with pytest.raises(SceneError, match=r"transforms.json: its images need 0 MB .* use --downscale 2, or allow more"):
        open_scene(tmp_path, max_memory=needed - 1)
    assert open_scene(tmp_path, max_memory=needed - 1, downscale=2).memory_bytes == needed / 4


# --- mistakes ---------------------------------------------------------------------------------------------------------


def spoiled(folder: Path, **frame) -> None:
    data = capture(folder, 4)
    data["frames"][2].update(frame)
    write(folder, data)


def with_pose(change) -> list:
    pose = np.eye(4)
    change(pose)
    return pose.tolist()


def scale_pose(pose):
    pose[:3, :3] *= 1.5


def flatten_pose(pose):
    pose[2, :3] = 0


def mirror_pose(pose):
    pose[0, 0] = -1


def skew_bottom(pose):
    pose[3, 0] = 0.5


def nan_pose(pose):
    pose[1, 3] = math.nan


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            {"file_path": "images/none.png"},
            r"frame images/none.png: expected an image at .*none.png, found none; restore",
        ),
        ({"file_path": "../secret.png"}, r"file_path: expected a path inside .*, got '../secret.png'; move the file"),
        ({"file_path": "images/../../x.png"}, r"file_path: expected a path inside"),
        ({"file_path": "/etc/passwd"}, r"file_path: expected a path inside .*, got '/etc/passwd'"),
        ({"file_path": "C:\\photos\\x.png"}, r"file_path: expected a path inside"),
        ({"file_path": 7}, r"file_path: expected a path, got 7"),
        ({"mask_path": "../mask.png"}, r"mask_path: expected a path inside"),
        ({"mask_path": "images/none.png"}, r"none.png: expected an image, found no such file; restore"),
        ({"depth_file_path": "/d.npy"}, r"depth_file_path: expected a path inside"),
        ({"depth_file_path": "d.npy"}, r"d.npy: expected depths, found no such file"),
        (
            {"transform_matrix": with_pose(nan_pose)},
            r"frame images/002.png: transform_matrix: expected finite numbers, got NaN",
        ),
        (
            {"transform_matrix": with_pose(scale_pose)},
            r"transform_matrix: expected a rotation and a shift, got scales 1.5",
        ),
        ({"transform_matrix": with_pose(flatten_pose)}, r"expected a rotation and a shift, got scales 1, 1, 0"),
        ({"transform_matrix": with_pose(mirror_pose)}, r"expected a rotation and a shift, .* determinant -1"),
        ({"transform_matrix": with_pose(skew_bottom)}, r"expected a rotation and a shift"),
        ({"transform_matrix": [[1, 2], [3, 4]]}, r"transform_matrix: expected 4 x 4 numbers"),
        ({"transform_matrix": "identity"}, r"transform_matrix: expected 4 x 4 numbers"),
        ({"transform_matrix": None}, r"transform_matrix: expected 4 x 4 numbers"),
        ({"w": 48}, r"frame images/002.png: w: expected 48 pixels as the intrinsics say, got an image of 24 x 24; use"),
        ({"h": 12}, r"h: expected 12 pixels"),
        ({"cx": 100}, r"cx, cy: expected a point inside the image of 24 x 24, got \(100, 12\); .* scale fl_x"),
        ({"near": "close", "far": 3}, r"near: expected a number, got 'close'"),
        ({"near": 3, "far": 1}, r"near, far: expected 0 < near < far, got 3 and 1"),
        ({"depth_unit_scale_factor": 0}, r"depth_unit_scale_factor: expected more than 0, got 0; correct or remove"),
        ({"depth_unit_scale_factor": "mm"}, r"depth_unit_scale_factor: expected a number, got 'mm'"),
        ({"fl_x": -3}, r"expected a positive focal length"),
        ({"fl_x": "wide"}, r"fl_x: expected a number, got 'wide'"),
        ({"fl_x": math.nan}, r"fl_x: expected a number, got nan"),
        (
            {"camera_model": "THIN_PRISM"},
            r"camera_model: expected one of SIMPLE_PINHOLE, .*, got 'THIN_PRISM'; undistort",
        ),
    ],
)
def test_a_frame_that_cannot_be_used(tmp_path, frame, message):
    spoiled(tmp_path, **frame)
    with pytest.raises(SceneError, match=message):
        open_scene(tmp_path)


def test_a_truncated_image(tmp_path):
    capture(tmp_path, 4, size=64)
    path = tmp_path / "images/001.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SceneError, match=r"001.png: expected a complete image, got .*; copy or render it again"):
        open_scene(tmp_path)
    path.write_bytes(b"no image at all")
    with pytest.raises(SceneError, match=r"001.png: expected an image, got a file of no known image format"):
        open_scene(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(SceneError, match=r"001.png: expected an image"):
        open_scene(tmp_path)


def test_masks_and_depths_of_another_size(tmp_path):
    data = capture(tmp_path, 3)
    save(tmp_path / "small.png", np.zeros((5, 6), np.uint8))
    write(tmp_path, {**data, "frames": [dict(f, mask_path="small.png") for f in data["frames"]]})
    assert open_scene(tmp_path, masks=MaskUse.NONE).frames[0].mask is None
    for use in (MaskUse.IGNORE, MaskUse.ALPHA, MaskUse.IGNORE_WHITE):
        with pytest.raises(SceneError, match=r"small.png: expected the image's size 24 x 24, got 6 x 5; resize it"):
            open_scene(tmp_path, masks=use)
    np.save(tmp_path / "d.npy", np.zeros((3, 4, 5)))
    write(tmp_path, {**data, "frames": [dict(f, depth_file_path="d.npy") for f in data["frames"]]})
    with pytest.raises(SceneError, match=r"d.npy: expected depths of shape \(H, W\), got \(3, 4, 5\)"):
        open_scene(tmp_path)
    (tmp_path / "d.npy").write_bytes(b"nothing")
    with pytest.raises(SceneError, match=r"d.npy: expected depths as a .npy array"):
        open_scene(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", r"transforms.json: expected JSON, got Expecting value.*; export it again"),
        ("", r"transforms.json: expected JSON"),
        ("\xff\xfe", r"transforms.json: expected JSON"),
        ("[1, 2]", r"transforms.json: expected an object with a list `frames`"),
        ('{"camera_angle_x": 1}', r"transforms.json: expected an object with a list `frames`, found none"),
        ('{"frames": {}}', r"expected an object with a list `frames`"),
        ('{"frames": [1]}', r"transforms.json: frames: expected objects"),
        ('{"frames": []}', r"transforms.json: expected two frames or more, got 0"),
    ],
)
def test_json_that_is_none_of_ours(tmp_path, text, message):
    (tmp_path / "transforms.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SceneError, match=message):
        open_scene(tmp_path)


def test_one_frame_only(tmp_path):
    capture(tmp_path, 1)
    with pytest.raises(
        SceneError, match=r"transforms.json: expected two frames or more, got 1; one view holds no depth"
    ):
        open_scene(tmp_path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"aabb_scale": 0.5}, r"aabb_scale, scale: expected at least 1"),
        ({"aabb_scale": "big"}, r"aabb_scale: expected a number"),
        ({"aabb_scale": 4, "offset": "centre"}, r"offset: expected three numbers"),
        (
            {"applied_transform": [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0]]},
            r"applied_transform: expected rotation, shift",
        ),
        ({"applied_transform": "none"}, r"applied_transform: expected 3 x 4 numbers"),
    ],
)
def test_heads_that_cannot_be_used(tmp_path, head, message):
    capture(tmp_path, 4, **head)
    with pytest.raises(SceneError, match=message):
        open_scene(tmp_path)


def test_folders_without_a_scene(tmp_path):
    with pytest.raises(
        SceneError, match=r"nowhere: expected a folder with a data set, found nothing there; check the path"
    ):
        open_scene(tmp_path / "nowhere")
    with pytest.raises(SceneError, match=r"expected a data set, found an empty folder; put images and transforms.json"):
        open_scene(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SceneError, match=r"expected a data set of a known format \(.*transforms_json.*\), found none"):
        open_scene(tmp_path)
    with pytest.raises(SceneError, match=r"downscale: expected 1 or more, got 0"):
        open_scene(tmp_path, downscale=0)


# --- the research scenes ----------------------------------------------------------------------------------------------

SCENES = {
    #            frames, train, test, size, model, cascades
    "fox": (50, 43, 7, (540, 960), CameraModel.OPENCV, 3),
    "lego": (130, 100, 25, (400, 400), CameraModel.PINHOLE, 1),
    "rose_gt": (161, 96, 33, (224, 224), CameraModel.PINHOLE, 1),
    "dtu_scan65": (49, 42, 7, (800, 600), CameraModel.PINHOLE, 1),
    "fern_llff": (20, 17, 3, (504, 378), CameraModel.OPENCV, 4),
}


@pytest.mark.data
@pytest.mark.parametrize("name", SCENES)
def test_research_scenes(data_root, name):
    frames, train, test, size, model, cascades = SCENES[name]
    scene = open_scene(data_root / name, downscale=2)
    assert (len(scene.frames), len(scene.train), len(scene.test), scene.cascades) == (frames, train, test, cascades)
    camera = scene.frames[0].camera
    assert (camera.width, camera.height) == (size[0] // 2, size[1] // 2)
    assert camera.model is model
    positions = torch.stack([f.camera.position for f in scene.frames]).double()
    point, certainty = focus_point(positions, torch.stack([f.camera.forward for f in scene.frames]).double())
    if name != "fern_llff":  # forward-facing: its axes meet nowhere
        assert certainty > 0.2
        assert float(point.norm()) < 0.5, "the optical axes meet near the scene's centre"
    back = rigid_inverse(scene.frames[3].camera.camera_to_world)
    torch.testing.assert_close(back, scene.frames[3].camera.world_to_camera)


@pytest.mark.data
def test_rose_is_where_its_ground_truth_is(data_root):
    trimesh = pytest.importorskip("trimesh")
    scene = open_scene(data_root / "rose_gt")
    torch.testing.assert_close(scene.background, torch.zeros(3), atol=0.02, rtol=0)
    world = torch.from_numpy(np.asarray(trimesh.load(data_root / "rose_gt/gt_points.ply").vertices)).double()
    points = transform_points(torch.linalg.inv(scene.scene_to_world), world)
    assert float(points.abs().max()) < 1.0
    assert float(points.abs().max()) > 0.75


@pytest.mark.data
def test_fern_points_lie_before_its_cameras(data_root):
    scene = open_scene(data_root / "fern_llff")
    scale = float(scene.scene_to_world[0, 0])
    assert 10 < scene.near * scale < 20
    ahead = scene.frames[0].camera.position + scene.frames[0].camera.forward * (70.0 / scale)
    assert bool(scene.bounds.contains(ahead))
