"""Signed distances from photographs: they learn colours and surfaces, resume to the bit, and are meshed at zero."""

import json
import math
from dataclasses import replace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.api import fit_scene
from polyfield.apps.commands.extract import extract_mesh
from polyfield.apps.first_distance import FirstDistance
from polyfield.apps.fit import Budget, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.mesh_options import Method
from polyfield.apps.recipes import neus, ngp, volsdf
from polyfield.apps.run import open_run
from polyfield.datasets.scene import open_scene
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.networks import MlpConfig
from polyfield.fields.signed_distance import SignedDistanceConfig
from polyfield.geometry.mesh_io import load_mesh
from polyfield.geometry.mesh_ops import transform
from polyfield.geometry.metrics import chamfer
from polyfield.geometry.transforms import similarity_inverse
from polyfield.renderers.losses.opacity import Opacity

FIELD = SignedDistanceConfig(
    grid=HashGridConfig(levels=6, features=4, log2_size=14, finest_resolution=192),
    network=MlpConfig(width=32),
    color=MlpConfig(width=32),
)
BLUNT = 60.0  # where a fit of small pictures begins: they hold no surface that is sharper
RECIPES = {
    name: replace(
        config,
        field=FIELD,
        occupancy=ngp.OccupancyConfig(resolution=64),
        samples_per_step=8192,
        first=FirstDistance(grid_share=0.4, resolution=64, views=20, view_size=50, steps=150, points=4096),
    )
    for name, config in (("neus", neus.Config(sharpness=BLUNT)), ("volsdf", volsdf.Config()))
}


@pytest.fixture(scope="module")
def scene():
    return open_scene("demo", downscale=4)


@pytest.fixture(scope="module", params=RECIPES)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    return fit_scene("demo", RECIPES[request.param], run=folder, steps=400, downscale=4, preview_every=0.0)


def test_it_learns_the_photographs(run):
    assert main(["evaluate", str(run.folder)]) == 0
    assert json.loads((run.folder / "metrics.json").read_text())["psnr"] > 19.5


def test_normals_are_those_of_the_truth(run, scene):
    frame = scene.test[0]
    pixels = run.renderer.render(run.field, frame.camera, normals=True).pixels
    seen = (pixels.alphas > 0.9) & (frame.alphas.float() / 255 > 0.9)
    assert seen.float().mean() > 0.1
    cosines = (pixels.normals * frame.normals).sum(-1)[seen]
    assert cosines.median() > 0.8


def test_the_mesh_is_the_zero_level(run, scene, tmp_path):
    assert main(["extract", str(run.folder), "--output", str(tmp_path / "mesh.ply"), "--resolution", "64"]) == 0
    mesh, truth = load_mesh(tmp_path / "mesh.ply"), transform(scene.mesh, run.asked.facts.matrix.float())
    assert mesh.colors is not None
    diagonal = float((truth.vertices.amax(0) - truth.vertices.amin(0)).norm())
    assert float(chamfer(mesh, truth)) < 0.04 * diagonal
    inside = transform(mesh, run.asked.facts.matrix.double().inverse().float()).vertices
    assert run.field.distance(inside).abs().median() < 2e-3


def test_poisson_goes_through_the_zero(run, scene):
    pytest.importorskip("open3d", reason="needs polyfield[poisson]")
    mesh = extract_mesh(run, method=Method.POISSON, resolution=48)
    moved = transform(mesh, similarity_inverse(run.asked.facts.matrix))
    with torch.no_grad():
        found = run.field.query(moved.vertices, gradients=True)
    assert float(found.values.abs().median()) < 0.01
    assert float(torch.cosine_similarity(found.gradients, moved.normals).median()) > 0.85


def test_the_law_sharpens(run):
    law = open_run(run.folder).renderer.opacity
    if hasattr(law, "annealing"):
        assert law.annealing == 1
        assert law.sharpness > 1.1 * BLUNT
    else:
        assert law.beta < volsdf.Config().beta / 1.1


@pytest.mark.parametrize("recipe", RECIPES)
def test_resuming_is_as_if_nothing_had_happened(scene, tmp_path, recipe):
    config, budget = replace(RECIPES[recipe], first=FirstDistance(grid_share=0.0)), Budget(steps=40)
    straight = config.build(scene, 1, budget=budget)
    fit(straight, budget, config.after_step())
    first = config.build(scene, 1, budget=budget)
    fit(first, budget, config.after_step(), stop=lambda: first.step >= 5)
    Checkpoints(tmp_path, 1.0).save(first)
    second = config.build(scene, 2)
    second.restore(*Checkpoints(tmp_path, 1.0).load())
    fit(second, budget, config.after_step())
    wanted, found = straight.tensors(), second.tensors()
    assert wanted.keys() == found.keys()
    for name in wanted:
        assert torch.equal(wanted[name], found[name]), name


def test_opacity_is_left_out_where_photographs_have_no_alpha(scene):
    from polyfield.apps.run import SceneFacts

    facts = SceneFacts.of(scene)
    assert facts.has_alpha
    config = replace(neus.Config(), opacity=Opacity(weight=0.3))
    assert {"photometric", "opacity", "eikonal"} <= config.build_losses(facts).keys()
    assert "opacity" not in config.build_losses(replace(facts, has_alpha=False))


def test_from_the_command_line(tmp_path):
    options = ["--steps", "3", "--downscale", "8", "--samples-per-step", "1024", "--sharpness", "30"]
    options += ["--first.grid-share", "0"]
    assert main(["fit", "neus", "demo", "--run", str(tmp_path / "run"), *options]) == 0
    opened = open_run(tmp_path / "run")
    assert opened.asked.config.sharpness == 30
    assert math.isfinite(opened.renderer.opacity.sharpness.item())
