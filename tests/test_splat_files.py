"""Every format of Gaussians keeps every attribute within its own rounding, alone and after any other."""

import json
import struct

import pytest
import torch
from polyfield.geometry.gaussian_differences import largest_differences
from polyfield.geometry.gaussian_transforms import with_degree
from polyfield.geometry.splat_io import SplatError, file_order, format_of, load_gaussians, save_gaussians, suffixes

from tests.splat_samples import DEGREES, SUFFIXES, bounds, sample, within


def passed_through(path, gaussians, **options):
    """What comes back, and what went in, in the same order."""
    save_gaussians(path, gaussians, **options)
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    return load_gaussians(path), gaussians[file_order(format_of(path, "test"), gaussians)]


def test_the_folder_is_the_registry():
    assert sorted(SUFFIXES) == suffixes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("degree", range(5))
def test_round_trip(tmp_path, suffix, degree):
    gaussians = sample(degree=degree)
    path = tmp_path / f"scene{suffix}"
    if degree > DEGREES[suffix]:
        with pytest.raises(
            SplatError, match=rf"scene{suffix}: expected at most degree {DEGREES[suffix]}, .* with_degree"
        ):
            save_gaussians(path, gaussians)
        assert list(tmp_path.iterdir()) == []
        return
    back, expected = passed_through(path, gaussians)
    assert back.degree == degree and back.means.dtype == torch.float32
    found = largest_differences(expected, back)
    assert within(found, bounds(suffix, gaussians)), f"{found} beyond {bounds(suffix, gaussians)}"


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("degree", [0, 3, 4])
def test_versions_of_spz(tmp_path, version, degree):
    gaussians = sample(degree=degree)
    back, _ = passed_through(tmp_path / "a.spz", gaussians, version=version)
    found = largest_differences(gaussians, back)
    assert within(found, bounds(".spz", gaussians, version)), found
    head = (tmp_path / "a.spz").read_bytes()[:4]
    assert (head == b"NGSP") == (version == 4) and (head[:2] == b"\x1f\x8b") == (version < 4)


@pytest.mark.parametrize("one", SUFFIXES)
@pytest.mark.parametrize("other", SUFFIXES)
def test_every_pair_there_and_back(tmp_path, one, other):
    start = sample(300, degree=min(DEGREES[one], DEGREES[other]))
    current, expected, allowed = start, start, []
    for i, suffix in enumerate((one, other, one)):
        path = tmp_path / f"{i}{suffix}"
        allowed.append(bounds(suffix, current))
        expected = expected[file_order(format_of(path, "test"), current)]
        current, _ = passed_through(path, current)
    found = largest_differences(expected, current)
    assert within(found, *allowed), f"{found} beyond {allowed}"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("G", [1, 2, 256, 257])
def test_few_gaussians_and_equal_ones(tmp_path, suffix, G):
    one = sample(1, degree=DEGREES[suffix])
    back, expected = passed_through(tmp_path / f"a{suffix}", one[torch.zeros(G, dtype=torch.long)])
    assert within(largest_differences(expected, back), bounds(suffix, expected))


@pytest.mark.parametrize("suffix", [".spz", ".glb", ".gltf"])
def test_what_is_up(tmp_path, suffix):
    """Formats with an up get it; the scene comes back whichever axis it calls up."""
    gaussians = sample(100, degree=3)
    path = tmp_path / f"a{suffix}"
    x, y, z = gaussians.means.unbind(1)
    for up, stored in {"y": (x, y, z), "-y": (x, -y, -z), "z": (x, z, -y)}.items():
        save_gaussians(path, gaussians, up=up)
        raw = load_gaussians(path, up="y")
        torch.testing.assert_close(raw.means, torch.stack(stored, 1), atol=2.0**-12, rtol=0)
        back = load_gaussians(path, up=up)
        found = largest_differences(gaussians, back)
        room = bounds(".glb", gaussians)  # a quarter turn rounds
        turned = room.__class__(*(1e-5 * (up == "z"),) * 6)
        if up == "z" and suffix == ".spz":  # bands mix, so that some leave the range of [-1, 1)
            found = largest_differences(with_degree(gaussians, 0), with_degree(back, 0))
        assert within(found, bounds(suffix, gaussians), turned), (up, found)


