"""Camera paths: files there and back, curves through their keys, paths made from a scene's cameras."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from polyfield.apps.camera_path import (
    CameraPath,
    Key,
    catmull_rom,
    load_camera_path,
    orbit_of,
    read_camera_path,
    save_camera_path,
    spiral_of,
    squad,
)
from polyfield.apps.errors import UserError
from polyfield.geometry import Camera
from polyfield.geometry import transforms as tf

GENERATOR = torch.Generator().manual_seed(5)


def random_path(count, **options):
    quats = torch.randn(count, 4, generator=GENERATOR, dtype=torch.float64)
    positions = torch.randn(count, 3, generator=GENERATOR, dtype=torch.float64)
    poses = tf.rigid(tf.quaternion_to_matrix(quats), positions)
    return CameraPath(tuple(Key(pose, 0.5 + 0.1 * i) for i, pose in enumerate(poses)), **options)


def turn(angle):
    """A rotation about z."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


def test_file_there_and_back(tmp_path):
    path = random_path(4, width=640, height=360, seconds=7.5, closed=True)
    save_camera_path(tmp_path / "p.json", path)
    back = read_camera_path(tmp_path / "p.json")
    assert replace(back, keys=()) == replace(path, keys=())
    for a, b in zip(path.keys, back.keys, strict=True):
        assert torch.equal(a.camera_to_world, b.camera_to_world)
        assert a.fov_y == b.fov_y


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("count", [3, 4, 7])
def test_passes_through_every_key(count, closed):
    path = random_path(count, closed=closed)
    per_key = 8
    frames = count * per_key if closed else (count - 1) * per_key + 1
    poses, fovs = path.poses(frames)
    for i, key in enumerate(path.keys):
        torch.testing.assert_close(poses[i * per_key], key.camera_to_world, rtol=0, atol=1e-9)
        assert fovs[i * per_key] == pytest.approx(key.fov_y)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_poses_stay_rigid_and_smooth(closed, seed):
    generator = torch.Generator().manual_seed(seed)
    quats = torch.randn(5, 4, generator=generator, dtype=torch.float64) + torch.tensor([1.5, 0, 0, 0])
    poses = tf.rigid(tf.quaternion_to_matrix(quats), torch.randn(5, 3, generator=generator, dtype=torch.float64))
    poses, _ = CameraPath(tuple(Key(pose, 0.8) for pose in poses), closed=closed).poses(5001)
    rotations = poses[:, :3, :3]
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(rotations @ rotations.mT, eye.expand_as(rotations), rtol=0, atol=1e-9)
    assert (torch.linalg.det(rotations) > 0).all()
    steps = poses.diff(dim=0).abs().amax((1, 2))
    bends = poses.diff(n=2, dim=0).abs().amax((1, 2))
    assert steps.max() < 0.02, "no jump"
    assert bends.max() < 1e-4, "no kink: second differences shrink with the square of the step"
    if closed:
        assert (poses[0] - poses[-1]).abs().max() < 0.02


def test_constant_rotation_speed_is_kept():
    quats = tf.matrix_to_quaternion(torch.stack([turn(0.4 * i) for i in range(6)]))
    times = torch.linspace(0, 5, 41, dtype=torch.float64)
    expected = tf.matrix_to_quaternion(torch.stack([turn(0.4 * float(t)) for t in times]))
    torch.testing.assert_close(squad(quats, times), expected, rtol=0, atol=1e-9)


def test_straight_line_is_kept():
    values = torch.arange(5, dtype=torch.float64)[:, None] * torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    times = torch.linspace(0, 4, 33, dtype=torch.float64)
    torch.testing.assert_close(catmull_rom(values, times), times[:, None] * values[1])


def test_half_turn_between_keys_is_finite():
    path = CameraPath(tuple(Key(tf.rigid(turn(a), torch.zeros(3).double()), 0.8) for a in (0.0, math.pi, 2 * math.pi)))
    poses, _ = path.poses(31)
    assert poses.isfinite().all()
    torch.testing.assert_close(poses[15, :3, :3], turn(math.pi), rtol=0, atol=1e-9)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("closed", [False, True])
def test_few_keys_and_frames(count, frames, closed):
    path = random_path(count, closed=closed)
    poses, fovs = path.poses(frames)
    assert poses.shape == (frames, 4, 4)
    assert fovs.shape == (frames,)
    torch.testing.assert_close(poses[0], path.keys[0].camera_to_world, rtol=0, atol=1e-9)
    if frames > 1:
        torch.testing.assert_close(poses[-1], path.keys[-1].camera_to_world, rtol=0, atol=1e-9)


def test_no_keys():
    with pytest.raises(ValueError, match="keys: expected at least one, got none"):
        CameraPath().poses(3)


def test_cameras_have_size_and_vertical_field_of_view():
    camera = random_path(1, width=640, height=360).cameras(3)[2]
    assert (camera.width, camera.height) == (640, 360)
    assert 2 * math.atan(180 / float(camera.K[1, 1])) == pytest.approx(0.5, abs=1e-6)
    assert camera.K[0, 0] == pytest.approx(float(camera.K[1, 1]), rel=1e-6)


