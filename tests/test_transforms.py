import math

import pytest
import torch
from polyfield.geometry import transforms as tf

F64 = torch.float64


def rotations(n, seed=0):
    quats = torch.randn(n, 4, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return tf.quaternion_to_matrix(quats), torch.nn.functional.normalize(quats, dim=-1)


def is_rigid(poses):
    eye = torch.eye(3, dtype=poses.dtype).expand_as(poses[..., :3, :3])
    torch.testing.assert_close(poses[..., :3, :3] @ poses[..., :3, :3].mT, eye, atol=1e-6, rtol=0)
    assert bool((torch.linalg.det(poses[..., :3, :3]) > 0).all())


def test_quaternions_round_trip():
    matrices, quats = rotations(200)
    is_rigid(matrices)
    quats = torch.where(quats[:, :1] < 0, -quats, quats)
    torch.testing.assert_close(tf.matrix_to_quaternion(matrices), quats)
    half_turns = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=F64)
    torch.testing.assert_close(tf.matrix_to_quaternion(tf.quaternion_to_matrix(half_turns)), half_turns)


def test_quaternion_about_z():
    turn = tf.quaternion_to_matrix(torch.tensor([math.cos(0.25), 0, 0, math.sin(0.25)], dtype=F64))
    c, s = math.cos(0.5), math.sin(0.5)
    torch.testing.assert_close(turn, torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=F64))