def test_files_without_an_up_are_not_turned(tmp_path):
    gaussians = sample(50)
    for up in ("z", "y", "-y"):
        save_gaussians(tmp_path / "a.ply", gaussians, up=up)
        assert torch.equal(load_gaussians(tmp_path / "a.ply", up=up).means, gaussians.means)
    with pytest.raises(ValueError, match="load_gaussians: up: expected one of y, z, -y, got 'x'"):
        load_gaussians(tmp_path / "a.ply", up="x")


def test_the_bytes_of_an_spz(tmp_path):
    """A record worked out by hand: version 3 without gzip, x y z w = 0 0 sqrt(1/2) sqrt(1/2)."""
    import gzip

    rotation = 3 << 30 | 511  # w is left out; z has sign 0 and the largest magnitude
    body = struct.pack("<iii", 4096, -2048, 1)  # each in 3 of its 4 bytes
    body = b"".join(body[i : i + 3] for i in (0, 4, 8)) + bytes([255]) + bytes([128, 127, 166]) + bytes([160, 176, 0])
    body += struct.pack("<I", rotation) + bytes([128, 0, 255, 192, 128, 64, 128, 128, 129])
    path = tmp_path / "a.spz"
    path.write_bytes(gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 3, 1, 1, 12, 0, 0) + body))
    g = load_gaussians(path, up="y")
    torch.testing.assert_close(g.means, torch.tensor([[1, -0.5, 1 / 4096]]))
    torch.testing.assert_close(g.log_scales, torch.tensor([[0.0, 1.0, -10.0]]))
    torch.testing.assert_close(g.quats, torch.tensor([[0.5**0.5, 0, 0, 0.5**0.5]]))
    torch.testing.assert_close(g.opacities, torch.tensor([254.75 / 255]))
    torch.testing.assert_close(g.sh[0, 0], torch.tensor([0.5, -0.5, 38.5]) / 38.25)
    wanted = torch.tensor([[0, -1, 127 / 128], [0.5, 0, -0.5], [0, 0, 1 / 128]])
    torch.testing.assert_close(g.sh[0, 1:], wanted)


def test_the_columns_of_a_ply(tmp_path):
    import plyfile

    gaussians = sample(20, degree=2)
    save_gaussians(tmp_path / "a.ply", gaussians)
    rows = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"].data
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(24))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert list(rows.dtype.names) == names
    for band in range(8):
        for channel in range(3):  # all of red, then green, then blue
            assert rows[f"f_rest_{channel * 8 + band}"].tolist() == gaussians.sh[:, 1 + band, channel].tolist()