def test_world_units_and_scene_frame(tmp_path):
    scene_to_world = tf.similarity(2.5, turn(0.7), torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    in_scene = random_path(3)
    save_camera_path(tmp_path / "p.json", in_scene.transformed(scene_to_world))
    world = load_camera_path(tmp_path / "p.json", 9)
    scene = load_camera_path(tmp_path / "p.json", 9, scene_to_world)
    expected = in_scene.cameras(9)
    for w, s, e in zip(world, scene, expected, strict=True):
        torch.testing.assert_close(s.camera_to_world, e.camera_to_world, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            w.position, tf.transform_points(scene_to_world.float(), e.position), rtol=0, atol=1e-4
        )
        eye = torch.eye(3)
        torch.testing.assert_close(w.camera_to_world[:3, :3] @ w.camera_to_world[:3, :3].T, eye, rtol=0, atol=1e-5)


def good():
    pose = torch.eye(4).tolist()
    keys = [{"camera_to_world": pose, "fov_y": 0.8}]
    return {"format": "polyfield camera path", "version": 1, "width": 4, "height": 3, "seconds": 1, "keys": keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, '"format": "polyfield camera path"'),
        ({"version": 2}, "version: expected 1, got 2"),
        ({"keys": []}, "keys: expected at least one key, got none"),
        ({"keys": "x"}, "keys: expected at least one key"),
        ({"keys": [3]}, r"keys\[0\]: expected an object"),
        ({"keys": [{"fov_y": 0.8}]}, r"keys\[0\]: camera_to_world: expected 4 rows"),
        ({"keys": [{"camera_to_world": [[1, 2], [3]], "fov_y": 0.8}]}, r"camera_to_world: expected 4 rows"),
        ({"keys": [{"camera_to_world": [[float("nan")] * 4] * 4, "fov_y": 0.8}]}, "4 finite numbers"),
        ({"keys": [{"camera_to_world": [[2.0, 0, 0, 0]] * 4, "fov_y": 0.8}]}, "expected a rotation"),
        ({"keys": [{"camera_to_world": torch.eye(4).tolist(), "fov_y": 4}]}, "fov_y: expected radians below pi"),
        ({"keys": [{"camera_to_world": torch.eye(4).tolist()}]}, "fov_y: expected a number"),
        ({"width": 0}, "width: expected a number of at least 1, got 0"),
        ({"height": "x"}, "height: expected a number"),
        ({"seconds": True}, "seconds: expected a number"),
    ],
)
def test_bad_files_name_what_is_wrong(tmp_path, change, message):
    file = tmp_path / "p.json"
    file.write_text(json.dumps({**good(), **change}))
    with pytest.raises(UserError, match=message) as caught:
        load_camera_path(file, 3)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_no_json(tmp_path, content):
    file = tmp_path / "p.json"
    file.write_text(content)
    with pytest.raises(UserError, match="expected a camera path"):
        read_camera_path(file)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json: expected a camera path, could not read it"):
        read_camera_path(tmp_path / "nowhere.json")


def ring(count, radius, height, up=(0.0, 0.0, 1.0)):
    up = torch.tensor(up)
    poses = tf.orbit(torch.tensor([0.2, 0.1, 0.0]), math.hypot(radius, height), count, math.atan2(height, radius), up)
    frames = [SimpleNamespace(camera=Camera.perspective(64, 48, 1.0, pose)) for pose in poses]
    return SimpleNamespace(frames=frames, up=up)


def test_orbit_looks_at_what_the_photographs_look_at():
    cameras = orbit_of(ring(9, 2.0, 1.0), 12)
    assert len(cameras) == 12
    assert (cameras[0].width, cameras[0].height) == (64, 48)
    middle = torch.tensor([[0.2, 0.1, 0.0]])
    for camera in cameras:
        pixel, z_depth = camera.project(middle)
        assert (pixel - torch.tensor([[32.0, 24.0]])).abs().max() < 0.5
        assert z_depth > 0
        assert float((camera.position - middle[0]).norm()) == pytest.approx(math.hypot(2, 1), rel=0.02)
        assert float(camera.position[2]) == pytest.approx(1.0, rel=0.02)


def test_orbit_of_parallel_cameras_is_finite():
    pose = torch.eye(4)
    frames = []
    for x in range(4):
        at = pose.clone()
        at[0, 3] = x
        frames.append(SimpleNamespace(camera=Camera.perspective(64, 48, 1.0, at)))
    for make in (orbit_of, spiral_of):
        for camera in make(SimpleNamespace(frames=frames, up=torch.tensor([0.0, -1.0, 0.0])), 5):
            assert camera.camera_to_world.isfinite().all()


def test_spiral_stays_among_the_photographs():
    scene = ring(9, 2.0, 1.0)
    cameras = spiral_of(scene, 10)
    eyes = torch.stack([f.camera.position for f in scene.frames])
    assert len(cameras) == 10
    for camera in cameras:
        assert float((eyes - camera.position).norm(dim=-1).min()) < 1.5
        assert camera.project(torch.tensor([[0.2, 0.1, 0.0]]))[1] > 0
