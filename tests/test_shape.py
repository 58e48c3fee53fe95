"""Fits to shapes: meshes and oriented points become signed distances, and meshes again in the file's own units."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from polyfield.apps.__main__ import main
from polyfield.apps.api import fit_scene
from polyfield.apps.fit import Budget, fit
from polyfield.apps.recipes import shape
from polyfield.apps.run import open_run
from polyfield.apps.shape_batches import SamplesConfig
from polyfield.apps.shape_metrics import compare
from polyfield.datasets.scene import LoadOptions, SceneError
from polyfield.datasets.shape import load_shape, surface_of, truth_of
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.networks import MlpConfig
from polyfield.fields.signed_distance import SignedDistanceConfig
from polyfield.geometry import Mesh, Points
from polyfield.geometry.mesh_io import load_mesh
from polyfield.renderers.losses.distance import Distance, distance_error

SMALL = shape.Config(
    distances=SignedDistanceConfig(
        grid=HashGridConfig(levels=5, features=2, log2_size=13, finest_resolution=96),
        network=MlpConfig(width=32),
        color=None,
        geometry_features=1,
    ),
    samples=SamplesConfig(batch=2048, first=1 << 13, most=1 << 14, part=1 << 12, every=16),
)
OPTIONS = {"steps": 400, "threads": 1, "device": "cpu"}
SHIFT, SCALE = np.array([10.0, -4.0, 7.0]), 3.0


def torus():
    """Radii 3 and 1.2 about (10, -4, 7): units and place are its own."""
    mesh = trimesh.creation.torus(1.0, 0.4, major_sections=64, minor_sections=32)
    return mesh.apply_transform(np.diag([SCALE, SCALE, SCALE, 1])).apply_translation(SHIFT)


def torus_distance(points):
    """points (N, 3) -> (N,), exact."""
    p = (points.double() - torch.from_numpy(SHIFT)) / SCALE
    return SCALE * (torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - 1, p[:, 2]) - 0.4)


@pytest.fixture(scope="module")
def torus_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shape")
    torus().export(folder / "torus.ply")
    return fit_scene(folder / "torus.ply", SMALL, run=folder / "run", **OPTIONS)


# ---- what a run of a shape gives -----------------------------------------------------------------------------------
def test_a_torus_is_found_in_the_units_of_the_file(torus_run, tmp_path):
    path = tmp_path / "mesh.obj"
    assert main(["extract", str(torus_run.folder), "--output", str(path), "--resolution", "96"]) == 0
    mesh = load_mesh(path)
    diagonal = SCALE * math.sqrt(2.8**2 + 2.8**2 + 0.8**2)
    assert float(torus_distance(mesh.vertices).abs().mean()) < 0.005 * diagonal
    assert float(torus_distance(mesh.vertices).abs().max()) < 0.03 * diagonal
    closed = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    assert closed.is_watertight
    assert closed.volume == pytest.approx(torus().volume, rel=0.05), "turned outwards, and no smaller"
    assert closed.euler_number == 0


def test_evaluate_measures_it_against_the_shape(torus_run, capsys):
    assert main(["evaluate", str(torus_run.folder), "--mesh", "truth"]) == 2
    assert main(["evaluate", str(torus_run.folder), "--resolution", "96"]) == 0
    metrics = json.loads((torus_run.folder / "metrics.json").read_text())
    assert 0 < metrics["chamfer_percent"] < 1
    assert metrics["chamfer"] == pytest.approx(metrics["chamfer_percent"] / 100 * metrics["diagonal"])
    assert metrics["chamfer"] == pytest.approx((metrics["accuracy"] + metrics["completeness"]) / 2)
    assert metrics["diagonal"] == pytest.approx(SCALE * math.sqrt(2.8**2 + 2.8**2 + 0.8**2), rel=0.01)
    assert metrics["f_score"]["1.0"] > 0.95
    assert 0.95 < metrics["normal_consistency"] <= 1
    assert metrics["fit_steps"] == 400
    assert "Chamfer distance" in capsys.readouterr().out


def test_a_fit_leaves_pictures(torus_run):
    with Image.open(torus_run.folder / "preview.png") as sheet:
        assert sheet.size == (4 * 320, 3 * 320)
        colors = np.asarray(sheet)
    assert 0.1 < (colors[:320] < 240).any(-1).mean() < 0.6, "the torus, on white"
    assert 0.1 < (colors[320:] > 0).any(-1).mean() < 0.6, "normals and depth, on black"


def test_render_goes_around_a_shape(torus_run, tmp_path):
    arguments = ["render", str(torus_run.folder), "--output", str(tmp_path), "--width", "48", "--frames", "3"]
    shown = ("color", "shaded", "normal", "depth", "alpha")
    assert main([*arguments, "--channels", *shown, "--shadows", "--occlusion"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {f"{i:04d}_{c}.png" for i in range(3) for c in shown}
    seen = np.asarray(Image.open(tmp_path / "0001_alpha.png"))[..., 0] / 255
    assert seen.shape == (48, 48) and 0.1 < seen.mean() < 0.6


@pytest.mark.parametrize("views", ["test", "train", "spiral"])
def test_views_of_photographs_are_refused(torus_run, capsys, views):
    assert main(["render", str(torus_run.folder), "--views", views]) == 2
    assert f"render: --views {views}: expected photographs, got a run without any; use orbit" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "up", "axis"), [("a.obj", "auto", 1), ("a.ply", "auto", 2), ("a.ply", "x", 0)])
def test_up_is_the_files(tmp_path, name, up, axis):
    torus().export(tmp_path / name)
    scene = replace(SMALL, up=shape.Up(up)).open_data(str(tmp_path / name), LoadOptions())
    assert scene.up.tolist() == [float(k == axis) for k in range(3)]


def test_a_half_table_keeps_up(tmp_path):
    """The field is asked through the half copy: a fit that left it behind would learn nothing."""
    torus().export(tmp_path / "torus.ply")
    grid = replace(SMALL.distances.grid, half=True)
    config = replace(SMALL, distances=replace(SMALL.distances, grid=grid))
    job = config.build(config.open_data(str(tmp_path / "torus.ply"), LoadOptions()))
    before = job.field.encoding.half_table.clone()
    fit(job, Budget(steps=3))
    assert torch.equal(job.field.encoding.half_table, job.field.encoding.table.bfloat16())
    assert not torch.equal(job.field.encoding.half_table, before)


@pytest.mark.parametrize("option", [["--downscale", "2"], ["--masks", "alpha"]])
def test_options_of_photographs_are_refused(tmp_path, capsys, option):
    torus().export(tmp_path / "torus.ply")
    arguments = ["fit", "shape", str(tmp_path / "torus.ply"), *option, "--run", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert f"fit: {option[0]}: expected photographs, got the shape torus" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_log_speaks_of_points(torus_run):
    rows = [json.loads(line) for line in (torus_run.folder / "log.jsonl").read_text().splitlines()]
    assert all(row["samples_per_second"] > 0 and "psnr" not in row for row in rows)


def test_a_resumed_fit_goes_on_to_the_bit(tmp_path):
    torus().export(tmp_path / "torus.stl")
    scene = load_shape(tmp_path / "torus.stl")

    def job():
        return SMALL.build(scene, 3, torch.device("cpu"), Budget(40))

    whole, first, second = job(), job(), job()
    fit(whole, Budget(40))
    fit(first, Budget(40), stop=lambda: first.step == 20)
    assert first.step == 20
    second.restore({k: v.clone() for k, v in first.tensors().items()}, {**first.metadata(), "step": 20})
    fit(second, Budget(40))
    for name, value in whole.field.state_dict().items():
        assert torch.equal(value, second.field.state_dict()[name]), name


def test_resume_through_the_command_line(tmp_path):
    torus().export(tmp_path / "torus.ply")
    run = tmp_path / "run"
    first = fit_scene(tmp_path / "torus.ply", SMALL, run=run, **{**OPTIONS, "steps": 10})
    again = fit_scene(tmp_path / "torus.ply", SMALL, run=run, resume=True, **{**OPTIONS, "steps": 20})
    assert (first.step, again.step) == (10, 20)
    assert open_run(run, "cpu").asked.config == SMALL


def test_oriented_points(tmp_path):
    """A ball of radius 0.5 about (1, 2, 3), sampled by 3000 points; in text and as a .ply."""
    ball = trimesh.creation.icosphere(4, 0.5)
    points = np.concatenate([ball.vertices + np.array([1, 2, 3]), ball.vertices / 0.5], 1)
    np.savetxt(tmp_path / "ball.xyz", points)
    header = "".join(f"property float {n}\n" for n in ("x", "y", "z", "nx", "ny", "nz"))
    rows = "\n".join(" ".join(f"{x:.7f}" for x in row) for row in points)
    (tmp_path / "ball.ply").write_text(
        f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n{header}end_header\n{rows}\n"
    )
    for name in ("ball.xyz", "ball.ply"):
        scene = load_shape(tmp_path / name)
        assert scene.mesh is None
        at = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=1)
        for radius in (0.02, 0.4, 0.48, 0.5, 0.53, 0.58):
            unit = radius / 0.5 * 0.85
            known = truth_of(scene)(at * unit)
            assert float((known.distances - (unit - 0.85)).abs().max()) < 0.01, radius
            assert radius < 0.1 or float((known.normals * at).sum(1).min()) > 0.9, "outwards, on both sides"
    run = fit_scene(tmp_path / "ball.xyz", SMALL, run=tmp_path / "run", **OPTIONS)
    assert main(["extract", str(run.folder), "--resolution", "64", "--output", str(tmp_path / "mesh.ply")]) == 0
    mesh = load_mesh(tmp_path / "mesh.ply")
    error = (mesh.vertices.double() - torch.tensor([1.0, 2, 3])).norm(dim=1) - 0.5
    assert float(error.abs().mean()) < 0.01 * math.sqrt(3)
    assert main(["evaluate", str(run.folder), "--resolution", "64"]) == 0
    assert json.loads((run.folder / "metrics.json").read_text())["chamfer_percent"] < 1


# ---- measures and losses -------------------------------------------------------------------------------------------
def test_measures_have_no_floor_of_sampling(tmp_path):
    torus().export(tmp_path / "torus.ply")
    scene = load_shape(tmp_path / "torus.ply")
    same = compare(scene.mesh, scene, samples=2000)
    assert same["chamfer_percent"] < 1e-4
    assert same["normal_consistency"] == pytest.approx(1, abs=1e-3)
    moved = compare(Mesh(scene.mesh.vertices + torch.tensor([0, 0, 0.01]), scene.mesh.faces), scene, samples=20_000)
    assert moved["f_score"]["0.1"] < moved["f_score"]["0.5"] == 1
    # A shift by s is off by s |n_z| where it is small; on a torus |n_z| is 2 / pi on average over its tube.
    scale = float(scene.scene_to_world[0, 0])
    assert moved["chamfer"] == pytest.approx(0.01 * scale * 2 / math.pi, rel=0.05)


def test_distance_loss():
    found, true = torch.tensor([0.03, -1.0, 0.0]), torch.tensor([0.01, 1.0, 0.0])
    assert float(distance_error(found, true, 0.01)) == pytest.approx((0.02 / 0.02 + 2 / 1.01 + 0) / 3)
    assert float(distance_error(found, true, 0.01, reach=0.02)) == pytest.approx((0.01 / 0.02 + 0.04 / 0.03 + 0) / 3)
    assert float(distance_error(found[:0], true[:0], 0.01)) == 0
    exact = found.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: distance_error(f, true.double(), 0.01), exact)


def test_distance_loss_needs_points():
    from polyfield.geometry import Pixels
    from polyfield.renderers.protocols import Render, Step

    step = Step(0, None, Points(torch.zeros(1, 3)), Render(Pixels()), Pixels())
    with pytest.raises(ValueError, match="distance: view: expected points with distances, got none; fit to a shape"):
        Distance()(step)


def test_gradients_may_count_too(tmp_path):
    from dataclasses import replace

    from polyfield.renderers.losses.eikonal import Eikonal

    torus().export(tmp_path / "torus.ply")
    scene = load_shape(tmp_path / "torus.ply")
    lengths = {}
    for weight in (0.0, 0.5):
        job = replace(SMALL, eikonal=Eikonal(weight)).build(scene, 0, torch.device("cpu"), Budget(60))
        fit(job, Budget(60))
        at = surface_of(scene)(2000, torch.Generator().manual_seed(1)).positions
        gradients = job.field.query(at, gradients=True).gradients.detach()
        lengths[weight] = float((gradients.norm(dim=1) - 1).abs().mean())
    assert lengths[0.5] < lengths[0.0]


def test_points_of_the_pool_are_where_they_are_said_to_be(tmp_path):
    torus().export(tmp_path / "torus.ply")
    scene = load_shape(tmp_path / "torus.ply")
    batches = SMALL.build(scene, 0).batches
    for _ in range(40):
        points, _, _ = batches.draw()
    again = truth_of(scene)(points.positions)
    assert float((points.distances - again.distances).abs().max()) < 1e-5
    assert (points.positions.abs() <= 1).all()
    assert 0.2 < float((points.distances == 0).float().mean()) < 0.4
    assert len(batches.pool) == 1 << 14, "no more than are to be kept"
    off = points.distances.abs() > 1e-3
    assert float((points.normals - again.normals).abs()[off].max()) < 1e-3


# ---- bad files -----------------------------------------------------------------------------------------------------
def write(path, vertices, faces):
    lines = [f"v {x} {y} {z}" for x, y, z in vertices]
    path.write_text("\n".join([*lines, *("f " + " ".join(str(i + 1) for i in face) for face in faces)]) + "\n")
    return path


def box():
    made = trimesh.creation.box()
    return made.vertices.tolist(), made.faces.tolist()


def refused(path, message, **options):
    with pytest.raises(SceneError, match=message):
        load_shape(path, **options)


def test_holes_are_refused_or_repaired(tmp_path, capsys):
    ball = trimesh.creation.icosphere(3)
    path = write(tmp_path / "open.obj", ball.vertices.tolist(), ball.faces.tolist()[5:])
    refused(
        path, r"open\.obj: expected a closed mesh, which has an inside, got \d+ open edges \(holes\); .*--repair.*udf"
    )
    scene = load_shape(path, repair=True)
    assert any("open edges (holes): winding numbers say what is inside" in note for note in scene.notes)
    at = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0.95, 0], [0.9, 0.9, 0.9]])
    assert (truth_of(scene)(at).distances < 0).tolist() == [True, True, False, False]
    arguments = ["--steps", "2", "--device", "cpu", "--samples.first", "8192", "--samples.batch", "256"]
    assert main(["fit", "shape", str(path), "--run", str(tmp_path / "run"), *arguments]) == 2
    assert "--repair" in capsys.readouterr().err
    assert main(["fit", "shape", str(path), "--run", str(tmp_path / "run"), "--repair", *arguments]) == 0
    assert "note: open.obj: " in capsys.readouterr().err


def test_edges_of_many_faces_are_refused_or_repaired(tmp_path):
    """Two boxes that share an edge."""
    vertices, faces = box()
    low = np.asarray(vertices).min(0)
    both = [*vertices, *(np.asarray(vertices) + np.array([1, 1, 0])).tolist()]
    path = write(tmp_path / "two.obj", both, [*faces, *(np.asarray(faces) + 8).tolist()])
    refused(path, r"got 1 edges of more than two faces")
    scene = load_shape(path, repair=True)
    at = torch.tensor([[0.0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    world = torch.linalg.inv(scene.scene_to_world)
    distances = truth_of(scene)(at @ world[:3, :3].T + world[:3, 3]).distances / world[0, 0]
    assert low.tolist() == [-0.5, -0.5, -0.5]
    assert distances.tolist() == pytest.approx([-0.5, -0.5, 0.5, 0.5], abs=1e-5)


def test_flipped_faces_are_turned(tmp_path):
    vertices, faces = box()
    flipped = [f[::-1] if i in (2, 7) else f for i, f in enumerate(faces)]
    for name, given, count in (("some", flipped, 2), ("all", [f[::-1] for f in faces], 12)):
        scene = load_shape(write(tmp_path / f"{name}.obj", vertices, given))
        assert any(f"{count} faces turned round" in note for note in scene.notes)
        assert float(truth_of(scene)(torch.zeros(1, 3)).distances) == pytest.approx(-0.85)


def test_a_hollow_stays_hollow(tmp_path):
    outer, inner = trimesh.creation.icosphere(3), trimesh.creation.icosphere(2, 0.5)
    inner.invert()
    trimesh.util.concatenate([outer, inner]).export(tmp_path / "shell.ply")
    scene = load_shape(tmp_path / "shell.ply")
    at = torch.tensor([[0.0, 0, 0], [0.6, 0, 0], [0.9, 0, 0]])
    assert (truth_of(scene)(at).distances < 0).tolist() == [False, True, False]


def test_degenerate_and_duplicate_faces_are_dropped(tmp_path):
    vertices, faces = box()
    path = write(tmp_path / "box.obj", vertices, [*faces, [0, 0, 1], [3, 3, 3], faces[4]])
    scene = load_shape(path)
    assert len(scene.mesh.faces) == 12
    assert any("3 degenerate or duplicate faces dropped" in note for note in scene.notes)
    refused(write(tmp_path / "none.obj", vertices, [[0, 0, 1]]), "expected triangles with an area")


def test_duplicate_vertices_are_merged(tmp_path):
    vertices, faces = box()
    soup = [vertices[i] for face in faces for i in face]
    rng = np.random.default_rng(0)
    for name, shift in (("same", 0.0), ("near", 1e-7)):
        moved = (np.asarray(soup) + shift * rng.uniform(-1, 1, (36, 3))).tolist()
        scene = load_shape(write(tmp_path / f"{name}.obj", moved, np.arange(36).reshape(12, 3).tolist()))
        assert len(scene.mesh.vertices) == 8
        assert any("28 duplicate vertices merged" in note for note in scene.notes)


def test_polygons_are_cut_into_triangles(tmp_path):
    """A prism over a pentagon: two pentagons, five quads."""
    turn = np.arange(5) * 2 * np.pi / 5
    ring = np.stack([np.cos(turn), np.sin(turn)], 1)
    vertices = [[x, y, z] for z in (-0.5, 0.5) for x, y in ring]
    faces = [[4, 3, 2, 1, 0], [5, 6, 7, 8, 9], *([i, (i + 1) % 5, 5 + (i + 1) % 5, 5 + i] for i in range(5))]
    properties = "property float x\nproperty float y\nproperty float z\n"
    text = "ply\nformat ascii 1.0\nelement vertex 10\n" + properties
    text += "element face 7\nproperty list uchar int vertex_indices\nend_header\n"
    text += "".join(f"{x} {y} {z}\n" for x, y, z in vertices)
    text += "".join(f"{len(f)} {' '.join(map(str, f))}\n" for f in faces)
    (tmp_path / "prism.ply").write_text(text)
    for path in (write(tmp_path / "prism.obj", vertices, faces), tmp_path / "prism.ply"):
        scene = load_shape(path)
        assert len(scene.mesh.faces) == 2 * 3 + 5 * 2
        assert scene.notes == ()
        assert float(truth_of(scene)(torch.zeros(1, 3)).distances) < -0.3


def test_files_that_hold_no_shape(tmp_path, capsys):
    vertices, faces = box()
    triangle = write(tmp_path / "one.obj", [[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    refused(triangle, r"got 3 open edges \(holes\)")
    refused(triangle, "expected a mesh that encloses something", repair=True)
    refused(write(tmp_path / "none.obj", vertices, []), "expected")
    damaged = [[float("nan"), 0, 0], *vertices[1:]]
    refused(write(tmp_path / "nan.obj", damaged, faces), "expected finite vertices, got 1 with NaN or infinity")
    refused(write(tmp_path / "place.obj", [[1, 1, 1]] * 3, [[0, 1, 2]]), "expected triangles with an area")
    (tmp_path / "shape.docx").write_text("")
    refused(tmp_path / "shape.docx", r"expected a file ending with .*\.xyz, got '\.docx'; convert it")
    refused(tmp_path / "absent.obj", "expected a file with a mesh or points, found none; check the path")
    assert main(["fit", "shape", str(tmp_path / "absent.obj"), "--run", str(tmp_path / "run")]) == 2
    assert "absent.obj" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_points_that_are_no_surface(tmp_path):
    def cloud(name, rows):
        np.savetxt(tmp_path / name, rows)
        return tmp_path / name

    points = np.random.default_rng(0).normal(size=(50, 6))
    refused(cloud("bare.xyz", points[:, :3]), "expected points with normals .* estimate normals")
    refused(cloud("few.xyz", points[:5]), "expected more than 12 different points, got 5; sample denser")
    refused(cloud("nan.xyz", np.where(np.arange(300).reshape(50, 6) == 7, np.nan, points)), "got 1 that are not")
    refused(cloud("same.xyz", np.ones((50, 6))), "expected more than 12 different points, got 1")
    (tmp_path / "text.xyz").write_text("hello world again\n")
    refused(tmp_path / "text.xyz", "expected lines of x y z nx ny nz")
    twice = load_shape(cloud("twice.xyz", np.concatenate([points, points[:10]])))
    assert len(twice.points) == 50
    assert "10 duplicates or points with a normal of zero dropped" in twice.notes[0]
    header = (
        "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    (tmp_path / "empty.ply").write_text(header)
    refused(tmp_path / "empty.ply", "expected triangles or points, got none")


def test_nothing_is_imported_that_a_photograph_does_not_need():
    """libigl is loaded when a shape is, not before."""
    code = "import sys, polyfield.apps.recipes.shape; sys.exit('igl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
