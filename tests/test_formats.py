"""Every format, on a capture whose cameras are known: points fall where the truth says, however images are treated."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from polyfield.datasets import mvsnet, polycam, r3d, scannet, seven_scenes
from polyfield.datasets.scene import LoadOptions, MaskUse, SceneError, open_scene
from polyfield.datasets.undistort import undistorted
from polyfield.geometry import CameraModel
from polyfield.geometry.transforms import similarity_inverse, transform_points

from tests.capture_writers import (
    CASES,
    HEIGHT,
    WIDTH,
    WRITERS,
    paint,
    some_points,
    truth,
    write_mvsnet,
    write_opensfm,
    write_polycam,
    write_r3d,
    write_record3d,
    write_scannet,
    write_seven_scenes,
)

POINTS = torch.from_numpy(some_points(60))
TOLERANCE = 0.05  # pixels


@pytest.fixture(scope="module", params=CASES, ids=[f"{name}-{i}" for name, i in CASES])
def written(request, tmp_path_factory):
    name, index = request.param
    return WRITERS[name][index](tmp_path_factory.mktemp(name) / "capture")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Pictures this small are read faster by one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_scene(scene) -> torch.Tensor:
    """The known points in the scene's frame."""
    return transform_points(similarity_inverse(scene.scene_to_world), POINTS).float()


def shown_at(frame, pixels: torch.Tensor) -> torch.Tensor:
    """Which pixel of the original photograph a frame shows at its pixel positions (N, 2): the ramp, read bilinearly."""
    size = pixels.new_tensor([frame.camera.width, frame.camera.height])
    grid = (pixels / size * 2 - 1)[None, None].float()
    ramp = frame.colors[..., :2].permute(2, 0, 1)[None].float() / 10
    return torch.nn.functional.grid_sample(ramp, grid, align_corners=False)[0, :, 0].T


def inner(pixels: torch.Tensor, camera, rim: float = 1.5) -> torch.Tensor:
    size = pixels.new_tensor([camera.width, camera.height])
    return ((pixels >= rim) & (pixels <= size - rim)).all(-1)


def test_points_project_where_the_truth_says(written):
    for downscale in (1, 2):
        scene = open_scene(written.root, downscale=downscale)
        assert {f.name for f in scene.frames} == set(written.cameras)
        points = in_scene(scene)
        for frame in scene.frames:
            true = written.cameras[frame.name].project(POINTS)[0].float()
            got = frame.camera.project(points)[0]
            assert int(inner(true, written.cameras[frame.name]).sum()) > 20
            torch.testing.assert_close(got * downscale, true, atol=1e-3, rtol=0, equal_nan=True)
            cropped = frame.camera.cropped(3, 2, 9, 8)
            torch.testing.assert_close(cropped.project(points)[0] + torch.tensor([3.0, 2.0]), got, equal_nan=True)


def test_photographs_show_points_where_the_truth_says(written):
    for downscale in (1, 2):
        scene = open_scene(written.root, downscale=downscale, masks=MaskUse.NONE)
        points = in_scene(scene)
        for frame in scene.frames:
            true = written.cameras[frame.name].project(POINTS)[0].float()
            kept = inner(true, written.cameras[frame.name], 1.5 * downscale)
            pixels = frame.camera.project(points)[0]
            off = (shown_at(frame, pixels) - true)[kept]
            assert float(off.abs().max()) < TOLERANCE + 1e-3
            if frame.camera.model is not CameraModel.EQUIRECTANGULAR:
                straight = undistorted(frame)
                pixels = straight.camera.project(points)[0]
                kept = kept & inner(pixels, straight.camera)
                off = (shown_at(straight, pixels) - true)[kept]
                assert int(kept.sum()) > 10
                assert float(off.abs().mean()) < TOLERANCE


def test_points_reach_the_scene(written):
    scene = open_scene(written.root)
    if written.points is None:
        assert scene.points is None
        return
    world = transform_points(scene.scene_to_world, scene.points.double())
    torch.testing.assert_close(world, written.points, atol=1e-5, rtol=0)
    assert scene.point_colors.shape == scene.points.shape
    assert bool((scene.point_colors[:, 0] == 1).all())
    assert float(scene.points.abs().max()) < 2


def test_the_same_by_the_path_of_a_file(written):
    for name in ("reconstruction.json", "cameras_sphere.npz", "poses_bounds.npy", "cameras.xml", "transforms.json"):
        path: Path = written.root / name
        if path.is_file():
            a, b = open_scene(path), open_scene(written.root)
            for x, y in zip(a.frames, b.frames, strict=True):
                assert torch.equal(x.camera.camera_to_world, y.camera.camera_to_world)
                assert torch.equal(x.camera.K, y.camera.K)


