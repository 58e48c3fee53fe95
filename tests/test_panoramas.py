"""Gaussians from panoramas: the demo seen all around by equirectangular cameras, compared with ordinary views of it."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.fit import Budget, fit
from polyfield.datasets import demo
from polyfield.datasets.scene import Frame, Split, open_scene
from polyfield.geometry import Camera
from polyfield.geometry.transforms import transform_poses

from .test_robust import held_out
from .test_splat_fit import SMALL

VIEWS, SIZE = 16, (160, 80)


def panoramas(views, size):
    """The demo photographed by panoramas around it, which mostly show that there is nothing; its test views as ever."""
    truth, parts, frames = open_scene("demo", downscale=4), demo.parts(), []
    for i, pose in enumerate(demo.view_poses(views)):
        tilted = pose.clone()  # no two panoramas have the scene in the same place of the image, and all are close to it
        tilted[:3, 3] = torch.tensor([0.0, 0.0, 0.32]).lerp(pose[:3, 3], 0.55)
        angle = torch.tensor(0.7 * i)
        turn = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
        tilted[:3, :3] = pose[:3, :3] @ turn
        camera = Camera.equirectangular(*size, tilted)
        colors, alphas, _, _ = demo.render_view(parts, camera)
        to_scene = truth.scene_to_world.inverse().to(pose)
        camera = replace(camera, camera_to_world=transform_poses(to_scene, tilted))
        frames.append(Frame(f"{i:02d}.png", camera, colors, Split.TRAIN, alphas=alphas))
    return truth.with_frames((*frames, *truth.test))


@pytest.fixture(scope="module")
def scene():
    return panoramas(VIEWS, SIZE)


def test_gaussians_are_fitted_to_the_faces_of_panoramas(scene):
    straight, found = SMALL.prepare(scene), []
    assert len(straight.train) == 6 * VIEWS and len(straight.test) == len(scene.test)
    shown = sum(float(frame.alphas.float().mean()) > 2.55 for frame in straight.train)
    assert VIEWS <= shown <= 3 * VIEWS, "each panorama shows the scene on one face, two or three"
    for steps in (1, 600):
        budget = Budget(steps=steps)
        job = SMALL.build(straight, budget=budget)
        fit(job, budget, SMALL.after_step())
        job.renderer.eval()
        found.append(held_out(job, scene))
    assert found[1] > found[0] + 2, found
