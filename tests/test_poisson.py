"""Surfaces through oriented points: from arrays, from files, and from what the views of a run see."""

import importlib.util
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.errors import UserError
from polyfield.apps.oriented_points import oriented_points
from polyfield.geometry import Aabb, Points, Samples
from polyfield.geometry.mesh_cleaning import faults, signed_volume
from polyfield.geometry.mesh_io import load_mesh
from polyfield.geometry.mesh_ops import boundary_length
from polyfield.geometry.poisson import poisson_mesh
from polyfield.renderers.median_depths import median_depths

needs_open3d = pytest.mark.skipif(importlib.util.find_spec("open3d") is None, reason="needs polyfield[poisson]")


def ball(count=20_000, below=2.0):
    """Points of the unit sphere about (1, 2, 3), but for its cap, and colours that say where they are."""
    normals = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normals = torch.nn.functional.normalize(normals, dim=1)
    normals = normals[normals[:, 2] < below]
    return Points(normals + torch.tensor([1.0, 2.0, 3.0]), normals=2 * normals), normals / 2 + 0.5


@needs_open3d
def test_a_ball():
    points, colors = ball()
    mesh = poisson_mesh(points, 0.05, colors=colors)
    at = mesh.vertices - torch.tensor([1.0, 2.0, 3.0])
    assert (at.norm(dim=1) - 1).abs().max() < 0.01
    assert not faults(mesh) and signed_volume(mesh) == pytest.approx(4 / 3 * math.pi, rel=0.01)
    assert (mesh.normals * at).sum(1).min() > 0.95
    assert (mesh.colors - (at / 2 + 0.5)).abs().max() < 0.03
    assert poisson_mesh(points, 0.05).colors is None


@needs_open3d
def test_what_no_points_support_is_trimmed():
    points, _ = ball(below=0.7)
    closed = poisson_mesh(points, 0.05, trim=0)
    assert not faults(closed)
    open_one = poisson_mesh(points, 0.05)
    top = (open_one.vertices[:, 2] - 3).max()
    assert 0.65 < top < 0.85
    assert boundary_length(open_one) == pytest.approx(2 * math.pi * math.sqrt(1 - 0.7**2), rel=0.25)


@needs_open3d
def test_many_points_in_one_place_do_not_make_others_few():
    points, _ = ball()
    crowd = points.positions[:, 0] > 1.9
    many = Points(
        torch.cat([points.positions, points.positions[crowd].repeat(200, 1)]),
        normals=torch.cat([points.normals, points.normals[crowd].repeat(200, 1)]),
    )
    assert not faults(poisson_mesh(many, 0.05))


@needs_open3d
def test_refusals():
    points, colors = ball(100)
    for bad, options, message in (
        (Points(points.positions), {}, "points: expected normals, got points alone"),
        (replace(points, normals=points.normals[:5]), {}, r"normals: expected \(100, 3\), got \(5, 3\)"),
        (replace(points, positions=points.positions * math.nan), {}, "positions: expected finite numbers"),
        (points, dict(colors=colors * math.inf), "colors: expected finite numbers"),
        (points, dict(cell=0.0), "cell, trim: expected cell > 0 and trim >= 0, got 0.0"),
        (points, dict(trim=-1.0), "cell, trim: expected cell > 0 and trim >= 0"),
        (points, dict(cell=100.0), "points: expected at least 4 in different cells, got"),
    ):
        with pytest.raises(ValueError, match=f"poisson_mesh: {message}"):
            poisson_mesh(bad, **{"cell": 0.1, **options})


def test_without_the_library(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(ImportError, match=r'install it with pip install "polyfield\[poisson\]"'):
        poisson_mesh(ball(100)[0], 0.1)
    path = written(tmp_path / "points.ply", *ball(100))
    assert main(["extract", str(path), "--output", str(tmp_path / "mesh.ply")]) == 2
    assert 'pip install "polyfield[poisson]"' in capsys.readouterr().err


def written(path, points, colors, normals=True):
    """As a .ply in text, colours in bytes."""
    names = ["x", "y", "z", "nx", "ny", "nz"][: 6 if normals else 3]
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}", *(f"property float {n}" for n in names)]
    header += [f"property uchar {n}" for n in ("red", "green", "blue")] + ["end_header"]
    values = torch.cat([points.positions, points.normals], 1)[:, : len(names)].numpy()
    rgb = (colors.numpy() * 255).round().astype(int)
    rows = [" ".join([*(f"{x:.7g}" for x in v), *map(str, c)]) for v, c in zip(values, rgb, strict=True)]
    path.write_text("\n".join([*header, *rows, ""]))
    return path


@needs_open3d
def test_a_file_of_points(tmp_path, capsys):
    points, colors = ball(8000)
    path, output = written(tmp_path / "points.ply", points, colors), tmp_path / "mesh.ply"
    assert main(["extract", str(path), "--output", str(output), "--resolution", "32", "--smooth", "2"]) == 0
    mesh = load_mesh(output)
    assert not faults(mesh) and signed_volume(mesh) == pytest.approx(4 / 3 * math.pi, rel=0.02)
    assert float(mesh.colors.std()) > 0.1
    crop = ["--crop", "0", "1", "3", "2", "3", "4"]
    assert main(["extract", str(path), "--output", str(output), "--resolution", "32", *crop]) == 0
    assert load_mesh(output).vertices[:, 2].min() >= 3
    capsys.readouterr()
    bare = written(tmp_path / "bare.ply", points, colors, normals=False)
    for arguments, message in (
        ([str(bare), "--output", str(output)], "expected points with normals (x y z nx ny nz), got points alone"),
        ([str(path)], "extract: --output: expected a file for the mesh of points, got none"),
        ([str(path), "--output", str(output), "--method", "tsdf"], "extract: --method: expected a run for this, got a"),
        ([str(path), "--output", str(output), "--texture", "64"], "extract: --texture: expected a run for this"),
        ([str(path), "--output", str(output), "--crop", "8", "8", "8", "9", "9", "9"], "box with some of the points"),
        ([str(path), "--output", str(output), "--trim", "-1"], "extract: --trim: expected at least 0, got -1"),
    ):
        assert main(["extract", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_runs_that_have_no_views():
    with pytest.raises(UserError, match="extract: --method: poisson expected a run of photographs, got one of a shape"):
        oriented_points(SimpleNamespace(of_shape=True), Aabb.cube(), 100)


def test_median_depths():
    """Rays of two intervals, of none, and of one that half of the light passes."""
    samples = Samples(
        torch.tensor([1.0, 2.0, 5.0]),
        torch.tensor([2.0, 4.0, 6.0]),
        torch.tensor([0, 0, 2], dtype=torch.int32),
        torch.tensor([0, 2, 2, 3], dtype=torch.int32),
    )
    depths = median_depths(torch.tensor([0.25, 0.5, 0.4]), samples)
    torch.testing.assert_close(depths, torch.tensor([3.0, 0.0, 0.0]))
    torch.testing.assert_close(median_depths(torch.tensor([0.8, 0.1, 1.0]), samples), torch.tensor([1.625, 0.0, 5.5]))
    none = torch.zeros(0)
    empty = Samples(none, none, none.int(), torch.zeros(3, dtype=torch.int32))
    assert np.array_equal(median_depths(none, empty).numpy(), [0, 0])