def test_record3d_depths_and_intrinsics_of_each_photograph(tmp_path):
    exr = pytest.importorskip("OpenEXR")
    root = write_record3d(tmp_path / "a").root
    (root / "depth").mkdir()
    for i in range(12):
        depth = np.full((10, 12), 3.5, np.float32)
        with exr.File({"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}, {"R": depth}) as file:
            file.write(str(root / f"depth/{i}.exr"))
    data = json.loads((root / "metadata.json").read_text())
    data |= {"dw": 12, "dh": 10, "perFrameIntrinsicCoeffs": [[20.0 + i, 21.0 + i, 12.0, 10.0] for i in range(12)]}
    (root / "metadata.json").write_text(json.dumps(data))
    scene = open_scene(root)
    for frame in scene.frames:
        number = int(frame.name.removesuffix(".png"))
        assert frame.camera.K[0, 0] == 20 + number
        middle = frame.depths[HEIGHT // 2, WIDTH // 2] * float(scene.scene_to_world[0, 0])
        assert float(middle) == pytest.approx(3.5, rel=0.01)


def test_polycam_corrected_keyframes_are_preferred(tmp_path):
    root = write_polycam(tmp_path / "a").root
    assert "no corrected_cameras" in polycam.read(root, LoadOptions()).warnings[0]
    for part in ("cameras", "images"):
        shutil.copytree(root / f"keyframes/{part}", root / f"keyframes/corrected_{part}")
    for file in (root / "keyframes/corrected_cameras").glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"fx": 30.0}))
    assert {float(f.camera.K[0, 0]) for f in open_scene(root).frames} == {30.0}


def test_opensfm_inside_a_project_of_opendronemap(tmp_path):
    write_opensfm(tmp_path / "odm/opensfm")
    assert len(open_scene(tmp_path / "odm").frames) == 9


def test_scannet_leaves_out_lost_poses_and_says_so(tmp_path):
    root = write_scannet(tmp_path / "a").root
    assert scannet.read(root, LoadOptions()).warnings == ("1 photographs without a finite pose are left out",)
    assert [f.name for f in open_scene(root).frames][:4] == ["0.png", "1.png", "2.png", "3.png"]


def test_mvsnet_depths_and_range(tmp_path):
    root = write_mvsnet(tmp_path / "a").root
    shot = mvsnet.read(root, LoadOptions()).shots[0]
    assert shot.near_far == (2.5, 7.0)
    scene = open_scene(root)
    frame = scene.frames[0]
    axis = frame.camera.directions()[:, 2].view(HEIGHT, WIDTH)
    z_depths = frame.depths * axis * float(scene.scene_to_world[:3, 0].norm())
    torch.testing.assert_close(z_depths[:, 7], torch.linspace(3, 4, HEIGHT), atol=1e-4, rtol=0)


def test_sequences_are_held_out_as_the_split_says(tmp_path):
    root = write_seven_scenes(tmp_path / "a").root
    scene = open_scene(root)
    assert {f.name[:6] for f in scene.test} == {"seq-02"} and len(scene.test) == 6
    assert {f.name[:6] for f in scene.train} == {"seq-01"} and len(scene.train) == 5
    assert seven_scenes.read(root, LoadOptions()).warnings == ("1 photographs without a finite pose are left out",)
    assert not scene.train[0].depths[0, 0] and bool((scene.train[0].depths[4:, 4:] > 0).all())
    alone = open_scene(root / "seq-01")
    assert [f.name for f in alone.frames] == [f"frame-{i:06d}.color.png" for i in range(5)]
    assert alone.frames[0].camera.K[0, 0] == 26


def test_a_sequence_without_intrinsics_is_taken_to_be_a_kinects(tmp_path):
    for i, camera in enumerate(truth()):
        paint(tmp_path / f"frame-{i:06d}.color.png", 640, 480)
        np.savetxt(tmp_path / f"frame-{i:06d}.pose.txt", camera.camera_to_world.numpy())
    capture = seven_scenes.read(tmp_path, LoadOptions())
    assert "585 pixels are taken for the focal length" in capture.warnings[0]
    assert capture.shots[0].camera.K.tolist() == [[585, 0, 320.5], [0, 585, 240.5], [0, 0, 1]]


def test_r3d_is_unpacked_once(tmp_path, monkeypatch):
    path = write_r3d(tmp_path / "a").root
    capture = r3d.read(path, LoadOptions())
    assert capture.name == "a scan" and "depth maps are left out" in capture.warnings[0]
    (kept,) = (path.parent / ".polyfield").iterdir()
    before = (kept / "rgbd/0.png").stat().st_mtime_ns
    assert r3d.read(path, LoadOptions()).shots[0].image.stat().st_mtime_ns == before
    os.utime(path, ns=(0, 10**18))
    assert r3d.read(path, LoadOptions()).shots[0].image.parent.parent != kept
    assert not kept.exists() and len(list((path.parent / ".polyfield").iterdir())) == 1


def test_r3d_beside_which_nothing_can_be_written(tmp_path, monkeypatch):
    path = write_r3d(tmp_path / "a").root
    (path.parent / ".polyfield").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert (tmp_path / "home") in r3d.read(path, LoadOptions()).shots[0].image.parents
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    with pytest.raises(SceneError, match=r"a scan.r3d: expected room to unpack it beside it, got"):
        r3d.read(path, LoadOptions())
