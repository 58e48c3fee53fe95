"""`polyfield extract RUN --texture N`, from the field and from photographs."""

import pytest
import torch
from polyfield.apps import texturing
from polyfield.apps.__main__ import main
from polyfield.apps.errors import UserError
from polyfield.apps.run import open_run
from polyfield.apps.texture_source import TextureSource
from polyfield.apps.texturing import Views, field_colors, texture_mesh
from polyfield.datasets import demo
from polyfield.datasets.scene import Frame
from polyfield.geometry import Aabb, Camera, Mesh
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.mesh_io import load_mesh
from polyfield.geometry.mesh_ops import face_areas, joined, transform
from polyfield.geometry.raster import see_mesh
from polyfield.geometry.transforms import look_at, similarity_inverse


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    options = ["--steps", "80", "--downscale", "4", "--samples-per-step", "4096", "--preview-every", "0"]
    assert main(["fit", "ngp", "demo", "--run", str(folder), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def opened(run):
    return open_run(run)


def ball():
    """The demo's striped ball, in the user's units, coarsely."""
    mesh = isosurface(lambda p: p.norm(dim=1) - 0.36, Aabb.cube(0.5), 10)
    return Mesh(mesh.vertices + torch.tensor([-0.56, -0.40, 0.36]), mesh.faces, mesh.normals)


def middles(mesh):
    """Middles of the triangles and the normals there."""
    normals = torch.nn.functional.normalize(mesh.normals[mesh.faces].mean(1), dim=1)
    return mesh.vertices[mesh.faces].mean(1), normals


def in_scene(opened, mesh):
    return transform(mesh, similarity_inverse(opened.asked.facts.matrix))


def test_the_texture_shows_what_the_field_shows(opened):
    textured = texture_mesh(opened, ball(), 256)
    faces = torch.arange(len(textured.faces))
    found = textured.colors_at(faces, torch.full((len(faces), 3), 1 / 3))
    mesh = in_scene(opened, textured.mesh)
    points, normals = middles(mesh)
    wanted = field_colors(opened, points, Views(mesh, opened.scene().train).directions(points, normals))
    torch.testing.assert_close(textured.vertices[textured.faces], ball().vertices[ball().faces], atol=1e-5, rtol=0)
    assert (found - wanted).abs().mean() < 0.02
    assert wanted.std(0).min() > 0.05, "stripes"


def test_a_ray_sees_the_surface_and_nothing_else(opened):
    """What lies beyond its reach, as the backdrop does, has no share; where it meets nothing, the field is asked."""
    points, normals = middles(in_scene(opened, ball()))
    colors = field_colors(opened, points, -normals)
    opened.renderer.background.color = opened.renderer.backdrop * 0
    assert (colors - field_colors(opened, points, -normals)).abs().max() < 1e-3
    nowhere = torch.tensor([[0.0, 0.0, 0.95]])
    up = torch.tensor([[0.0, 0.0, 1.0]])
    wanted = opened.field.query(nowhere, -up).colors
    torch.testing.assert_close(field_colors(opened, nowhere, -up), wanted.detach())
    assert field_colors(opened, nowhere[:0], up[:0]).shape == (0, 3)


def shade(points):
    return (0.5 + 0.4 * torch.sin(4 * points + torch.tensor([0.0, 1.0, 2.0]))).clamp(0, 1)


def photographed(mesh, poses, colors=shade, size=160):
    """Frames that show ``colors`` of places on a mesh, on black, transparent where nothing is."""
    frames = []
    for i, pose in enumerate(poses):
        camera = Camera.perspective(size, size, 0.9, pose)
        seen = see_mesh(mesh, camera)
        points = (mesh.vertices[mesh.faces[seen.faces.clamp_min(0)]] * seen.weights[..., None]).sum(2)
        solid = seen.faces >= 0
        picture = colors(points.reshape(-1, 3)).view(size, size, 3) * solid[..., None]
        frames.append(
            Frame(f"{i}", camera, (picture * 255).round().to(torch.uint8), alphas=(solid * 255).to(torch.uint8))
        )
    return tuple(frames)


def around(count, distance=2.0):
    g = torch.Generator().manual_seed(0)
    eyes = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1) * distance
    return [look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])) for eye in eyes]


