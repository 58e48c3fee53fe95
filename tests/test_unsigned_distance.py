"""Unsigned distances: what they begin as, their gradients, and fits to open meshes and to points of any kind."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from polyfield.apps.__main__ import main
from polyfield.apps.api import fit_scene
from polyfield.apps.commands.extract import _method
from polyfield.apps.errors import UserError
from polyfield.apps.mesh_options import Method
from polyfield.apps.recipes import shape
from polyfield.apps.shape_batches import SamplesConfig
from polyfield.datasets.scene import LoadOptions, SceneError
from polyfield.datasets.shape import load_shape, truth_of
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.networks import MlpConfig
from polyfield.fields.protocols import Distance, Field
from polyfield.fields.unsigned_distance import Head, UnsignedDistanceConfig
from polyfield.geometry import Aabb, Mesh, Pixels, Points
from polyfield.geometry.mesh_io import load_mesh, save_mesh
from polyfield.geometry.mesh_ops import boundary_edges, boundary_length, face_areas, sample_surface
from polyfield.geometry.open_cloud_distance import OpenCloudDistance, estimate_normals
from polyfield.renderers.losses.slope import Slope, slope_error
from polyfield.renderers.protocols import Render, Step

from .unsigned_shapes import bowl, disc, unsigned

F64 = torch.float64
SMALL = UnsignedDistanceConfig(
    grid=HashGridConfig(levels=3, features=4, log2_size=14, base_resolution=8, finest_resolution=32),
    network=MlpConfig(width=64, hidden_layers=2),
    color=None,
    geometry_features=1,
    radius=0.0,
)
RECIPE = shape.Config(
    field=shape.Kind.UDF,
    unsigned=SMALL,
    samples=SamplesConfig(batch=4096, first=1 << 14, most=1 << 15, part=1 << 12, every=16),
)


def field(dtype=F64, seed=0, **changes):
    """One that has learned something."""
    torch.manual_seed(seed)
    made = replace(SMALL, **changes).build(Aabb.cube()).to(dtype)
    with torch.no_grad():
        made.encoding.table.normal_(std=0.3)
        made.network.weights[-1][0].normal_(std=0.2)
        made.network.biases[-1][0] = -0.7
    return made


def points(n=300, seed=0):
    return 2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) - 1


# ---- the field -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("radius", [0.0, 0.5])
def test_it_begins_as_the_distance_to_a_sphere(radius):
    made, p = replace(SMALL, radius=radius).build(Aabb.cube()), points()
    assert isinstance(made, Field)
    assert isinstance(made, Distance)
    assert not made.signed
    torch.testing.assert_close(made.distance(p), (p.norm(dim=-1) - radius).abs(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", Head)
def test_distances_are_never_negative_and_gradients_are_theirs(head):
    made, p = field(head=head), points().double().requires_grad_()
    output = made.query(p, gradients=True)
    assert (output.values >= 0).all()
    torch.testing.assert_close(output.values, made.query(p).values, atol=1e-12, rtol=0)
    (wanted,) = torch.autograd.grad(made.query(p).values.sum(), p)
    torch.testing.assert_close(output.gradients, wanted, atol=1e-9, rtol=1e-9)
    raw = made.network(torch.cat([made.encoding(made.bounds.normalize(p)), p], -1))[:, 0] + p.norm(dim=-1)
    assert float((raw < 0).double().mean()) > 0.02, "both sides of the kink are looked at"


def test_colors_go_by_the_viewers_side_without_a_gradient():
    """The two sides of a surface are told apart by the direction alone: on it there is no normal."""
    made, p = field(torch.float32, color=MlpConfig(width=16), geometry_features=4), points(8)
    directions = torch.nn.functional.normalize(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    front, back = made.query(p, directions), made.query(p, -directions)
    assert front.gradients is None
    assert float((front.colors - back.colors).abs().mean()) > 1e-3
    with_gradients = made.query(p, directions, gradients=True)
    torch.testing.assert_close(with_gradients.colors, front.colors)
    assert with_gradients.gradients is not None


# ---- the slope loss ------------------------------------------------------------------------------------------------
def test_slope_loss():
    found, true = torch.eye(3)[[0, 1, 2]], torch.eye(3)[[0, 0, 0]]
    off = torch.tensor([True, True, False])
    assert float(slope_error(found, true, off)) == pytest.approx(math.sqrt(2) / 2)
    assert float(slope_error(found, true, off & False)) == 0
    exact = (found + 0.3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: slope_error(f, true.double(), off), exact)


def test_slope_loss_says_what_is_missing():
    known = Points(torch.zeros(1, 3), torch.ones(1), torch.ones(1, 3))
    made = field(torch.float32)
    bare = Step(0, None, Points(torch.zeros(1, 3)), Render(Pixels(), output=made.query(known.positions)), Pixels())
    with pytest.raises(ValueError, match="slope: view: expected points with distances and normals, got none"):
        Slope()(bare)
    with pytest.raises(ValueError, match="slope: render: expected gradients of distances, got none; ask the field"):
        Slope()(replace(bare, view=known))


# ---- distances to points -------------------------------------------------------------------------------------------
def cloud(mesh, count=6000):
    return sample_surface(mesh, count, torch.Generator().manual_seed(0))


def test_distances_to_bare_points_of_an_open_surface():
    truth = bowl()
    at, normals = cloud(truth)
    estimated = estimate_normals(at)
    assert float((estimated * normals).sum(1).abs().mean()) > 0.99
    p = points(4000)
    known, exact = OpenCloudDistance(at, estimated)(p), unsigned(truth)(p)[0]
    assert float(known.distances.min()) >= 0
    assert float((known.distances - exact).abs().mean()) < 0.004
    near, slopes = sample_surface(truth, 2000, torch.Generator().manual_seed(1))
    for height in (0.003, 0.01, 0.05):
        found = OpenCloudDistance(at, estimated)(near + height * slopes)
        assert float((found.distances - height).abs().mean()) < 0.004
    assert float((found.normals * slopes).sum(1).mean()) > 0.95


def test_planes_do_not_go_on_beyond_a_boundary():
    truth = disc()
    at, normals = cloud(truth)
    outward = torch.nn.functional.normalize(at, dim=1)[at.norm(dim=1) > 0.65]
    found = OpenCloudDistance(at, normals)(0.74 * outward).distances
    assert float(found.median()) == pytest.approx(0.04, abs=0.015)


def test_few_points_are_refused():
    with pytest.raises(ValueError, match="OpenCloudDistance: points: expected more than 12, got 5; sample denser"):
        OpenCloudDistance(torch.zeros(5, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="estimate_normals: points: expected more than 12, got 5; sample denser"):
        estimate_normals(torch.zeros(5, 3))
    found = OpenCloudDistance(*cloud(disc(), 50))(torch.zeros(0, 3))
    assert len(found) == 0


# ---- fits ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def bowl_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unsigned")
    truth = bowl()
    save_mesh(Mesh(2 * truth.vertices + 5, truth.faces), folder / "bowl.obj")
    return fit_scene(folder / "bowl.obj", RECIPE, run=folder / "run", steps=400, threads=1, device="cpu")


def test_an_open_mesh_stays_open(bowl_run, tmp_path):
    path = tmp_path / "mesh.ply"
    assert main(["extract", str(bowl_run.folder), "--output", str(path), "--resolution", "32"]) == 0
    mesh, truth = load_mesh(path), bowl()
    truth = Mesh(2 * truth.vertices + 5, truth.faces)
    there = unsigned(truth)(sample_surface(mesh, 5000, torch.Generator().manual_seed(0))[0])[0]
    assert float(there.mean()) < 0.02
    assert boundary_length(mesh) < 2 * boundary_length(truth)
    assert len(boundary_edges(mesh.faces)) > 0
    area = (
        float(
            torch.linalg.cross(*(mesh.vertices[mesh.faces[:, k]] - mesh.vertices[mesh.faces[:, 0]] for k in (1, 2)))
            .norm(dim=1)
            .sum()
        )
        / 2
    )
    assert area == pytest.approx(2 * math.pi * 1.4**2, rel=0.12), "one layer"


def test_evaluate_measures_boundaries_too(bowl_run, capsys):
    assert main(["evaluate", str(bowl_run.folder), "--resolution", "32"]) == 0
    metrics = json.loads((bowl_run.folder / "metrics.json").read_text())
    assert metrics["true_boundary_length"] == pytest.approx(2 * math.pi * 1.4, rel=0.02)
    assert metrics["boundary_length"] > 0
    assert 0 < metrics["chamfer_percent"] < 1
    assert metrics["normal_consistency"] > 0.9
    assert "Chamfer distance" in capsys.readouterr().out


def test_other_methods(bowl_run, tmp_path, capsys):
    arguments = ["extract", str(bowl_run.folder), "--output", str(tmp_path / "mesh.ply"), "--resolution", "32"]
    assert main([*arguments, "--method", "pseudo-signs"]) == 0
    assert main([*arguments, "--method", "opacity", "--level", "0.1"]) == 0
    shell = load_mesh(tmp_path / "mesh.ply")
    assert float(face_areas(shell).sum()) > 1.7 * 2 * math.pi * 1.4**2, "both sides of it"
    capsys.readouterr()
    assert main([*arguments, "--method", "opacity"]) == 2
    assert "extract: --method: expected dual or pseudo-signs for an unsigned distance" in capsys.readouterr().err
    assert main([*arguments, "--method", "dual", "--level", "0.1"]) == 2
    assert "--level: expected --method opacity as well, got dual" in capsys.readouterr().err


def test_signed_distances_are_meshed_by_dual_contouring_too(tmp_path, capsys):
    from .test_shape import SMALL as SIGNED
    from .test_shape import torus

    torus().export(tmp_path / "torus.ply")
    fit_scene(tmp_path / "torus.ply", SIGNED, run=tmp_path / "run", steps=2, threads=1, device="cpu", preview_every=0.0)
    arguments = ["extract", str(tmp_path / "run"), "--resolution", "48", "--output", str(tmp_path / "mesh.ply")]
    assert main([*arguments, "--method", "dual"]) == 0
    assert trimesh.load(tmp_path / "mesh.ply").is_watertight
    assert main([*arguments, "--method", "dual", "--level", "0.1"]) == 0
    assert main([*arguments, "--method", "pseudo-signs"]) == 2
    assert "pseudo-signs expected a run of an unsigned distance, got shape" in capsys.readouterr().err


def test_dual_contouring_is_for_distances():
    run = SimpleNamespace(field=torch.nn.Linear(1, 1), asked=SimpleNamespace(recipe="ngp"))
    with pytest.raises(UserError, match="extract: --method: dual expected a run of a distance, got ngp; drop it"):
        _method(run, Method.DUAL, None)


def test_bare_points_are_taken(tmp_path):
    at, normals = cloud(disc(), 3000)
    np.savetxt(tmp_path / "bare.xyz", at.numpy())
    np.savetxt(tmp_path / "oriented.xyz", torch.cat([at, normals], 1).numpy())
    bare = RECIPE.open_data(str(tmp_path / "bare.xyz"), LoadOptions())
    assert any("points without normals" in note for note in bare.notes)
    oriented = RECIPE.open_data(str(tmp_path / "oriented.xyz"), LoadOptions())
    assert not oriented.notes
    job = RECIPE.build(bare, 0)
    drawn, _, _ = job.batches.draw()
    assert float(drawn.distances.min()) >= 0
    p = points(500)
    for scene in (bare, oriented):
        found = truth_of(scene, signed=False)(p).distances
        world = p.double() @ scene.scene_to_world[:3, :3].T + scene.scene_to_world[:3, 3]
        exact = unsigned(disc())(world.float())[0] / float(scene.scene_to_world[:3, :3].det()) ** (1 / 3)
        assert float((found - exact).abs().mean()) < 0.01
    with pytest.raises(SceneError, match="expected points with normals"):
        load_shape(tmp_path / "bare.xyz")


def test_faulty_meshes_are_taken_as_they_are(tmp_path, capsys):
    """One triangle; three triangles on one edge; and --repair, which has no meaning here."""
    triangle = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
    fan = Mesh(
        torch.cat([torch.eye(3), torch.tensor([[1.0, 1, 1], [-1, 0, 1]])]),
        torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]]),
    )
    for name, mesh in (("one.obj", triangle), ("fan.obj", fan)):
        save_mesh(mesh, tmp_path / name)
        scene = RECIPE.open_data(str(tmp_path / name), LoadOptions())
        known = truth_of(scene, signed=False)(scene.mesh.vertices.float())
        assert float(known.distances.abs().max()) < 1e-5
    assert main(["fit", "shape", str(tmp_path / "one.obj"), "--field", "udf", "--repair"]) == 2
    assert "fit: --repair: expected --field sdf, got udf" in capsys.readouterr().err
