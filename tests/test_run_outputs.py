"""What is made of a finished run: its measures, meshes and pictures, and what is refused on the way."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.commands.extract import extract_mesh
from polyfield.apps.errors import UserError
from polyfield.apps.mesh_options import Method
from polyfield.apps.run import open_run
from polyfield.datasets.scene import open_scene
from polyfield.geometry import Aabb
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.mesh_io import load_mesh
from polyfield.geometry.mesh_ops import transform
from polyfield.geometry.metrics import compare
from polyfield.geometry.transforms import similarity_scale


@pytest.fixture(scope="module")
def run(demo_run):
    return demo_run


def test_evaluate_and_the_quality_of_a_short_fit(run):
    assert main(["evaluate", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert len(metrics["views"]) == len(open_scene("demo", downscale=4).test)
    assert metrics["psnr"] == pytest.approx(sum(v["psnr"] for v in metrics["views"]) / len(metrics["views"]))
    assert metrics["psnr"] > 24
    assert metrics["ssim"] > 0.8
    assert (run / "contact_sheet.png").stat().st_size > 10_000


def test_extract(run, tmp_path):
    from polyfield.geometry.metrics import chamfer

    for ending in ("ply", "glb", "obj"):
        path = tmp_path / f"mesh.{ending}"
        options = ["--resolution", "96", "--target-faces", "20000"]
        assert main(["extract", str(run), "--output", str(path), *options]) == 0
        mesh = load_mesh(path)
        assert 1000 < len(mesh.faces) <= 21000
        assert mesh.colors is not None
    opened = open_run(run)
    truth = opened.scene().mesh
    world = opened.asked.facts.matrix
    truth = replace(
        truth, vertices=(truth.vertices.double() @ world[:3, :3].double().T + world[:3, 3].double()).float()
    )
    diagonal = float((truth.vertices.amax(0) - truth.vertices.amin(0)).norm())
    mesh = load_mesh(tmp_path / "mesh.ply")
    assert float(chamfer(mesh, truth)) < 0.05 * diagonal


def test_extract_refuses_what_cannot_be(run, tmp_path, capsys):
    assert main(["extract", str(run), "--output", str(tmp_path / "mesh.glb"), "--level", "1e30"]) == 2
    assert "level" in capsys.readouterr().err
    assert main(["extract", str(run), "--output", str(tmp_path / "mesh.doc"), "--resolution", "32"]) == 2
    assert "mesh.doc" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_extract_within_a_crop(run, tmp_path, capsys):
    low, high = torch.tensor([-0.9, -0.8, 0.05]), torch.tensor([0.6, 1.0, 0.5])
    box = [str(x) for x in (*low.tolist(), *high.tolist())]
    options = ["--resolution", "64", "--level", "20", "--components", "0"]
    assert main(["extract", str(run), "--output", str(tmp_path / "whole.ply"), *options]) == 0
    assert main(["extract", str(run), "--output", str(tmp_path / "part.ply"), *options, "--crop", *box]) == 0
    whole, part = load_mesh(tmp_path / "whole.ply"), load_mesh(tmp_path / "part.ply")
    assert part.colors is not None
    assert (part.vertices >= low).all()
    assert (part.vertices <= high).all()
    cell = 1.5 / 64
    assert (part.vertices.amin(0) < low + 2 * cell).all(), "as far as the box reaches: the disc is wider"
    assert (part.vertices.amax(0) > high - 2 * cell).all()
    # The same surface: what the whole mesh has well inside the box is near the part, and the other way round.
    inside = Aabb(low + 0.1, high - 0.1)
    for a, b in ((whole, part), (part, whole)):
        points = a.vertices[inside.contains(a.vertices)]
        distances = torch.cdist(points[:: len(points) // 500], b.vertices).amin(1)
        assert distances.median() < 2.7 / 64
    assert capsys.readouterr().err == "", "a surface that the crop cuts open is no surprise"

    # The largest part is that of what lies in the box: here the ball, although the disc beneath it is far larger.
    options = ["--resolution", "64", "--level", "20"]
    box = ["0.2", "0", "0.2", "0.8", "0.7", "0.9"]
    assert main(["extract", str(run), "--output", str(tmp_path / "ball.ply"), *options, "--crop", *box]) == 0
    assert len(load_mesh(tmp_path / "ball.ply").faces) > 500


def test_a_surface_that_meets_the_bounds_is_noted(run, tmp_path, capsys):
    options = ["--resolution", "32", "--output", str(tmp_path / "mesh.ply")]
    opened = open_run(run)
    density = opened.field.query
    opened.field.query = lambda points, directions=None, **more: replace(
        density(points, directions, **more), values=100.0 * (points[:, 2] < 0.1)
    )
    opened.renderer.occupancy.bits.fill_(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyfield.apps.run.open_run", lambda *_, **__: opened)
        assert main(["extract", str(run), *options]) == 0
    said = capsys.readouterr().err
    assert said == "note: isosurface: the surface meets the bounds and is cut open there\n"


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ("0 0 0 -1 1 1", r"extract: --crop: expected low x y z below high x y z, got (0, 0, 0) and (-1, 1, 1)"),
        ("0 0 0 nan 1 1", r"extract: --crop: expected low x y z below high x y z, got (0, 0, 0) and (nan, 1, 1)"),
        (
            "5 5 5 6 6 6",
            r"extract: --crop: expected a box that meets the fitted space, which lies from (-1.35, ",
        ),
        ("1.25 1.25 1.2 1.3 1.3 1.3", r"extract: isosurface: level: expected a value that the function crosses inside"),
    ],
)
def test_extract_refuses_crops_without_a_surface(run, tmp_path, capsys, crop, message):
    options = ["--output", str(tmp_path / "mesh.ply"), "--resolution", "32", "--crop", *crop.split()]
    assert main(["extract", str(run), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_skipping_empty_space_changes_no_mesh(run):
    """The field is not asked where nothing is; a mesh from a function that always asks is the same."""
    opened = open_run(run)
    mesh = extract_mesh(opened, resolution=48, level=20.0, components=0)
    occupancy, query = opened.renderer.occupancy, opened.field.query
    asked = []

    def everywhere(points):
        asked.append(points)
        return query(points).values * occupancy.occupied(points)

    with torch.no_grad():
        plain = isosurface(everywhere, Aabb.cube(1.0), 48, 20.0, inside_is_above=True)
    plain = transform(plain, opened.asked.facts.matrix)
    assert torch.equal(mesh.faces, plain.faces)
    cell = 2 * similarity_scale(opened.asked.facts.matrix) / 48
    # where a density barely changes across a cell, its rounding moves a crossing most
    torch.testing.assert_close(mesh.vertices, plain.vertices, atol=0.01 * float(cell), rtol=0)
    assert sum(int(occupancy.occupied(points).sum()) for points in asked) < 0.9 * sum(map(len, asked))


def test_a_mesh_through_what_the_views_see(run):
    """Of half-seen light in a density: smoother than its level, and as near to the truth."""
    pytest.importorskip("open3d", reason="needs polyfield[poisson]")
    opened = open_run(run)
    mesh = extract_mesh(opened, method=Method.POISSON, resolution=48, smooth=1)
    truth = transform(opened.scene().mesh, opened.asked.facts.matrix)
    scores = compare(mesh, truth, samples=20_000)
    assert scores.to_truth < 0.02
    assert scores.normal_consistency > 0.75
    assert mesh.colors is not None and float(mesh.colors.std()) > 0.05
    with pytest.raises(UserError, match="extract: --crop: expected a box where training views meet a surface"):
        extract_mesh(opened, method=Method.POISSON, resolution=8, crop=(1.25, 1.25, 1.2, 1.3, 1.3, 1.3))


def test_render_a_spiral(run, tmp_path):
    from PIL import Image

    out = tmp_path / "spiral"
    options = ["--views", "spiral", "--frames", "5", "--width", "48", "--height", "32"]
    assert main(["render", str(run), "--output", str(out), *options]) == 0
    assert sorted(p.name for p in out.iterdir()) == [f"{i:04d}.png" for i in range(5)]
    pictures = [torch.from_numpy(np.array(Image.open(out / f"{i:04d}.png"))).float() for i in range(5)]
    assert all(p.shape == (32, 48, 3) for p in pictures)
    # The scene is in the middle of every picture, on white, and no two pictures are the same.
    assert all((p[8:24, 16:32].mean() < 220) and (p[0].mean() > 245) for p in pictures)
    assert all((a - b).abs().mean() > 1 for a, b in itertools.pairwise(pictures))


def test_render_every_channel(run, tmp_path):
    from PIL import Image

    channels = ["--channels", "color", "depth", "normal", "alpha"]
    assert main(["render", str(run), "--output", str(tmp_path / "out"), "--width", "48", *channels]) == 0
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(files) == 4 * len(open_scene("demo", downscale=4).test)
    assert Image.open(tmp_path / "out" / files[0]).size == (48, 48)
    assert (
        main(
            [
                "render",
                str(run),
                "--views",
                "orbit",
                "--frames",
                "3",
                "--width",
                "32",
                "--output",
                str(tmp_path / "o.mp4"),
            ]
        )
        == 0
    )
    assert (tmp_path / "o.mp4").stat().st_size > 500


@pytest.mark.parametrize(
    "options, message",
    [
        (["--channels", "color", "shaded"], "--channels shaded: expected --renderer trace as well, got auto; add it"),
        (["--shadows"], "--shadows: expected --renderer trace as well, got auto; add it"),
        (["--occlusion"], "--occlusion: expected --renderer trace as well, got auto; add it"),
    ],
)
def test_what_only_traced_surfaces_have_is_refused_of_others(run, tmp_path, capsys, options, message):
    assert main(["render", str(run), "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
