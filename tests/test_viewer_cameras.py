"""Cameras between the browser and the scene."""

import math

import numpy as np
import pytest
import torch
from polyfield.apps.viewer.cameras import WIDEST, browser_camera, pose_of, to_browser
from polyfield.geometry import Camera, CameraModel
from polyfield.geometry import transforms as tf

from .viewer_fakes import camera


def random_poses(count):
    generator = torch.Generator().manual_seed(3)
    quats = torch.randn(count, 4, generator=generator)
    return tf.rigid(tf.quaternion_to_matrix(quats), torch.randn(count, 3, generator=generator))


def test_browser_camera_there_and_back():
    for pose in random_poses(5):
        there = pose_of(pose, 0.9)
        back = browser_camera(there.wxyz, there.position, there.fov, 640, 360)
        torch.testing.assert_close(back.camera_to_world, pose, rtol=0, atol=1e-5)
        again = to_browser(back, 640 / 360)
        assert again.fov == pytest.approx(0.9, abs=1e-6)


def test_same_axes_as_the_browser():
    """viser says: look along +z, up is -y; fov is vertical. So a point in the middle of the top edge is there."""
    import viser.transforms

    pose = pose_of(random_poses(1)[0], 0.7)
    rotation = viser.transforms.SO3(np.array(pose.wxyz)).as_matrix()
    point = np.array(pose.position) + rotation @ np.array([0.0, -math.tan(0.35), 1.0]) * 3
    pixel, z_depth = browser_camera(pose.wxyz, pose.position, pose.fov, 80, 60).project(
        torch.tensor(point[None]).float()
    )
    torch.testing.assert_close(pixel, torch.tensor([[40.0, 0.0]]), rtol=0, atol=1e-3)
    assert float(z_depth) == pytest.approx(3, abs=1e-5)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 4 / 3, 3.0])
def test_whole_photograph_is_in_the_window(aspect):
    photo = camera(320, 240)
    pose = to_browser(photo, aspect)
    window = browser_camera(pose.wxyz, pose.position, pose.fov, round(600 * aspect), 600)
    corners = torch.tensor([[0.0, 0.0], [320, 0], [0, 240], [320, 240]])
    rays = photo.rays(corners)
    pixels, _ = window.project(rays.at(torch.ones(4)))
    low, high = pixels.min(0).values, pixels.max(0).values
    assert (low >= -0.5).all()
    assert (high <= torch.tensor([window.width, window.height]) + 0.5).all()
    assert (low.abs() < 0.5).any(), "and no smaller than it must be"


def test_lenses_that_see_more_than_a_window():
    K, pose = camera(64, 48).K, torch.eye(4)
    wide = Camera(K * torch.tensor([[0.2], [0.2], [1]]), pose, 64, 48, CameraModel.FISHEYE, torch.zeros(4))
    assert 1.0 < to_browser(wide, 1.0).fov <= WIDEST
    assert to_browser(Camera.equirectangular(64, 32, pose), 2.0).fov == pytest.approx(WIDEST)
    assert to_browser(Camera.perspective(64, 48, 3.0, pose), 0.1).fov == pytest.approx(WIDEST)
