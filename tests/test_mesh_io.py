import json
import struct

import pytest
import torch
from polyfield.geometry import Aabb, Mesh
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.mesh_io import linear_from_srgb, load_mesh, save_mesh, srgb_from_linear
from polyfield.geometry.mesh_ops import with_colors


@pytest.fixture(scope="module")
def mesh():
    made = isosurface(lambda p: (p * torch.tensor([1.0, 1.5, 2.0])).norm(dim=1) - 0.6, Aabb.cube(), 16)
    return with_colors(made, made.vertices * 0.5 + 0.5)


@pytest.mark.parametrize("ending", ["glb", "ply", "obj", "GLB"])
@pytest.mark.parametrize("up", ["z", "y", "-y"])
def test_round_trip(mesh, tmp_path, ending, up):
    path = tmp_path / f"mesh.{ending}"
    save_mesh(mesh, path, up=up)
    found = load_mesh(path, up=up)
    torch.testing.assert_close(found.vertices, mesh.vertices, atol=1e-6, rtol=0)
    assert torch.equal(found.faces, mesh.faces)
    torch.testing.assert_close(found.normals, mesh.normals, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.colors, mesh.colors, atol=1e-5 if ending.lower() == "glb" else 0.5 / 255 + 1e-6, rtol=0
    )
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["glb", "ply", "obj"])
def test_without_colors_and_normals(mesh, tmp_path, ending):
    path = tmp_path / f"mesh.{ending}"
    save_mesh(Mesh(mesh.vertices.double(), mesh.faces), path)
    found = load_mesh(path)
    assert found.colors is None and found.normals is None
    assert torch.equal(found.faces, mesh.faces)


def glb_json(path):
    data = path.read_bytes()
    return json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])


def test_what_a_glb_holds(mesh, tmp_path):
    """Up is +y, colours are linear floats, the material is matte."""
    import trimesh

    path = tmp_path / "mesh.glb"
    save_mesh(mesh, path)
    tree = glb_json(path)
    (part,) = tree["meshes"][0]["primitives"]
    assert set(part["attributes"]) == {"POSITION", "NORMAL", "COLOR_0"}
    assert tree["accessors"][part["attributes"]["COLOR_0"]]["componentType"] == 5126
    assert tree["materials"][part["material"]]["pbrMetallicRoughness"]["metallicFactor"] == 0
    there = trimesh.load_scene(path).to_geometry().vertices
    x, y, z = mesh.vertices.unbind(1)
    wanted = torch.stack([x, z, -y], 1)
    torch.testing.assert_close(torch.tensor(there).float().amax(0), wanted.amax(0), atol=1e-5, rtol=0)


def test_files_of_others(mesh, tmp_path):
    """A scene of two parts, one moved, with 8-bit colours, as trimesh writes it."""
    import trimesh

    scene = trimesh.Scene()
    for x in (0.0, 3.0):
        box = trimesh.creation.box()
        box.visual.vertex_colors = [255, 128, 0, 255]
        scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([x, 0, 0]))
    path = tmp_path / "scene.glb"
    scene.export(path)
    found = load_mesh(path, up="y")
    assert len(found.faces) == 24 and len(found.vertices) == 16
    assert found.vertices[:, 0].max() == pytest.approx(3.5)
    wanted = srgb_from_linear(torch.tensor([1.0, 128 / 255, 0.0]))
    torch.testing.assert_close(found.colors, wanted.expand(16, 3), atol=1e-5, rtol=0)


def test_srgb():
    x = torch.linspace(0, 1, 1001)
    torch.testing.assert_close(srgb_from_linear(linear_from_srgb(x)), x, atol=2e-6, rtol=0)
    assert linear_from_srgb(torch.tensor(0.5)) == pytest.approx(0.21404, abs=1e-5)


@pytest.mark.parametrize("ending", ["glb", "ply", "obj"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
def test_files_cut_short(mesh, tmp_path, ending, share):
    path = tmp_path / f"cut.{ending}"
    save_mesh(mesh, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    if ending == "obj" and share == 0.97:
        assert len(load_mesh(path).faces) <= len(mesh.faces)  # text: what is left may be a whole mesh
        return
    with pytest.raises(ValueError, match=rf"load_mesh: .*cut\.{ending}: expected .*; "):
        load_mesh(path)


def test_errors_name_the_file(mesh, tmp_path):
    with pytest.raises(
        ValueError, match=r"save_mesh: .*mesh\.stl: expected a file ending with \.glb, \.obj, \.ply, got '\.stl'"
    ):
        save_mesh(mesh, tmp_path / "mesh.stl")
    with pytest.raises(ValueError, match=r"load_mesh: .*mesh: expected a file ending"):
        load_mesh(tmp_path / "mesh")
    with pytest.raises(FileNotFoundError, match=r"load_mesh: .*none\.ply: expected a mesh file, got nothing there"):
        load_mesh(tmp_path / "none.ply")
    with pytest.raises(ValueError, match=r"up: expected one of y, z, -y, got 'x'"):
        save_mesh(mesh, tmp_path / "mesh.glb", up="x")
    with pytest.raises(ValueError, match="save_mesh: mesh: expected at least one triangle"):
        save_mesh(Mesh(mesh.vertices, mesh.faces[:0]), tmp_path / "mesh.ply")
    with pytest.raises(ValueError, match="save_mesh: mesh: expected finite vertices"):
        save_mesh(Mesh(mesh.vertices * float("nan"), mesh.faces), tmp_path / "mesh.ply")
    with pytest.raises(OSError, match="No such file"):
        save_mesh(mesh, tmp_path / "no" / "mesh.ply")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_what_was_there(mesh, tmp_path, monkeypatch):
    path = tmp_path / "mesh.ply"
    save_mesh(mesh, path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_mesh(with_colors(mesh, mesh.colors * 0), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mesh.ply"]
