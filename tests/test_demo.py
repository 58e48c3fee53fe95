import math

import pytest
import torch
from polyfield.datasets import demo
from polyfield.datasets.demo_shapes import Capsule, Cylinder, RoundedBox, Sphere, Torus
from polyfield.datasets.scene import SceneError, open_scene
from polyfield.geometry.mesh_ops import sample_surface
from polyfield.geometry.transforms import transform_points

SOLIDS = {
    "sphere": (Sphere((0.1, -0.2, 0.3), 0.4), 4 / 3 * math.pi * 0.4**3),
    "capsule": (
        Capsule((0.0, 0.1, -0.4), (0.3, 0.0, 0.5), 0.05),
        math.pi * 0.05**2 * math.dist((0.0, 0.1, -0.4), (0.3, 0.0, 0.5)) + 4 / 3 * math.pi * 0.05**3,
    ),
    "cylinder": (Cylinder((0.1, 0.0, -0.1), 0.7, 0.1), math.pi * 0.49 * 0.2),
    "torus": (Torus((0.0, 0.1, 0.0), (0.8, 0.6, 0.0), 0.5, 0.12), 2 * math.pi**2 * 0.5 * 0.12**2),
    "hoop": (Torus((0.0, 0.1, 0.0), (0.0, 0.0, 1.0), 0.5, 0.01), 2 * math.pi**2 * 0.5 * 0.01**2),
    "box": (
        RoundedBox((0.1, 0.0, 0.2), 0.3, 0.06, 0.4),
        0.48**3 + 6 * 0.48**2 * 0.06 + 3 * math.pi * 0.06**2 * 0.48 + 4 / 3 * math.pi * 0.06**3,
    ),
}


@pytest.fixture(scope="module")
def scene():
    return demo.render_demo(8, 64)


def rays_at(solid, n=4000, seed=0):
    """Rays from outside that meet the bounding sphere."""
    generator = torch.Generator().manual_seed(seed)
    origin = torch.tensor([1.7, -2.1, 1.3])
    center = torch.tensor(solid.bound_center)
    target = center + torch.randn(n, 3, generator=generator) * solid.bound_radius * 0.45
    directions = torch.nn.functional.normalize(target - origin, dim=-1)
    off = torch.linalg.cross(directions, (center - origin).expand_as(directions)).norm(dim=-1)
    return origin, directions[off < solid.bound_radius * 0.999]


@pytest.mark.parametrize("name", SOLIDS)
def test_hits_lie_on_the_surface_and_nothing_is_passed(name):
    solid, _ = SOLIDS[name]
    origin, directions = rays_at(solid)
    t = solid.hit(origin, directions)
    found = t.isfinite()
    assert float(found.float().mean()) > 0.02
    points = origin + t[found, None] * directions[found]
    assert float(solid.distance(points).abs().max()) < 2e-5
    # What a dense walk along the ray enters, the closed form or tracing must have met, and not later.
    walk = torch.linspace(1.5, 5.0, 1500)
    depth = torch.stack([solid.distance(origin + w * directions) for w in walk])
    inside = depth < -1e-3
    entered = torch.where(inside.any(0), walk[inside.float().argmax(0)], math.inf)
    assert bool((t <= entered + 1e-4).all())
    assert bool((solid.normal(points) * directions[found]).sum(-1).le(1e-2).all())


@pytest.mark.parametrize("name", SOLIDS)
def test_tessellations_are_closed_outward_and_on_the_surface(name):
    solid, volume = SOLIDS[name]
    vertices, faces = solid.triangles(144)
    assert float(solid.distance(vertices).abs().max()) < 2e-6
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward = edges[:, 0] * len(vertices) + edges[:, 1]
    backward = edges[:, 1] * len(vertices) + edges[:, 0]
    assert len(forward.unique()) == len(forward)
    assert torch.equal(forward.sort().values, backward.sort().values)
    a, b, c = vertices[faces].double().unbind(1)
    got = float((a * torch.linalg.cross(b, c)).sum(-1).sum() / 6)
    assert got == pytest.approx(volume, rel=0.03 if name in ("hoop", "capsule") else 0.005)


@pytest.mark.parametrize("name", SOLIDS)
def test_distances_have_unit_gradients(name):
    solid, _ = SOLIDS[name]
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    solid.distance(points).sum().backward()
    norms = points.grad.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(500), atol=1e-4, rtol=0)


