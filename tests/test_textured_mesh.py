"""Files of textured meshes, read by another program: the same colours at the same points, the right way up."""

import json
import struct

import numpy as np
import pytest
import torch
from polyfield.geometry import Aabb
from polyfield.geometry.atlas import fill_gutters, make_atlas
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.mesh_io import load_mesh
from polyfield.geometry.mesh_ops import face_areas
from polyfield.geometry.textured_mesh import TexturedMesh, save_textured

SIZE = 128


def shade(points):
    return 0.5 + 0.6 * points


@pytest.fixture(scope="module")
def textured():
    """An ellipsoid without any symmetry in its colours; its texture is higher than wide on purpose."""
    mesh = isosurface(lambda p: (p * torch.tensor([1.0, 1.4, 1.9])).norm(dim=1) - 0.7, Aabb.cube(), 12)
    atlas = make_atlas(mesh, SIZE)
    filled = atlas.texel_faces >= 0
    texels = filled.nonzero()[:, 0]
    texture = torch.zeros(SIZE * SIZE, 3, dtype=torch.uint8)
    texture[texels] = (shade(atlas.points(texels)[0]) * 255).round().to(torch.uint8)
    picture = fill_gutters(texture.view(SIZE, SIZE, 3), filled.view(SIZE, SIZE))
    return TexturedMesh(
        atlas.mesh.vertices,
        atlas.mesh.faces,
        atlas.uvs * torch.tensor([1.0, 0.5]),
        torch.cat([picture, torch.zeros_like(picture)]),
        atlas.mesh.normals,
    )


def read(path):
    """Points in the middle of the triangles and their colours, looked up by trimesh's rules; the vertex normals."""
    import trimesh

    (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
    image = getattr(mesh.visual.material, "baseColorTexture", None) or mesh.visual.material.image
    middle = mesh.visual.uv[mesh.faces].mean(1)
    colors = trimesh.visual.color.uv_to_interpolated_color(middle, image.convert("RGB"))[:, :3]
    return torch.tensor(mesh.triangles_center).float(), torch.tensor(colors) / 255, mesh


@pytest.mark.parametrize("ending", ["glb", "obj", "GLB"])
@pytest.mark.parametrize("up", ["z", "y", "-y"])
def test_another_program_finds_the_same_colors_at_the_same_points(textured, tmp_path, ending, up):
    path = tmp_path / f"mesh.{ending}"
    files = save_textured(textured, path, up=up)
    assert sorted(files) == sorted(tmp_path.iterdir())
    points, colors, mesh = read(path)
    if ending != "obj":
        x, y, z = points.unbind(1)
        points = {"y": points, "z": torch.stack([x, -z, y], 1), "-y": torch.stack([x, -y, -z], 1)}[up]
    wanted = textured.vertices[textured.faces].mean(1)
    solid = face_areas(textured.mesh) > 0
    points, colors, wanted = points[solid], colors[solid], wanted[solid]
    torch.testing.assert_close(points, wanted, atol=1e-5, rtol=0)
    assert (colors - shade(wanted)).abs().max() < 0.03
    normals = torch.tensor(mesh.vertex_normals).float()
    outwards = (normals * torch.tensor(mesh.vertices).float()).sum(1)
    assert (outwards > 0).all()


@pytest.mark.parametrize("ending", ["glb", "obj"])
def test_load_mesh_makes_colors_of_vertices_of_it(textured, tmp_path, ending):
    path = tmp_path / f"mesh.{ending}"
    save_textured(textured, path)
    found = load_mesh(path)
    torch.testing.assert_close(found.vertices, textured.vertices, atol=1e-6, rtol=0)
    assert (found.colors - shade(found.vertices)).abs().max() < 0.05, "vertices of slivers too"


def test_colors_between_texels(textured):
    weights = torch.full((len(textured.faces), 3), 1 / 3)
    colors = textured.colors_at(torch.arange(len(textured.faces)), weights)
    middles = textured.vertices[textured.faces].mean(1)
    solid = face_areas(textured.mesh) > 0
    assert (colors - shade(middles))[solid].abs().max() < 0.03
    two = torch.tensor([[[0, 0, 0], [200, 100, 0]], [[100, 0, 0], [100, 0, 0]]], dtype=torch.uint8)
    flat = TexturedMesh(
        torch.eye(3), torch.tensor([[0, 1, 2]]), torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.5, 0.5]]), two
    )
    found = flat.colors_at(torch.zeros(4, dtype=torch.long), torch.cat([torch.eye(3), torch.tensor([[0.5, 0.5, 0]])]))
    wanted = torch.tensor([[0, 0, 0], [200, 100, 0], [100, 25, 0], [100, 50, 0]]) / 255
    torch.testing.assert_close(found, wanted)


def test_what_the_files_hold(textured, tmp_path):
    path = tmp_path / "mesh.glb"
    save_textured(textured, path)
    data = path.read_bytes()
    tree = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    (part,) = tree["meshes"][0]["primitives"]
    assert set(part["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    material = tree["materials"][part["material"]]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0 and "baseColorTexture" in material
    assert tree["images"][0]["mimeType"] == "image/png" and "bufferView" in tree["images"][0]
    save_textured(TexturedMesh(textured.vertices, textured.faces, textured.uvs, textured.texture), tmp_path / "a b.obj")
    text = (tmp_path / "a b.obj").read_text().splitlines()
    assert "mtllib a b.mtl" in text and not any(line.startswith("vn") for line in text)
    assert "map_Kd a b.png" in (tmp_path / "a b.mtl").read_text().splitlines()
    from PIL import Image

    assert np.array_equal(np.array(Image.open(tmp_path / "a b.png")), textured.texture.numpy())


def test_errors(textured, tmp_path):
    with pytest.raises(ValueError, match=r"save_textured: .*mesh\.ply: expected a file ending with \.glb or \.obj"):
        save_textured(textured, tmp_path / "mesh.ply")
    with pytest.raises(ValueError, match=r"up: expected one of y, z, -y, got 'x'"):
        save_textured(textured, tmp_path / "mesh.glb", up="x")
    with pytest.raises(OSError, match="No such file"):
        save_textured(textured, tmp_path / "no" / "mesh.obj")
    assert list(tmp_path.iterdir()) == []
