"""Built-in scenes of open surfaces: exact from both sides, and with a boundary."""

import math
from pathlib import Path

import pytest
import torch
from polyfield.apps.run import open_data
from polyfield.datasets import demo
from polyfield.datasets.demo_sheets import Bowl, Cloth
from polyfield.datasets.scene import SceneError, open_scene
from polyfield.geometry import Mesh
from polyfield.geometry.mesh_distance import MeshDistance
from polyfield.geometry.mesh_ops import boundary_length
from polyfield.geometry.transforms import transform_points

SHEETS = {
    "bowl": (Bowl((0.1, -0.1, 0.2), 0.6, 0.0), 2 * math.pi * 0.6),
    "cap": (Bowl((0.0, 0.1, 0.0), 0.6, -0.3), 2 * math.pi * math.sqrt(0.27)),
    "cloth": (Cloth((0.1, 0.0, 0.2), 0.3, 1.0, 3, 0.5), 4 * 0.5 + 2 * 3 * 2 * 0.3),
}


@pytest.fixture(scope="module", params=["demo_bowl", "demo_cloth"])
def scene(request):
    return demo.render_demo(8, 48, name=request.param)


@pytest.mark.parametrize("name", SHEETS)
def test_sheets_agree_with_their_triangles(name):
    sheet, rim = SHEETS[name]
    vertices, faces = sheet.triangles(160)
    mesh = Mesh(vertices, faces)
    assert float(sheet.distance(vertices).max()) < 1e-5
    assert boundary_length(mesh) == pytest.approx(rim, rel=0.005)
    points = torch.tensor(sheet.bound_center) + sheet.bound_radius * torch.randn(
        500, 3, generator=torch.Generator().manual_seed(0)
    )
    exact = MeshDistance(mesh, signed=False)
    assert float((sheet.distance(points) - exact(points).distances).abs().max()) < 2e-3
    normals = sheet.normal(vertices)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    of_faces = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
    assert float((of_faces * normals[faces[:, 0]]).sum(1).min()) > 0.9


@pytest.mark.parametrize("name", SHEETS)
def test_rays_stop_at_the_first_side_that_they_meet(name):
    sheet, _ = SHEETS[name]
    origin = torch.tensor([1.2, -1.9, 1.5])
    target = torch.tensor(sheet.bound_center) + 0.4 * torch.randn(3000, 3, generator=torch.Generator().manual_seed(1))
    directions = torch.nn.functional.normalize(target - origin, dim=1)
    t = sheet.hit(origin, directions)
    met = t.isfinite()
    assert 0.2 < float(met.float().mean()) < 0.99
    assert float(sheet.distance(origin + t[met, None] * directions[met]).max()) < 1e-4
    for share in torch.linspace(0.02, 0.97, 60).tolist():
        reach = torch.where(met, t, 4.0) * share
        assert float(sheet.distance(origin + reach[:, None] * directions).min()) > 1e-4, "nothing lies before it"


def test_views_see_both_sides(scene):
    part = demo.NAMES[scene.name]()[0]
    to_world = scene.scene_to_world.float()
    sides = []
    for frame in scene.frames:
        hit = frame.depths.reshape(-1) > 0
        rays = frame.camera.rays()
        points = rays.at(frame.depths.reshape(-1))[hit]
        world = transform_points(to_world, points)
        assert float(part.solid.distance(world).max()) < 1e-4
        normals = frame.normals.reshape(-1, 3)[hit].float()
        assert float((normals * rays.directions[hit]).sum(1).max()) < 0.02, "turned towards the eye"
        sides.append((normals * part.solid.normal(world)).sum(1) > 0)
    share = float(torch.cat(sides).float().mean())
    assert 0.1 < share < 0.9
    assert boundary_length(scene.mesh) > 3
    assert bool(scene.bounds.contains(scene.mesh.vertices).all())


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "VIEWS", 3)
    found = open_scene("demo_bowl", downscale=8)
    assert found.name == "demo_bowl"
    with pytest.raises(SceneError, match="demo_cloth: downscale: expected at most 25, got 60"):
        open_scene("demo_cloth", downscale=60)
    (tmp_path / "demo_bowl").mkdir()
    assert not demo.matches(Path("demo_bowl"))
    assert open_data(None, "demo_bowl", 8).name == "demo_bowl", "a run goes on meaning the built-in scene"
