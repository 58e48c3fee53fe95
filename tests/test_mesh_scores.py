"""`polyfield evaluate RUN --mesh TRUTH` on a short fit of the built-in scene."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.commands.extract import extract_mesh
from polyfield.apps.run import open_run
from polyfield.geometry import Mesh
from polyfield.geometry.mesh_io import save_mesh
from polyfield.geometry.mesh_ops import sample_surface, transform

KEYS = {
    "chamfer_percent",
    "chamfer_to_truth_percent",
    "chamfer_from_truth_percent",
    "f_score_1_percent",
    "f_score_0.5_percent",
    "normal_consistency",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    options = ["--steps", "60", "--downscale", "4", "--samples-per-step", "4096", "--preview-every", "0"]
    assert main(["fit", "ngp", "demo", "--run", str(folder), *options]) == 0
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few cells and samples."""
    monkeypatch.setattr("polyfield.apps.commands.extract.extract_mesh", partial(extract_mesh, resolution=48))
    monkeypatch.setattr("polyfield.apps.mesh_scores.SAMPLES", 5000)


@pytest.fixture
def truth(run):
    """In the user's units."""
    opened = open_run(run)
    return transform(opened.scene().mesh, opened.asked.facts.matrix)


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def test_a_mesh_is_extracted_and_compared(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    plain = metrics(run)
    assert "mesh" not in plain
    assert main(["evaluate", str(run), "--mesh", "truth"]) == 0
    found = metrics(run)
    assert set(found["mesh"]) >= KEYS
    assert found["mesh"]["source"].startswith("extracted")
    assert {k: found[k] for k in ("psnr", "ssim")} == {k: plain[k] for k in ("psnr", "ssim")}
    assert [view["name"] for view in found["views"]] == [view["name"] for view in plain["views"]]
    both = (found["mesh"]["chamfer_to_truth_percent"] + found["mesh"]["chamfer_from_truth_percent"]) / 2
    assert found["mesh"]["chamfer_percent"] == pytest.approx(both)
    assert 0.1 < found["mesh"]["chamfer_percent"] < 10
    assert found["mesh"]["samples"] == 5000
    assert f"Chamfer distance {found['mesh']['chamfer_percent']:.3f} % of the diagonal" in capsys.readouterr().out


def test_the_runs_own_mesh_counts_if_it_is_of_this_fit(run, truth, tmp_path, capsys):
    """Measured beside a file, in the user's units; an old mesh is not taken for the new fit's."""
    lifted = Mesh(truth.vertices + torch.tensor([0.0, 0.0, 0.02]), truth.faces)
    path = run / "mesh.ply"
    save_mesh(lifted, path)
    save_mesh(truth, tmp_path / "truth.ply")
    try:
        assert main(["evaluate", str(run), "--mesh", str(tmp_path / "truth.ply")]) == 0
        scores = metrics(run)["mesh"]
        assert scores["source"] == "mesh.ply"
        assert scores["diagonal"] == pytest.approx(float((truth.vertices.amax(0) - truth.vertices.amin(0)).norm()))
        assert scores["chamfer_to_truth_percent"] < 100 * 0.0201 / scores["diagonal"]
        assert scores["f_score_1_percent"] > 0.85
        assert "mesh (mesh.ply)" in capsys.readouterr().out
        os.utime(path, (0, 0))
        assert main(["evaluate", str(run), "--mesh", "truth"]) == 0
        assert metrics(run)["mesh"]["source"].startswith("extracted")
    finally:
        path.unlink()


def test_a_scan_of_points_may_be_the_truth(run, truth, tmp_path, capsys):
    """Denser points come nearer to what the surface itself says; of normals they say nothing."""
    import trimesh

    save_mesh(truth, run / "mesh.ply")
    found = []
    try:
        for count in (2000, 50_000):
            points, _ = sample_surface(truth, count, torch.Generator().manual_seed(1))
            trimesh.PointCloud(points.numpy()).export(tmp_path / "scan.ply")
            assert main(["evaluate", str(run), "--mesh", str(tmp_path / "scan.ply")]) == 0
            found.append(metrics(run)["mesh"])
    finally:
        (run / "mesh.ply").unlink()
    coarse, fine = found
    assert 0.1 < fine["chamfer_to_truth_percent"] < 0.3 * coarse["chamfer_to_truth_percent"]
    assert fine["chamfer_from_truth_percent"] < 1e-3
    assert fine["f_score_1_percent"] > 0.999
    assert fine["normal_consistency"] is None
    assert "points tell nothing of normals" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("points", "found"), [([[1.0, 2.0, 3.0]], 1), ([[0.0, 0.0, 1.0]] * 9, 1), ([[float("nan")] * 3] * 5, 0)]
)
def test_points_that_are_no_surface_are_refused(run, tmp_path, capsys, points, found):
    import trimesh

    path = tmp_path / "few.ply"
    trimesh.PointCloud(points).export(path)
    assert main(["evaluate", str(run), "--mesh", str(path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "few.ply" in said.replace(" ", "") and f"got {found} finite places" in said


def test_errors(run, tmp_path, capsys, monkeypatch):
    assert main(["evaluate", str(run), "--mesh", str(tmp_path / "none.ply")]) == 2
    assert "evaluate: --mesh: load_mesh: " in capsys.readouterr().err
    scene = open_run(run).scene()
    monkeypatch.setattr("polyfield.apps.run.Run.scene", lambda self: replace(scene, mesh=None))
    assert main(["evaluate", str(run), "--mesh", "truth"]) == 2
    assert "--mesh truth: expected a scene that knows its true surface, got demo" in capsys.readouterr().err
    flat = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    save_mesh(flat, tmp_path / "flat.ply")
    assert main(["evaluate", str(run), "--mesh", str(tmp_path / "flat.ply")]) == 2
    assert "evaluate: --mesh: sample_surface: mesh: expected triangles with an area" in capsys.readouterr().err
