"""Refined intrinsics: closed forms, gradients, what photographs share, and that fits find what was wrong."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.first_gaussians import FirstGaussians, Source
from polyfield.apps.fit import Budget, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.fit_run import Options, fit_run
from polyfield.apps.intrinsics import intrinsics_of, with_refined
from polyfield.apps.recipes import splat
from polyfield.apps.run import open_run
from polyfield.datasets.demo import parts as demo_parts
from polyfield.datasets.demo import render_demo, render_view
from polyfield.datasets.scene import Frame, open_scene
from polyfield.fields.gaussian_init import from_points
from polyfield.fields.gaussians import GaussianField
from polyfield.fields.surfels import surfels
from polyfield.geometry import Aabb, Camera, CameraModel
from polyfield.geometry.transforms import similarity_inverse, transform_poses
from polyfield.renderers.intrinsics import Intrinsics, IntrinsicsConfig
from polyfield.renderers.splat import SplatRenderer
from polyfield.renderers.surfels import SurfelRenderer

from .test_fit import SMALL
from .test_poses import blobs, ring

F64 = torch.float64
LENSES = {
    CameraModel.PINHOLE: None,
    CameraModel.OPENCV: torch.tensor([-0.1, 0.03, 1e-3, -2e-3, 0.01], dtype=F64),
    CameraModel.FISHEYE: torch.tensor([0.02, -0.01, 0.003, 0.0], dtype=F64),
}


def cameras_with(model, views=3, size=12):
    """Cameras of one lens, float64."""
    made = [c.to("cpu") for c in ring(views, size)]
    return [
        Camera(c.K.double(), c.camera_to_world.double(), size, size, model, LENSES.get(model)) for c in made
    ]  # fmt: skip


def rays_with_points(camera):
    size = torch.tensor([camera.width, camera.height], dtype=F64)
    return replace(camera.rays(), image_points=camera.pixel_centers() / size)


def changed(intrinsics, seed=0):
    """The same with parameters of a few hundredths."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in intrinsics.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=g))
    return intrinsics


@pytest.mark.parametrize("model", LENSES)
def test_rays_change_as_their_cameras_do(model):
    cameras = cameras_with(model)
    intrinsics = changed(Intrinsics(cameras, [0, 1, 1], IntrinsicsConfig()))
    for number, camera in enumerate(cameras):
        found = intrinsics(rays_with_points(camera), torch.full((144,), number)).directions
        refined = intrinsics(camera, torch.tensor(number))
        torch.testing.assert_close(found, refined.rays().directions, atol=1e-6, rtol=0)
        assert (found - camera.rays().directions).norm(dim=-1).max() > 5e-3
    scale = intrinsics.scales()[1]
    torch.testing.assert_close(intrinsics(cameras[2], torch.tensor(2)).K[0, 0], (cameras[2].K[0, 0] * scale).double())


@pytest.mark.parametrize("model", LENSES)
def test_gradients_of_rays(model):
    cameras = cameras_with(model, size=4)
    intrinsics = Intrinsics(cameras, [0, 0, 0], IntrinsicsConfig()).double()
    rays = rays_with_points(cameras[1])

    def directions(log_focals, radial):
        values = {"log_focals": log_focals, "radial": radial}
        return torch.func.functional_call(intrinsics, values, (rays, torch.ones(16, dtype=torch.long))).directions

    start = [torch.full(shape, 0.02, dtype=F64, requires_grad=True) for shape in ((1,), (1,))]
    assert torch.autograd.gradcheck(directions, start, atol=1e-6)


def test_mixed_lenses_and_panoramas():
    cameras = [cameras_with(model)[0] for model in LENSES]
    pose = cameras[0].camera_to_world
    cameras.append(Camera.equirectangular(12, 12, pose))
    intrinsics = changed(Intrinsics(cameras, [0, 1, 2, 3], IntrinsicsConfig()))
    for number, camera in enumerate(cameras):
        found = intrinsics(rays_with_points(camera), torch.full((144,), number)).directions
        torch.testing.assert_close(found, intrinsics(camera, torch.tensor(number)).rays().directions, atol=1e-6, rtol=0)
    assert torch.equal(intrinsics(cameras[3], torch.tensor(3)).K, cameras[3].K), "a panorama has nothing to refine"
    with pytest.raises(ValueError, match="Intrinsics: view: expected rays with image_points, got none"):
        intrinsics(cameras[0].rays(), torch.zeros(144, dtype=torch.long))