def test_photographs_blend_to_the_surfaces_own_colors():
    mesh = isosurface(lambda p: p.norm(dim=1) - 0.6, Aabb.cube(), 24)
    blend = Views(mesh, photographed(mesh, around(14)))
    colors, known = blend.colors(mesh.vertices, mesh.normals)
    assert known.float().mean() > 0.97
    error = (colors - shade(mesh.vertices))[known].abs()
    assert error.mean() < 0.01 and error.max() < 0.08
    none, unknown = Views(mesh, ()).colors(mesh.vertices, mesh.normals)
    assert not unknown.any() and none.shape == mesh.vertices.shape


def test_directions_are_those_of_the_photographs():
    """One that sees a point alone gives its own; where none does, and without any, it is against the normal."""
    mesh = isosurface(lambda p: p.norm(dim=1) - 0.6, Aabb.cube(), 16)
    poses = around(14)
    one = Views(mesh, photographed(mesh, poses[:1]))
    seen = one.colors(mesh.vertices, mesh.normals)[1]
    found = one.directions(mesh.vertices, mesh.normals)
    own = torch.nn.functional.normalize(mesh.vertices - poses[0][:3, 3], dim=1)
    assert seen.any() and not seen.all()
    torch.testing.assert_close(found[seen], own[seen], atol=1e-3, rtol=0)
    behind = (own * mesh.normals).sum(1) > 0
    torch.testing.assert_close(found[behind], -mesh.normals[behind])
    torch.testing.assert_close(Views(mesh, ()).directions(mesh.vertices, mesh.normals), -mesh.normals)
    among = Views(mesh, photographed(mesh, poses)).directions(mesh.vertices, mesh.normals)
    torch.testing.assert_close(among.norm(dim=1), torch.ones(len(among)))
    assert ((among * -mesh.normals).sum(1) > texturing.GRAZING).all()


def test_without_its_photographs_a_field_still_has_a_texture(opened, monkeypatch, capsys):
    def gone(self):
        raise UserError("/x: expected a folder with a data set, found nothing there")

    monkeypatch.setattr("polyfield.apps.run.Run.scene", gone)
    textured = texture_mesh(opened, ball(), 64)
    assert textured.texture.float().std() > 10
    assert "note: extract: colours are those seen against the normals" in capsys.readouterr().err
    with pytest.raises(UserError, match="found nothing there"):
        texture_mesh(opened, ball(), 64, TextureSource.PHOTOGRAPHS)


def test_what_a_photograph_does_not_see_it_does_not_color():
    """A red square before a blue one: nothing of the blue one is red, and its hidden part is unknown."""
    quad = torch.tensor([[0, 1, 2], [0, 2, 3]])
    square = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    facing = torch.tensor([0.0, 0.0, 1.0]).expand(4, 3)
    front, back = Mesh(square * 0.4 + 0.4 * facing, quad, facing), Mesh(square, quad, facing)
    mesh = joined([front, back])
    paint = lambda p: torch.where(p[:, 2:] > 0.2, p.new_tensor([1.0, 0, 0]), p.new_tensor([0.0, 0, 1.0]))  # noqa: E731
    above = look_at(torch.tensor([0.0, 0.02, 2.0]), torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]))
    blend = Views(mesh, photographed(mesh, [above], paint))
    x, y = torch.meshgrid(*[torch.linspace(-0.45, 0.45, 40)] * 2, indexing="ij")
    points = torch.stack([x, y, torch.zeros_like(x)], -1).view(-1, 3)
    colors, known = blend.colors(points, facing[:1].expand_as(points))
    assert (colors[known] - torch.tensor([0.0, 0, 1.0])).abs().max() < 1e-5
    assert not known[points[:, :2].abs().amax(1) < 0.2].any()
    assert known[points[:, :2].abs().amax(1) > 0.32].all()
    away = blend.colors(points, -facing[:1].expand_as(points))[1]
    assert not away.any(), "the other side"
    masked = photographed(mesh, [above], paint)[0]
    masked = Frame("masked", masked.camera, masked.colors, mask=torch.zeros(160, 160, dtype=torch.bool))
    assert not Views(mesh, (masked,)).colors(points, facing[:1].expand_as(points))[1].any()


