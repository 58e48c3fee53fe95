"""``polyfield convert``: what it says, writes and refuses."""

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.geometry.splat_io import load_gaussians, save_gaussians

from tests.splat_samples import SUFFIXES, sample


@pytest.fixture
def source(tmp_path):
    save_gaussians(tmp_path / "scene.ply", sample(100, degree=4))
    return tmp_path / "scene.ply"


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_to_every_format(source, suffix, capsys):
    output = source.with_name(f"out{suffix}")
    assert convert(source, output) == 0
    said = capsys.readouterr().out
    assert "read     100 Gaussians of degree 4 from (" in said and f"MB: {output}" in said
    degree = load_gaussians(output).degree
    assert ("lost     bands of the colours above degree" in said) == (degree < 4)
    assert "rounded  " in said and "change   means " in said


def test_fewer_bands_and_old_versions(source, tmp_path, capsys):
    assert convert(source, tmp_path / "a.spz", "--degree", 1, "--spz-version", 2) == 0
    assert "lost     bands of the colours above degree 1" in capsys.readouterr().out
    assert load_gaussians(tmp_path / "a.spz").degree == 1
    assert (tmp_path / "a.spz").read_bytes()[:2] == b"\x1f\x8b"


def test_overwriting_is_asked_for(source, tmp_path, capsys):
    output = tmp_path / "a.splat"
    output.write_bytes(b"mine")
    assert convert(source, output) == 2
    assert f"{output} exists; replace it with --overwrite" in capsys.readouterr().err
    assert output.read_bytes() == b"mine"
    assert convert(source, output, "--overwrite") == 0
    assert convert(source, source, "--overwrite", "--degree", 0) == 0
    assert load_gaussians(source).degree == 0


def test_invalid_gaussians(source, tmp_path, capsys):
    data = bytearray(source.read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"  # the last quaternion's z is NaN
    source.write_bytes(data)
    assert convert(source, tmp_path / "a.spz") == 2
    assert "1 with NaN or infinite quaternions; the first is number 99; leave them out with" in capsys.readouterr().err
    assert convert(source, tmp_path / "a.spz", "--drop-invalid") == 0
    assert len(load_gaussians(tmp_path / "a.spz")) == 99


def test_up(source, tmp_path):
    assert convert(source, tmp_path / "a.glb", "--up", "z") == 0
    x, y, z = load_gaussians(source).means.unbind(1)
    torch.testing.assert_close(load_gaussians(tmp_path / "a.glb", up="y").means, torch.stack([x, z, -y], 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.ply", "a.spz"], "none.ply: expected a file of Gaussians, got nothing there"),
        (["scene.ply", "a.obj"], "convert: a.obj: expected a file ending with .compressed.ply, .glb, .gltf, .ply"),
        (["scene.ply", "no/a.spz"], "No such file or directory"),
        (["scene.ply", "a.spz", "--degree", "7"], "convert: --degree: expected 0 to 4, got 7"),
        (["scene.ply", "a.spz", "--max-memory", "0.00001"], "expected at most 1e-05 GiB of Gaussians"),
    ],
)
def test_mistakes_print_one_line(source, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(source.parent)
    assert convert(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert [p.name for p in source.parent.iterdir()] == ["scene.ply"]