def test_they_wait_for_their_share_of_the_budget():
    cameras = cameras_with(CameraModel.PINHOLE)
    intrinsics = Intrinsics(cameras, [0, 0, 0], IntrinsicsConfig(begin=0.5, prior=2.0))
    assert not intrinsics(cameras[0], torch.tensor(0), 0.4).K.requires_grad
    assert intrinsics(cameras[0], torch.tensor(0), 0.5).K.requires_grad
    with torch.no_grad():
        intrinsics.log_focals.fill_(0.1)
    assert float(intrinsics.prior(None)) == pytest.approx(2 * 0.01)


@pytest.mark.parametrize("kind", [SplatRenderer, SurfelRenderer])
def test_a_rasterized_picture_has_gradients_to_the_camera_matrix(kind):
    """All four numbers of it, beside the pose's and the Gaussians' own, against finite differences in float64."""
    g = torch.Generator().manual_seed(3)
    points, colors = (torch.rand(40, 3, generator=g) - 0.5) * 1.6, torch.rand(40, 3, generator=g)
    gaussians = from_points(points, colors, degree=1, opacity=0.8, share=0.6)
    gaussians.sh[:, 1:] = 0.3 * torch.randn(40, 3, 3, generator=g)
    gaussians = surfels(gaussians) if kind is SurfelRenderer else gaussians
    field = GaussianField(gaussians, Aabb.cube()).double()
    renderer = kind((0.1, 0.2, 0.3)).double().train()
    camera = cameras_with(CameraModel.PINHOLE, size=24)[0]
    pose = camera.camera_to_world.clone()
    pose[:3, 3] += torch.tensor([0.3, -0.2, 0.1], dtype=F64)  # so that the axis misses the origin
    weights = torch.rand(24, 24, 3, dtype=F64, generator=g)

    def total(K, pose):
        return (renderer.render(field, replace(camera, K=K, camera_to_world=pose)).pixels.colors * weights).sum()

    K, pose = camera.K.clone().requires_grad_(), pose.requires_grad_()
    total(K, pose).backward()
    means, with_pose = field.means.grad.clone(), pose.grad.clone()
    with torch.no_grad():
        for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)):
            h = torch.zeros(3, 3, dtype=F64)
            h[row, column] = 1e-4
            slope = float(total(K + h, pose) - total(K - h, pose)) / 2e-4
            assert float(K.grad[row, column]) == pytest.approx(slope, rel=2e-3, abs=1e-4), (row, column)
    field.zero_grad()
    pose.grad = None
    total(camera.K, pose).backward()
    torch.testing.assert_close(means, field.means.grad)
    turns = [gradient[:3, :3] @ pose.detach()[:3, :3].T for gradient in (with_pose, pose.grad)]
    turns = [turn - turn.T for turn in turns]  # of rotations: others are no poses
    torch.testing.assert_close(*turns, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(with_pose[:3, 3], pose.grad[:3, 3], atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def demo():
    return open_scene("demo", downscale=4)


def wide(views=32, size=64, k1=-0.3):
    """The demo from near and far through a wide lens that bends: otherwise focal length and size look much alike."""
    plain = render_demo(views, 8, hold_out=0)
    to_world, frames = plain.scene_to_world, []
    all_parts = demo_parts()
    for i, frame in enumerate(plain.frames):
        pose = transform_poses(to_world, frame.camera.camera_to_world.double())
        pose[:3, 3] += 0.9 * (i % 3) * pose[:3, 2]  # forwards
        straight = Camera.perspective(size, size, 0.9, pose.float())
        lens = torch.tensor([k1, 0.0, 0.0, 0.0])
        colors, alphas, _, _ = render_view(all_parts, replace(straight, model=CameraModel.OPENCV, distortion=lens))
        pose = transform_poses(similarity_inverse(to_world), pose).float()
        camera = Camera(straight.K, pose, size, size, CameraModel.OPENCV, lens)
        frames.append(Frame(frame.name, camera, colors, alphas=alphas))
    return plain.with_frames(tuple(frames))


def mistaken(scene, focal, straight=False):
    """The scene whose cameras are all said to have another focal length and, if asked for, no distortion."""
    frames = []
    for frame in scene.frames:
        K = frame.camera.K * torch.tensor([[focal, 1, 1], [1, focal, 1], [1, 1, 1]])
        camera = replace(frame.camera, K=K)
        camera = Camera(K, camera.camera_to_world, camera.width, camera.height) if straight else camera
        frames.append(replace(frame, camera=camera))
    return scene.with_frames(tuple(frames))


def test_a_marched_fit_finds_a_distortion_again():
    """Not so its focal length: of an object seen all around, that and the size of the scene look much alike."""
    refine = IntrinsicsConfig(learning_rate=1e-2, begin=0.05)
    config = replace(SMALL, refine_intrinsics=True, intrinsics=refine)
    job, budget = config.build(mistaken(wide(), 1.0, straight=True)), Budget(steps=200)
    fit(job, budget, config.after_step())
    assert float(job.intrinsics.bends()) == pytest.approx(-0.3, abs=0.15)


def test_a_splat_fit_finds_the_focal_length_again():
    truth = blobs()
    scene = mistaken(truth, 0.98)
    first = FirstGaussians(source=Source.POINTS, opacity=0.9, scale=0.5)
    config = splat.Config(sh_degree=0, first=first, max_gaussians=200, refine_intrinsics=True)
    config = replace(config, intrinsics=IntrinsicsConfig(learning_rate=2e-3, begin=0.02))
    job = config.build(scene, budget=Budget(steps=400))
    fit(job, Budget(steps=400), config.after_step())
    assert float(job.intrinsics.scales()) * 0.98 == pytest.approx(1.0, abs=0.004)
    assert job.intrinsics.radial is None


def test_photographs_of_one_camera_share_what_is_found(demo):
    """And so do held-out ones, but not those of a camera that no training view has."""
    train, test = demo.train, demo.test
    K = train[0].camera.K
    other = [replace(train[1], camera=replace(train[1].camera, K=K * 1.5))]
    stranger = [replace(test[1], camera=replace(test[1].camera, K=K * 2.5))]
    scene = demo.with_frames((train[0], *other, train[2], test[0], *stranger))
    intrinsics = intrinsics_of(scene, IntrinsicsConfig())
    assert intrinsics.owners.tolist() == [0, 1, 0] and intrinsics.log_focals.shape == (2,)
    changed(intrinsics)
    refined = with_refined(scene, intrinsics.state_dict())
    scales = [float(a.camera.K[0, 0] / b.camera.K[0, 0]) for a, b in zip(refined.frames, scene.frames, strict=True)]
    a, b = intrinsics.scales().tolist()
    assert scales == pytest.approx([a, b, a, a, 1.0])
    assert not refined.frames[0].camera.K.requires_grad
    assert with_refined(scene, {}) is scene


def test_a_run_keeps_what_was_found_and_a_fit_resumes(demo, tmp_path):
    refine = IntrinsicsConfig(learning_rate=1e-2, begin=0.0)
    config = replace(SMALL, refine_intrinsics=True, refine_poses=True, intrinsics=refine)
    run = fit_run("demo", config, Options(run=tmp_path / "run", steps=6, downscale=4, preview_every=0))
    assert float(run.intrinsics["log_focals"].abs()) > 1e-3
    found = intrinsics_of(demo, IntrinsicsConfig())
    found.load_state_dict(run.intrinsics)
    for view, plain in zip(open_run(tmp_path / "run").scene().test, demo.test, strict=True):
        torch.testing.assert_close(view.camera.K[0, 0].double(), plain.camera.K[0, 0] * found.scales()[0])
        torch.testing.assert_close(view.camera.distortion[0].double(), found.bends()[0])

    budget = Budget(steps=12)
    straight = config.build(demo, 1)
    fit(straight, budget, config.after_step())
    second, first = config.build(demo, 2), config.build(demo, 1)
    fit(first, budget, config.after_step(), stop=lambda: first.step >= 7)
    Checkpoints(tmp_path, 1.0).save(first)
    second.restore(*Checkpoints(tmp_path, 1.0).load())
    fit(second, budget, config.after_step())
    for a, b in zip(straight.intrinsics.parameters(), second.intrinsics.parameters(), strict=True):
        assert torch.equal(a, b)