@pytest.mark.parametrize("size", [1e-9, 1e-3, 0.03, 0.1, 1.0, 3.1])
def test_se3_exp_is_the_matrix_exponential(size):
    twists = torch.randn(20, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    twists[:, 3:] *= size / twists[:, 3:].norm(dim=-1, keepdim=True)
    generator = torch.zeros(20, 4, 4, dtype=F64)
    generator[:, :3, :3], generator[:, :3, 3] = tf.skew(twists[:, 3:]), twists[:, :3]
    torch.testing.assert_close(tf.se3_exp(twists), torch.linalg.matrix_exp(generator), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(tf.se3_exp(twists.float()), tf.se3_exp(twists).float(), atol=2e-6, rtol=1e-5)


def test_se3_exp_gradient_at_zero():
    assert torch.autograd.gradcheck(tf.se3_exp, torch.zeros(2, 6, dtype=F64).requires_grad_())
    assert torch.autograd.gradcheck(tf.se3_exp, torch.full((1, 6), 0.5, dtype=F64).requires_grad_())


def test_rigid_inverse():
    poses = tf.rigid(rotations(5)[0], torch.randn(5, 3, dtype=F64))
    torch.testing.assert_close(
        tf.rigid_inverse(poses) @ poses, torch.eye(4, dtype=F64).expand(5, 4, 4), atol=1e-12, rtol=0
    )


def test_similarity_moves_points_poses_and_back():
    rotation = rotations(1, 3)[0][0]
    a_to_b = tf.similarity(2.5, rotation, torch.tensor([1.0, -2.0, 3.0], dtype=F64))
    assert float(tf.similarity_scale(a_to_b)) == pytest.approx(2.5)
    points = torch.randn(10, 3, dtype=F64)
    there = tf.transform_points(a_to_b, points)
    torch.testing.assert_close(there, 2.5 * points @ rotation.T + a_to_b[:3, 3])
    torch.testing.assert_close(tf.transform_points(tf.similarity_inverse(a_to_b), there), points)
    poses = tf.rigid(rotations(4)[0], points[:4])
    moved = tf.transform_poses(a_to_b, poses)
    is_rigid(moved)
    torch.testing.assert_close(moved[:, :3, 3], there[:4])
    # The same camera-space direction stays on the same moved point.
    local = torch.tensor([0.1, 0.2, 1.0], dtype=F64)
    point = poses[:, :3, :3] @ local + poses[:, :3, 3]
    torch.testing.assert_close(moved[:, :3, :3] @ (local * 2.5) + moved[:, :3, 3], tf.transform_points(a_to_b, point))
    direction = torch.nn.functional.normalize(points, dim=-1)
    torch.testing.assert_close(tf.transform_directions(a_to_b, direction), direction @ rotation.T)


def test_look_at_has_opencv_axes():
    eye, target, up = (torch.tensor(v, dtype=F64) for v in ([3.0, 0, 1], [0.0, 0, 1], [0.0, 0, 1]))
    pose = tf.look_at(eye, target, up)
    is_rigid(pose)
    torch.testing.assert_close(pose[:3, 2], torch.tensor([-1.0, 0, 0], dtype=F64))
    torch.testing.assert_close(pose[:3, 1], torch.tensor([0.0, 0, -1], dtype=F64))
    torch.testing.assert_close(pose[:3, 0], torch.tensor([0.0, 1, 0], dtype=F64))
    straight_down = tf.look_at(torch.tensor([0.0, 0, 5], dtype=F64), torch.zeros(3, dtype=F64), up)
    is_rigid(straight_down)
    torch.testing.assert_close(straight_down[:3, 2], torch.tensor([0.0, 0, -1], dtype=F64))


def test_opengl_to_opencv_keeps_position_and_right():
    poses = tf.rigid(rotations(3)[0], torch.randn(3, 3, dtype=F64))
    turned = tf.opengl_to_opencv(poses)
    is_rigid(turned)
    torch.testing.assert_close(turned[:, :3, [0, 3]], poses[:, :3, [0, 3]])
    torch.testing.assert_close(turned[:, :3, 2], -poses[:, :3, 2])
    torch.testing.assert_close(tf.opengl_to_opencv(turned), poses)


def test_slerp_goes_at_constant_speed_the_short_way():
    a = torch.tensor([1.0, 0, 0, 0], dtype=F64)
    b = -torch.tensor([math.cos(0.6), math.sin(0.6), 0, 0], dtype=F64)
    t = torch.linspace(0, 1, 7, dtype=F64)
    got = tf.slerp(a.expand(7, 4), b.expand(7, 4), t)
    wanted = torch.stack([(0.6 * t).cos(), (0.6 * t).sin(), 0 * t, 0 * t], -1)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(tf.slerp(a[None], a[None], t[3:4]), a[None])


def test_interpolated_poses_pass_through_their_keys():
    keys = tf.rigid(rotations(4)[0], torch.randn(4, 3, dtype=F64))
    torch.testing.assert_close(tf.interpolate_poses(keys, torch.arange(4.0)), keys)
    between = tf.interpolate_poses(keys, torch.linspace(-1, 4, 33))
    is_rigid(between)
    torch.testing.assert_close(between[0], keys[0])
    torch.testing.assert_close(between[-1], keys[-1])
    torch.testing.assert_close(tf.interpolate_poses(keys[:1], torch.tensor([0.0, 0.7])), keys[:1].expand(2, 4, 4))


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (0.3, 0.5, 0.8)])
def test_orbit_looks_at_its_center_from_a_fixed_height(up):
    center, up = (
        torch.tensor([1.0, 2.0, 3.0], dtype=F64),
        torch.nn.functional.normalize(torch.tensor(up, dtype=F64), dim=0),
    )
    poses = tf.orbit(center, 2.0, 12, 0.4, up)
    is_rigid(poses)
    outward = poses[:, :3, 3] - center
    torch.testing.assert_close(outward.norm(dim=-1), torch.full((12,), 2.0, dtype=F64))
    torch.testing.assert_close(outward @ up, torch.full((12,), 2 * math.sin(0.4), dtype=F64))
    torch.testing.assert_close(poses[:, :3, 2], -outward / 2)
    assert bool((-poses[:, :3, 1] @ up > 0).all())


def test_spiral_keeps_its_focus_in_view():
    pose = tf.rigid(rotations(1)[0][0], torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    path = tf.spiral(pose, 4.0, torch.tensor([0.3, 0.2, 0.1], dtype=F64), 30)
    is_rigid(path)
    focus = pose[:3, 3] + 4 * pose[:3, 2]
    toward = torch.nn.functional.normalize(focus - path[:, :3, 3], dim=-1)
    torch.testing.assert_close(path[:, :3, 2], toward)
    assert float((path[:, :3, 3] - pose[:3, 3]).norm(dim=-1).max()) < 0.4