def test_photographs_of_the_demo_show_its_own_colors(opened):
    """Solids that hide one another; glossy in the photographs, matte in the mesh."""
    mesh = in_scene(opened, demo.demo_mesh(demo.parts(), 24))
    blend = Views(mesh, opened.scene().train)
    colors, known = blend.colors(mesh.vertices, mesh.normals)
    areas = torch.zeros(len(mesh.vertices))
    for k in range(3):
        areas.index_add_(0, mesh.faces[:, k], face_areas(mesh) * known[mesh.faces[:, k]])
    error = (colors - mesh.colors).abs().mean(1)
    assert known.float().mean() > 0.9
    assert (error * areas).sum() / areas.sum() < 0.08


def test_a_run_textured_from_its_photographs(opened):
    """The field fills in what no photograph sees."""
    textured = texture_mesh(opened, ball(), 64, TextureSource.PHOTOGRAPHS)
    faces = torch.arange(len(textured.faces))
    found = textured.colors_at(faces, torch.full((len(faces), 3), 1 / 3))
    mesh = in_scene(opened, textured.mesh)
    points, normals = middles(mesh)
    views = Views(mesh, opened.scene().train)
    wanted, known = views.colors(points, normals)
    assert 0.5 < known.float().mean() <= 1
    wanted = torch.where(known[:, None], wanted, field_colors(opened, points, views.directions(points, normals)))
    assert (found - wanted).abs().mean() < 0.03


def test_extract_with_a_texture(run, tmp_path, capsys):
    options = ["--resolution", "32", "--target-faces", "600", "--texture", "128"]
    for ending, count in (("glb", 1), ("obj", 4)):
        path = tmp_path / ending / f"mesh.{ending}"
        path.parent.mkdir()
        assert main(["extract", str(run), "--output", str(path), *options, *["--normal-map"][: count > 1]]) == 0
        assert len(list(path.parent.iterdir())) == count
        mesh = load_mesh(path)
        assert 200 < len(mesh.faces) <= 700
        assert mesh.colors.std(0).min() > 0.02
    assert "mesh.mtl" in capsys.readouterr().out


def test_errors(run, opened, tmp_path, capsys, monkeypatch):
    assert main(["extract", str(run), "--output", str(tmp_path / "mesh.ply"), "--texture", "64"]) == 2
    assert "extract: --output: expected a file ending with .glb or .obj for a texture" in capsys.readouterr().err
    assert main(["extract", str(run), "--output", str(tmp_path / "mesh.glb"), "--normal-map"]) == 2
    assert "extract: --normal-map: expected --texture as well, got none" in capsys.readouterr().err
    assert main(["extract", str(run), "--output", str(tmp_path / "mesh.glb"), "--texture-from", "field"]) == 2
    assert "extract: --texture-from: expected --texture as well, got none" in capsys.readouterr().err
    assert main(["extract", str(run), "--output", str(tmp_path / "mesh.glb"), "--texture", "4"]) == 2
    assert "extract: --texture: expected at least 16 texels a side, got 4" in capsys.readouterr().err
    monkeypatch.setattr(texturing, "free_memory", lambda device: 2 << 30)
    assert main(["extract", str(run), "--output", str(tmp_path / "mesh.glb"), "--texture", "65536"]) == 2
    said = capsys.readouterr().err
    assert "65536 x 65536 texels need about 160.00 GB, 2.00 GB are free; ask for at most 7312" in said
    texturing.check_texture(7312)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="extract: --texture: make_atlas: mesh: expected at least one triangle"):
        texture_mesh(opened, Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.long)), 64)