def test_scene_has_all_that_can_be_known(scene):
    assert len(scene.train) == 7
    assert len(scene.test) == 1
    assert scene.cascades == 1
    assert not scene.unbounded
    assert scene.memory_bytes == 8 * 64 * 64 * (3 + 1 + 4 + 6)
    for frame in scene.frames:
        assert frame.colors.shape == (64, 64, 3)
        covered, empty = frame.alphas == 255, frame.alphas == 0
        assert 0.1 < float(covered.float().mean()) < 0.7
        rim = torch.cat([frame.alphas[0], frame.alphas[-1], frame.alphas[:, 0], frame.alphas[:, -1]])
        assert int(rim.max()) == 0, "the scene must not leave the image"
        assert float((empty & (frame.depths > 0)).float().mean()) < 0.01
        hit = frame.depths > 0
        assert float((covered & ~hit).float().mean()) < 0.01  # four samples may surround a gap
        norms = frame.normals.float().norm(dim=-1)
        assert bool(((norms[hit] - 1).abs() < 2e-3).all())


def test_depths_and_normals_agree_with_the_solids(scene):
    parts = demo.parts()
    to_world = scene.scene_to_world.float()
    for frame in scene.frames[:3]:
        rays = frame.camera.rays()
        depths = frame.depths.reshape(-1)
        hit = depths > 0
        points = rays.at(depths)[hit]
        assert bool(scene.bounds.contains(points).all())
        world = transform_points(to_world, points)
        gaps = torch.stack([p.solid.distance(world) for p in parts]).amin(0)
        assert float(gaps.abs().max()) < 1e-4
        normals = frame.normals.float().reshape(-1, 3)[hit]
        assert float((normals * rays.directions[hit]).sum(-1).max()) < 0.02


def test_mesh_is_the_surface_that_depths_see(scene):
    mesh = scene.mesh
    world = transform_points(scene.scene_to_world.float(), mesh.vertices)
    gaps = torch.stack([p.solid.distance(world) for p in demo.parts()]).abs().amin(0)
    assert float(gaps.max()) < 1e-5
    assert int(mesh.faces.max()) < len(mesh.vertices)
    assert 0 <= float(mesh.colors.min()) <= float(mesh.colors.max()) <= 1
    torch.testing.assert_close(mesh.normals.norm(dim=-1), torch.ones(len(mesh.vertices)), atol=2e-3, rtol=0)
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    outward = (torch.linalg.cross(b - a, c - a) * mesh.normals[mesh.faces[:, 0]]).sum(-1)
    assert float((outward > 0).float().mean()) > 0.995
    frame = scene.frames[5]
    seen = frame.camera.rays().at(frame.depths.reshape(-1))[frame.depths.reshape(-1) > 0][::7]
    assert float(torch.cdist(seen, mesh.vertices).amin(-1).max()) < 0.05


def test_deterministic(scene):
    again = demo.render_demo(8, 64)
    for a, b in zip(scene.frames, again.frames, strict=True):
        assert torch.equal(a.colors, b.colors)
        assert torch.equal(a.depths, b.depths)
    assert torch.equal(scene.mesh.vertices, again.mesh.vertices)


def test_gloss_depends_on_the_view_and_wood_hardly(scene):
    parts = demo.parts()
    vertices, _ = parts[3].solid.triangles(48)
    surface = demo.Surface.at(parts, vertices, torch.full((len(vertices),), 3))
    light = torch.ones(len(vertices), 2)
    eyes = torch.nn.functional.normalize(torch.tensor([[0.5, -0.3, 0.8], [-0.5, 0.2, 0.8]]), dim=-1)
    one, other = (demo.shade(surface, light, eye.expand_as(vertices)) for eye in eyes)
    assert float((one - other).abs().max()) > 0.3


def test_downscale_and_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "VIEWS", 4)
    small = open_scene("demo", downscale=8, hold_out=0)
    assert small.frames[0].colors.shape == (25, 25, 3)
    assert len(small.train) == 4
    with pytest.raises(SceneError, match=r"demo: downscale: expected at most 25, got 60"):
        open_scene("demo", downscale=60)
    with pytest.raises(SceneError, match=r"demo: its images need .* use --downscale"):
        open_scene("demo", max_memory=1000)
    (tmp_path / "demo").mkdir()
    with pytest.raises(SceneError, match=r"empty folder"):
        open_scene("demo")


def test_true_surfaces_do_not_lie_against_each_other():
    """Nothing that is fitted to pictures could find what is hidden where solids touch."""
    parts = demo.parts()
    points, normals = sample_surface(demo.demo_mesh(parts), 600, torch.Generator().manual_seed(0))
    ways = torch.nn.functional.normalize(torch.randn(100, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    at = (points + 2e-3 * normals)[:, None].expand(-1, len(ways), -1).reshape(-1, 3)
    away = ways.repeat(len(points), 1)
    free = ((away * normals.repeat_interleave(len(ways), 0)).sum(1) > 0.05).clone()
    for _ in range(60):
        gap = torch.stack([part.solid.distance(at) for part in parts]).amin(0)
        free &= gap > 1e-3
        at = at + gap.clamp(min=0)[:, None] * away
    seen = free.view(len(points), -1).any(1)
    assert float(seen.float().mean()) > 0.97
