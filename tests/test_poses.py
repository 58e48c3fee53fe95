"""Refined poses: the motions' closed form, what stays fixed, and that fits find perturbed cameras again."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.coarse_to_fine import CoarseToFineConfig
from polyfield.apps.first_gaussians import FirstGaussians, Source
from polyfield.apps.fit import Budget, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.recipes import splat
from polyfield.datasets.scene import Frame, Scene, open_scene
from polyfield.fields.gaussian_init import from_points
from polyfield.fields.gaussians import GaussianField
from polyfield.geometry import Aabb, Camera
from polyfield.geometry.transforms import look_at, skew
from polyfield.renderers.pose_deltas import PoseConfig, PoseDeltas
from polyfield.renderers.splat import SplatRenderer

from .test_fit import SMALL

F64 = torch.float64


def ring(views, size, seed=0):
    """Cameras all around the origin."""
    g = torch.Generator().manual_seed(seed)
    eyes = 3 * torch.nn.functional.normalize(torch.randn(views, 3, generator=g), dim=-1)
    poses = look_at(eyes, torch.zeros(views, 3), torch.tensor([0.0, 0.0, 1.0]))
    return [Camera.perspective(size, size, 0.8, pose) for pose in poses]


def centers(cameras):
    return torch.stack([camera.position for camera in cameras])


def test_a_delta_is_the_matrix_exponential_about_the_cameras_centre():
    cameras = [replace(c, camera_to_world=c.camera_to_world.double()) for c in ring(5, 8)]
    deltas = PoseDeltas(centers(cameras))
    with torch.no_grad():
        deltas.twists.copy_(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) * 0.3)
    rho, phi = deltas.deltas()[2].detach().split(3)
    about_center = torch.eye(4, dtype=F64)
    about_center[:3, 3] = cameras[2].position
    generator = torch.zeros(4, 4, dtype=F64)
    generator[:3, :3], generator[:3, 3] = skew(phi), rho
    motion = about_center @ torch.linalg.matrix_exp(generator) @ about_center.inverse()
    moved = deltas(cameras[2], torch.tensor(2))
    torch.testing.assert_close(moved.camera_to_world, motion @ cameras[2].camera_to_world, atol=1e-12, rtol=0)


def test_rays_move_as_their_cameras_do():
    cameras = ring(4, 6)
    deltas = PoseDeltas(centers(cameras))
    with torch.no_grad():
        deltas.twists.copy_(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)) * 0.1)
    for number, camera in enumerate(cameras):
        moved = deltas(camera.rays(), torch.full((36,), number))
        wanted = deltas(camera, torch.tensor(number)).rays()
        torch.testing.assert_close(moved.origins, wanted.origins)
        torch.testing.assert_close(moved.directions, wanted.directions)


def test_nothing_moves_all_cameras_together():
    c = centers(ring(6, 8)).double()
    deltas = PoseDeltas(c)
    shift, turn = torch.tensor([0.1, -0.2, 0.3], dtype=F64), torch.tensor([0.02, 0.05, -0.01], dtype=F64)
    carried = shift + torch.linalg.cross(turn.expand_as(c), c) + 0.03 * c
    alone = torch.zeros(6, 6, dtype=F64)
    alone[0, 4] = 0.1
    with torch.no_grad():
        deltas.twists.copy_(torch.cat([carried, turn.expand_as(c)], 1))
        assert deltas.deltas().abs().max() < 1e-12
        deltas.twists.add_(alone)
        assert deltas.deltas()[0, 4] > 0.05, "what one camera does alone stays"
    with torch.no_grad():
        single = PoseDeltas(c[:1])
        single.twists.fill_(0.1)
        assert single.deltas().abs().max() < 0.1


def test_poses_wait_for_their_share_of_the_budget():
    cameras = ring(3, 8)
    deltas = PoseDeltas(centers(cameras), PoseConfig(begin=0.5))
    assert not deltas(cameras[0], torch.tensor(0), 0.4).camera_to_world.requires_grad
    assert not deltas.prior(None).requires_grad
    assert deltas(cameras[0], torch.tensor(0), 0.5).camera_to_world.requires_grad
    assert deltas.prior(None).requires_grad


def test_gradients():
    camera = replace(ring(3, 8)[1], K=torch.eye(3, dtype=F64))
    camera = replace(camera, camera_to_world=camera.camera_to_world.double())
    deltas = PoseDeltas(centers(ring(3, 8)).double())

    def moved(twists):
        pose = torch.func.functional_call(deltas, {"twists": twists}, (camera, torch.tensor(1))).camera_to_world
        return pose[:3]

    twists = torch.randn(3, 6, dtype=F64, generator=torch.Generator().manual_seed(0)) * 0.2
    assert torch.autograd.gradcheck(moved, twists.requires_grad_())


def perturbed(scene, degrees, share, seed=0):
    """The scene with its training cameras turned and moved, by what is left without a common part."""
    cameras = [f.camera for f in scene.train]
    away = PoseDeltas(centers(cameras))
    g = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(len(cameras), 2, 3, generator=g), dim=-1)
    distance = share * centers(cameras).norm(dim=-1).mean()
    with torch.no_grad():
        away.twists.copy_((unit * torch.stack([distance, torch.tensor(degrees).deg2rad()])[:, None]).flatten(1))
        moved = {f.name: away(f.camera, torch.tensor(i)).detach() for i, f in enumerate(scene.train)}
    return scene.with_frames(tuple(replace(f, camera=moved.get(f.name, f.camera)) for f in scene.frames))


@torch.no_grad()
def errors(truth, scene, poses=None):
    """Mean angle in radians and mean distance between true cameras and those of a scene, refined if told how."""
    found = []
    for i, (a, b) in enumerate(zip(truth.train, scene.train, strict=True)):
        camera = b.camera if poses is None else poses(b.camera, torch.tensor(i))
        turn = a.camera.camera_to_world[:3, :3].T @ camera.camera_to_world[:3, :3]
        angle = (turn - torch.eye(3)).norm() / 2**0.5  # of small rotations
        found.append(torch.stack([angle, (a.camera.position - camera.position).norm()]))
    return torch.stack(found).mean(0)


@torch.no_grad()
def misplaced(truth, scene, poses=None, points=300):
    """Mean distance in pixels between where true cameras see points of the surface and where a scene's do."""
    vertices = truth.mesh.vertices
    seen, found = vertices[:: max(1, len(vertices) // points)], []
    for i, (a, b) in enumerate(zip(truth.train, scene.train, strict=True)):
        camera = b.camera if poses is None else poses(b.camera, torch.tensor(i))
        found.append((a.camera.project(seen)[0] - camera.project(seen)[0]).norm(dim=-1).mean())
    return float(torch.stack(found).mean())


def blobs(views=12, size=48):
    """A scene of coloured Gaussians, photographed by the renderer."""
    g = torch.Generator().manual_seed(3)
    points = (torch.rand(150, 3, generator=g) - 0.5) * 1.6
    colors = torch.rand(150, 3, generator=g)
    field = GaussianField(from_points(points, colors, opacity=0.9, share=0.5), Aabb.cube())
    renderer = SplatRenderer((0.0, 0.0, 0.0)).eval()
    frames = []
    for i, camera in enumerate(ring(views, size)):
        picture = renderer.render(field, camera).pixels.colors
        frames.append(Frame(f"{i:02d}", camera, (picture.clamp(0, 1) * 255).round().byte()))
    world = torch.eye(4, dtype=F64)
    return Scene("blobs", tuple(frames), world, Aabb.cube(), near=0.1, points=points, point_colors=colors)


def test_a_splat_fit_finds_its_cameras_again():
    truth = blobs()
    scene = perturbed(truth, 1.0, 0.01)
    first = FirstGaussians(source=Source.POINTS, opacity=0.9, scale=0.5)
    poses = PoseConfig(learning_rate=2e-3)
    config = splat.Config(sh_degree=0, first=first, max_gaussians=200, refine_poses=True, poses=poses)
    budget = Budget(steps=1500)
    job = config.build(scene, budget=budget)
    fit(job, budget, config.after_step())
    before, after = errors(truth, scene), errors(truth, scene, job.poses)
    assert (after < before / 3).all(), (before, after)


@pytest.fixture(scope="module")
def demo():
    return open_scene("demo", downscale=4)


def test_gaussians_go_on_from_the_cameras_that_a_hash_grid_found(demo):
    scene = perturbed(demo, 2.0, 0.02)
    poses = PoseConfig(learning_rate=2e-3, begin=0.02)
    first = FirstGaussians(source=Source.GRID, count=2000, poses_share=0.5)
    config = splat.Config(sh_degree=0, first=first, refine_poses=True, poses=poses)
    job = config.build(scene, budget=Budget(steps=240))
    before, after = misplaced(demo, scene), misplaced(demo, scene, job.poses)
    assert after < 0.7 * before, (before, after)


def test_a_marched_fit_finds_its_cameras_again(demo):
    """Cameras of an orbit that turn and those that shift look much alike: what is measured is what they see."""
    scene = perturbed(demo, 2.0, 0.02)
    poses = PoseConfig(learning_rate=2e-3, begin=0.02)
    config = replace(SMALL, refine_poses=True, poses=poses)
    job, budget = config.build(scene), Budget(steps=200)
    fit(job, budget, config.after_step())
    before, after = misplaced(demo, scene), misplaced(demo, scene, job.poses)
    assert before > 1.5
    assert after < 0.5 * before, (before, after)


def test_a_marched_colour_has_a_gradient_to_its_camera(demo):
    """Finite differences, through the field's composed ops; roughly, as intervals come and go."""
    config = replace(SMALL, march=replace(SMALL.march, near_gradients=0.0))  # else they are not the colours' own
    job = config.build(demo)
    fit(job, Budget(steps=30), config.after_step())
    job.field.requires_grad_(False)
    camera = demo.test[0].camera
    rays = camera.rays(torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) * 20 + 15, near=0.1)
    number = torch.zeros(64, dtype=torch.long)
    deltas = PoseDeltas(centers([f.camera for f in demo.train]))

    def total(twist):
        deltas.twists.data[0] = twist
        return job.renderer.render(job.field, deltas(rays, number)).pixels.colors.double().sum()

    total(torch.zeros(6)).backward()
    gradient = deltas.twists.grad.clone()
    with torch.no_grad():
        for axis in range(6):
            h = 1e-3 * torch.eye(6)[axis]
            slope = (total(h) - total(-h)) / 2e-3
            assert abs(float(slope - gradient[0, axis])) < 0.2 * float(gradient[0].abs().max())


def test_levels_join_in_one_after_the_other(demo, tmp_path):
    config = replace(SMALL, refine_poses=True, coarse_to_fine=CoarseToFineConfig(levels=2, until=0.5))
    job, budget = config.build(demo), Budget(steps=24)
    table, sizes = job.field.encoding.table, list(job.field.encoding.layout.sizes)
    first = table.detach().clone().split(sizes)

    def learning():
        return [not torch.equal(a, b) for a, b in zip(table.split(sizes), first, strict=True)]

    fit(job, budget, config.after_step(), stop=lambda: job.step >= 2)
    assert learning() == [True] * 2 + [False] * 6
    fit(job, budget, config.after_step(), stop=lambda: job.step >= 9)
    assert learning() == [True] * 5 + [False] * 3
    Checkpoints(tmp_path, 1.0).save(job)
    fit(job, budget, config.after_step())
    assert learning() == [True] * 8
    again = config.build(demo, 3)
    again.restore(*Checkpoints(tmp_path, 1.0).load())
    assert again.parts["coarse_to_fine"].levels == 6
    fit(again, budget, config.after_step())
    assert torch.equal(again.field.encoding.table, table) and torch.equal(again.poses.twists, job.poses.twists)
    assert "coarse_to_fine" not in SMALL.build(demo).parts
