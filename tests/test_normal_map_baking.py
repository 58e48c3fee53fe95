"""Tangent frames, and normal maps of a field that knows finer normals than the mesh."""

import json
import struct
from types import SimpleNamespace

import pytest
import torch
from polyfield.apps.normal_map import bake_normals, field_normals
from polyfield.fields.protocols import FieldOutput
from polyfield.geometry import Aabb
from polyfield.geometry.atlas import make_atlas
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.mesh_ops import face_areas
from polyfield.geometry.tangents import across, frames, vertex_tangents
from polyfield.geometry.textured_mesh import TexturedMesh, save_textured

SIZE = 256


class Ball:
    """The distance to a sphere, or a density that falls outwards."""

    bounds = Aabb.cube()
    signed = True

    def __init__(self, sign=1.0):
        self.sign = sign

    def distance(self, points):
        return self.query(points).values

    def query(self, points, directions=None, *, gradients=False):
        return FieldOutput(self.sign * (points.norm(dim=1) - 0.7), self.sign * torch.nn.functional.normalize(points))


class Cloud:
    """A density: no distance."""

    bounds = Aabb.cube()

    def query(self, points, directions=None, *, gradients=False):
        return Ball(-5.0).query(points)


def run_of(field):
    return SimpleNamespace(field=field, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def atlas():
    """A ball with corners."""
    return make_atlas(isosurface(lambda p: p.norm(dim=1) - 0.7, Aabb.cube(), 6), SIZE)


@pytest.fixture(scope="module")
def textured(atlas):
    picture = bake_normals(run_of(Ball()), atlas, 1000)
    mesh = atlas.mesh
    return TexturedMesh(mesh.vertices, mesh.faces, atlas.uvs, torch.full_like(picture, 200), atlas.normals, picture)


def test_tangents_are_where_the_texture_goes(atlas):
    """Along T, u grows and v stays; along B, v falls: the texture goes up."""
    mesh = atlas.mesh
    tangents = vertex_tangents(mesh.vertices, mesh.faces, atlas.uvs, atlas.normals)
    torch.testing.assert_close(tangents[:, :3].norm(dim=1), torch.ones(len(tangents)))
    assert (tangents[:, :3] * atlas.normals).sum(1).abs().max() < 1e-5
    solid = mesh.faces[face_areas(mesh) > 1e-3]
    t, b, _ = frames(atlas.normals[solid].mean(1), tangents[solid].mean(1)).unbind(1)
    edges = (mesh.vertices[solid] - mesh.vertices[solid[:, :1]])[:, 1:]
    steps = (atlas.uvs[solid] - atlas.uvs[solid[:, :1]])[:, 1:]
    flat = torch.stack([(edges * t[:, None]).sum(-1), (edges * b[:, None]).sum(-1)], -1)  # in the frame's axes
    uv_by_place = torch.linalg.solve(flat, steps)
    uv_by_place = uv_by_place / uv_by_place.abs().amax((1, 2), keepdim=True)
    wanted = torch.tensor([[1.0, 0.0], [0.0, -1.0]]).expand_as(uv_by_place)
    torch.testing.assert_close(uv_by_place, wanted, atol=0.35, rtol=0)


def test_a_mirrored_texture():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    faces, up = torch.tensor([[0, 1, 2]]), torch.tensor([0.0, 0, 1]).expand(3, 3)
    plain = vertex_tangents(vertices, faces, torch.tensor([[0.0, 1], [1, 1], [0, 0]]), up)
    torch.testing.assert_close(plain, torch.tensor([1.0, 0, 0, 1]).expand(3, 4))
    mirrored = vertex_tangents(vertices, faces, torch.tensor([[1.0, 1], [0, 1], [1, 0]]), up)
    torch.testing.assert_close(mirrored, torch.tensor([-1.0, 0, 0, -1]).expand(3, 4))
    torch.testing.assert_close(frames(up, mirrored)[0], torch.tensor([[-1.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    none = vertex_tangents(vertices, faces, torch.zeros(3, 2), up)
    torch.testing.assert_close(none[:, :3].norm(dim=1), torch.ones(3))
    torch.testing.assert_close((across(up, up) * up).sum(1), torch.zeros(3))


def test_normals_of_the_field_are_found_again(textured):
    solid = (face_areas(textured.mesh) > 0).nonzero()[:, 0]
    g = torch.Generator().manual_seed(0)
    weights = torch.rand(len(solid), 3, generator=g)
    weights = weights / weights.sum(1, keepdim=True)
    points = (textured.vertices[textured.faces[solid]] * weights[..., None]).sum(1)
    wanted = torch.nn.functional.normalize(points, dim=1)
    angle = lambda n: (n * wanted).sum(1).clamp(-1, 1).acos().rad2deg()  # noqa: E731
    flat = torch.linalg.cross(*(textured.vertices[textured.faces[solid]][:, 1:] - points[:, None]).unbind(1))
    assert angle(torch.nn.functional.normalize(flat, dim=1)).mean() > 4, "the mesh is coarse"
    found = angle(textured.normals_at(solid, weights))
    assert found.mean() < 0.7 and found.max() < 4


def test_which_way_is_out():
    points = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    for field in (Ball(), Cloud()):
        torch.testing.assert_close(field_normals(run_of(field), points, points), points)
    torch.testing.assert_close(field_normals(run_of(Ball(-1.0)), points, points), points, msg="not from within")
    nowhere = torch.zeros(1, 3)
    torch.testing.assert_close(field_normals(run_of(Ball()), nowhere, points[:1]), points[:1])


def test_files(textured, tmp_path):
    save_textured(textured, tmp_path / "mesh.glb")
    data = (tmp_path / "mesh.glb").read_bytes()
    tree = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    (part,) = tree["meshes"][0]["primitives"]
    accessor = tree["accessors"][part["attributes"]["TANGENT"]]
    assert (accessor["type"], accessor["componentType"], accessor["count"]) == ("VEC4", 5126, len(textured.vertices))
    view = tree["bufferViews"][accessor["bufferView"]]
    start = 28 + struct.unpack("<I", data[12:16])[0] + view.get("byteOffset", 0)
    stored = torch.frombuffer(bytearray(data[start : start + view["byteLength"]]), dtype=torch.float32).view(-1, 4)
    x, y, z, w = textured.tangents.unbind(1)
    torch.testing.assert_close(stored, torch.stack([x, z, -y, w], 1))
    material = tree["materials"][part["material"]]
    images = [tree["textures"][i]["source"] for i in (
        material["normalTexture"]["index"], material["pbrMetallicRoughness"]["baseColorTexture"]["index"]
    )]  # fmt: skip
    assert len(set(images)) == 2
    files = save_textured(textured, tmp_path / "mesh.obj")
    assert [path.name for path in files] == ["mesh.obj", "mesh.mtl", "mesh.png", "mesh_normal.png"]
    assert "norm mesh_normal.png" in (tmp_path / "mesh.mtl").read_text().splitlines()
    from PIL import Image

    assert Image.open(tmp_path / "mesh_normal.png").size == (SIZE, SIZE)