def test_what_a_glb_holds(tmp_path):
    gaussians = sample(20, degree=1)
    save_gaussians(tmp_path / "a.glb", gaussians, up="y")
    data = (tmp_path / "a.glb").read_bytes()
    assert struct.unpack_from("<4sII", data) == (b"glTF", 2, len(data))
    tree = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    (primitive,) = tree["meshes"][0]["primitives"]
    name = "KHR_gaussian_splatting"
    assert tree["extensionsUsed"] == [name] and primitive["mode"] == 0
    assert primitive["extensions"][name] == {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    bands = ["SH_DEGREE_0_COEF_0", *(f"SH_DEGREE_1_COEF_{i}" for i in range(3))]
    wanted = {"POSITION", "COLOR_0", *(f"{name}:{a}" for a in ("ROTATION", "SCALE", "OPACITY", *bands))}
    assert set(primitive["attributes"]) == wanted
    scale = tree["accessors"][primitive["attributes"][f"{name}:SCALE"]]
    at = 28 + struct.unpack_from("<I", data, 12)[0] + tree["bufferViews"][scale["bufferView"]]["byteOffset"]
    found = torch.frombuffer(bytearray(data[at : at + 240]), dtype=torch.float32).view(20, 3)
    torch.testing.assert_close(found, gaussians.scales)


def test_float64_gradients_and_options(tmp_path):
    gaussians = sample(10)._map(lambda t: t.double().requires_grad_())
    save_gaussians(tmp_path / "A.PLY", gaussians)
    back = load_gaussians(str(tmp_path / "A.PLY"))
    assert torch.equal(back.means, gaussians.means.float()) and not back.means.requires_grad
    with pytest.raises(SplatError, match="version: expected 2, 3 or 4, got 1"):
        save_gaussians(tmp_path / "a.spz", gaussians, version=1)
    assert [p.name for p in tmp_path.iterdir()] == ["A.PLY"]


def test_more_sets_of_bands_than_a_sog_holds(tmp_path, monkeypatch):
    """The palette stands for neighbours: better than one mean for all."""
    monkeypatch.setattr("polyfield.geometry.splat_files.sog._PALETTE", 64)
    gaussians = sample(1000, degree=1)
    back, expected = passed_through(tmp_path / "a.sog", gaussians)
    error = (back.sh[:, 1:] - expected.sh[:, 1:]).square().mean()
    assert len(back.sh[:, 1:].flatten(1).unique(dim=0)) == 64
    assert error < 0.7 * expected.sh[:, 1:].var(0).mean()


FILES = {
    "inria_iter7000.ply": (9080, 3),
    "inria_repo_model.splat": (22764, 0),
    "chair.splat": (89945, 0),
    "biker.spz": (152746, 0),
}


@pytest.mark.data
@pytest.mark.parametrize("name", FILES)
def test_files_of_others(data_root, tmp_path, name):
    found = load_gaussians(data_root / "gaussians" / name)
    assert (len(found), found.degree) == FILES[name]
    lengths = found.quats.norm(dim=1)
    assert float((lengths - 1).abs().max()) < (
        0.02 if name.endswith(".splat") else 2 if name.endswith(".ply") else 1e-5
    )
    save_gaussians(tmp_path / "a.ply", found)
    back = load_gaussians(tmp_path / "a.ply")
    assert torch.equal(back.sh, found.sh) and torch.equal(back.quats, found.quats)


@pytest.mark.data
@pytest.mark.parametrize("name", ["inria_repo_model.splat", "chair.splat", "inria_iter7000.ply"])
def test_bytes_come_back_by_way_of_a_ply(data_root, tmp_path, name):
    path = data_root / "gaussians" / name
    save_gaussians(tmp_path / "a.ply", load_gaussians(path))
    again = tmp_path / f"b{path.suffix}"
    save_gaussians(again, load_gaussians(tmp_path / "a.ply"))
    if path.suffix == ".ply":  # normals are left out, the header has no comment
        assert again.read_bytes() == (tmp_path / "a.ply").read_bytes()
        return
    old, new = (torch.frombuffer(bytearray(p.read_bytes()), dtype=torch.uint8).view(-1, 32) for p in (path, again))
    assert torch.equal(old[:, :12], new[:, :12]) and torch.equal(old[:, 24:], new[:, 24:])
    scales = [x[:, 12:24].contiguous().view(torch.float32) for x in (old, new)]
    torch.testing.assert_close(*scales, atol=0, rtol=2e-6)  # through their logs


@pytest.mark.data
def test_two_exports_of_one_scene_agree(data_root):
    """A .ply and a later .splat of the same capture lie in the same place, the same way round."""
    ply = load_gaussians(data_root / "gaussians" / "inria_iter7000.ply").means
    splat = load_gaussians(data_root / "gaussians" / "inria_repo_model.splat").means
    extent = ply.amax(0) - ply.amin(0)
    for end in (torch.amin, torch.amax):
        assert bool(((end(ply, 0) - end(splat, 0)).abs() < 0.1 * extent).all())


@pytest.mark.data
def test_the_biker_stands_upright(data_root):
    """-y is up in the scene: the wheels touch y = 0 and the head is above them."""
    means = load_gaussians(data_root / "gaussians" / "biker.spz").means
    assert float(means[:, 1].max()) == 0 and float(means[:, 1].min()) < -3
