"""Encodings of distances: derivatives by points and parameters, errors, and that each learns a shape."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.fit import Budget, fit
from polyfield.apps.recipes import shape
from polyfield.apps.run import open_run
from polyfield.apps.shape_batches import SamplesConfig
from polyfield.datasets.scene import LoadOptions
from polyfield.fields.cp_grid import CpGridConfig
from polyfield.fields.dense_grid import DenseGridConfig
from polyfield.fields.encoding_kinds import EncodingKind
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.fourier import FourierConfig
from polyfield.fields.grid_distance import GridDistanceConfig
from polyfield.fields.lines import Line
from polyfield.fields.networks import MlpConfig
from polyfield.fields.no_encoding import NoEncodingConfig
from polyfield.fields.planes import Plane
from polyfield.fields.signed_distance import SignedDistanceConfig
from polyfield.fields.tri_plane import TriPlaneConfig
from polyfield.fields.vm_grid import VmGridConfig
from polyfield.geometry import Mesh
from polyfield.geometry.mesh_io import save_mesh

F64 = torch.float64
CONFIGS = {
    "hash": HashGridConfig(levels=3, features=2, log2_size=9, base_resolution=4, finest_resolution=32),
    "dense": DenseGridConfig(resolution=16, features=2, levels=2),
    "tri-plane": TriPlaneConfig(levels=2, features=2, base_resolution=4, finest_resolution=12),
    "vm": VmGridConfig(components=16, resolution=12),
    "cp": CpGridConfig(components=9, resolution=12),
    "fourier": FourierConfig(octaves=4),
    "fourier, random": FourierConfig(random=7, spread=3.0),
    "none": NoEncodingConfig(),
}


@pytest.fixture(params=CONFIGS)
def encoding(request):
    torch.manual_seed(0)
    made = CONFIGS[request.param].build().to(F64)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def points(n=100, seed=1):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


def weights_for(encoding, n=100):
    return torch.randn(n, encoding.out_channels, generator=torch.Generator().manual_seed(2), dtype=F64)


def test_every_kind_is_tried():
    assert {kind.value for kind in EncodingKind} <= CONFIGS.keys()


def test_derivatives_by_points(encoding):
    """Those that are results of their own are those of the features."""
    p, w = points().requires_grad_(), weights_for(encoding)
    features, jacobian = encoding.with_gradient(p.detach())
    assert features.shape == (100, encoding.out_channels) and jacobian.shape == (100, encoding.out_channels, 3)
    torch.testing.assert_close(features, encoding(p.detach()))
    found = encoding.slopes(p.detach(), w)
    if encoding.out_channels:
        (wanted,) = torch.autograd.grad((encoding(p) * w).sum(), p)
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found, torch.einsum("nc,ncd->nd", w, jacobian))
    assert list(encoding.resolutions) == sorted(encoding.resolutions) and encoding.resolutions[0] >= 1


def test_derivatives_of_derivatives(encoding):
    """What a loss on slopes asks of parameters and of what slopes are weighted by, against differences."""
    p, w = points(), weights_for(encoding).requires_grad_()
    loss = lambda: (encoding.slopes(p, w).norm(dim=-1) - 1).square().sum()  # noqa: E731
    if not encoding.out_channels:
        assert loss() == len(p)
        return
    leaves = [w, *encoding.parameters()]
    found = torch.autograd.grad(loss(), leaves)
    for leaf, gradient in zip(leaves, found, strict=True):
        way = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(3), dtype=F64)
        with torch.no_grad():
            ends = []
            for step in (1e-6, -2e-6):
                leaf.add_(step * way)
                ends.append(loss())
            leaf.add_(1e-6 * way)
        torch.testing.assert_close((gradient * way).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-6)


def test_points_that_move(encoding):
    """Where cameras are refined, derivatives have derivatives by the points too."""
    p = points(20).requires_grad_()
    if not encoding.out_channels:
        return
    _, jacobian = encoding.with_gradient(p)
    (found,) = torch.autograd.grad(jacobian.square().sum(), p, allow_unused=True)
    h = 1e-7
    way = torch.randn(20, 3, generator=torch.Generator().manual_seed(3), dtype=F64)
    of = lambda s: encoding.with_gradient(p.detach() + s * way)[1].square().sum((1, 2))  # noqa: E731
    wanted = (of(h) - of(-h)) / (2 * h)
    ours = torch.zeros_like(wanted) if found is None else (found * way).sum(-1)
    off = (ours - wanted).abs() / (1 + wanted.abs())
    assert off.median() < 1e-4, "but for points that cross into another cell"


def test_constant_outside_and_finite_for_nan(encoding):
    if type(encoding).__name__ in ("Fourier", "NoEncoding"):
        pytest.skip("goes on outside")
    out = torch.tensor([[1.7, 0.4, -3.0], [float("nan"), 0.5, 0.5]], dtype=F64)
    torch.testing.assert_close(encoding(out[:1]), encoding(torch.tensor([[1.0, 0.4, 0.0]], dtype=F64)))
    found = encoding.slopes(out, weights_for(encoding, 2))
    assert found[0, 0] == 0 and found[0, 2] == 0 and found[0, 1] != 0
    assert encoding(out)[1].isnan().any(), "what is no place has no features"
    assert encoding(points(0)).shape == (0, encoding.out_channels)


def test_a_line():
    line = Line(2, 4).to(F64)
    with torch.no_grad():
        line.table.copy_(torch.arange(5.0)[:, None] ** 2 * torch.tensor([1.0, -1.0]))
    values, derivatives = line(torch.tensor([0.0, 0.375, 1.0, 1.5, -0.5], dtype=F64))
    assert values[:, 0].tolist() == [0, 2.5, 16, 16, 0]
    assert derivatives[:, 0].tolist() == [4, 12, 28, 0, 0]
    torch.testing.assert_close(values[:, 1], -values[:, 0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (DenseGridConfig(resolution=406).build, "DenseGrid: resolution: expected 1 to 405, got 406"),
        (VmGridConfig(components=12).build, "VmGrid: components: expected a multiple of 8, got 12"),
        (FourierConfig(octaves=0).build, "Fourier: octaves: expected at least 1, got 0"),
        (lambda: Plane(1, 2, 16, 8192), "Plane: resolution: expected at most 8191, got 8192"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_nothing_of_a_dense_grid_is_hashed():
    assert not any(DenseGridConfig(resolution=128).build().layout.hashed)
    assert not any(plane.layout.hashed[-1] for plane in TriPlaneConfig(finest_resolution=1024).build().planes)


def torus(ring=0.6, tube=0.25, segments=48):
    """A closed mesh that no sphere is like."""
    angle = torch.arange(segments) * (2 * torch.pi / segments)
    u, v = torch.meshgrid(angle, angle, indexing="ij")
    away = ring + tube * v.cos()
    vertices = torch.stack([away * u.cos(), away * u.sin(), tube * v.sin()], -1).reshape(-1, 3)
    i, j = torch.meshgrid(torch.arange(segments), torch.arange(segments), indexing="ij")
    at = lambda i, j: (i % segments) * segments + j % segments  # noqa: E731
    quad = [at(i, j), at(i + 1, j), at(i + 1, j + 1), at(i, j + 1)]
    faces = torch.cat([torch.stack([quad[k] for k in t], -1).reshape(-1, 3) for t in ((0, 1, 2), (0, 2, 3))])
    return Mesh(vertices, faces)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "torus.ply"
    save_mesh(torus(), path)
    return path


SMALL = SignedDistanceConfig(
    grid=HashGridConfig(levels=4, features=4, log2_size=13, finest_resolution=64),
    dense=DenseGridConfig(resolution=32),
    tri_plane=TriPlaneConfig(levels=2, base_resolution=16, finest_resolution=32),
    vm=VmGridConfig(components=8, resolution=32),
    cp=CpGridConfig(components=48, resolution=32),
    fourier=FourierConfig(octaves=3),
    network=MlpConfig(width=64, hidden_layers=2),
    color=None,
    geometry_features=1,
)


def config_of(kind, **changes):
    samples = SamplesConfig(batch=4096, first=1 << 14, every=1000)
    rates = replace(shape.Config().optimizer, learning_rate=1e-2)
    return replace(shape.Config(), distances=replace(SMALL, encoding=kind, **changes), samples=samples, optimizer=rates)


def exact(p):
    """Distances to the torus, of the file's scale."""
    return torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - 0.6, p[:, 2]) - 0.25


LEFT = {"hash": 0.015, "dense": 0.008, "tri-plane": 0.01, "vm": 0.01, "cp": 0.025, "fourier": 0.03, "none": 0.06}


@pytest.mark.parametrize("kind", EncodingKind, ids=lambda kind: kind.value)
def test_each_learns_a_torus(kind, file):
    """It begins as a sphere, 0.2 away from it; the limits are twice what 300 steps left of that, or so."""
    config = config_of(kind)
    scene = config.open_data(str(file), LoadOptions())
    budget = Budget(steps=300)
    job = config.build(scene, 0, budget=budget)
    scale = float(scene.scene_to_world[:3, :3].norm(dim=0)[0])
    p = 2 * points(4000).float() - 1
    true = exact(p * scale) / scale
    near = true.abs() < 0.1
    before = (job.field.distance(p) - true).abs()[near].mean()
    fit(job, budget, config.after_step())
    output = job.field.query(p, gradients=True)
    after = (output.values - true).abs()[near].mean()
    assert before > 0.2 and after < LEFT[kind.value]
    normals = torch.nn.functional.normalize(output.gradients, dim=-1)
    assert (normals.norm(dim=-1) > 0.99).all()


@pytest.mark.parametrize("kind", ["dense", "tri-plane", "vm", "cp", "fourier", "none"])
def test_photographs_from_the_command_line(tmp_path, kind):
    options = ["--steps", "3", "--downscale", "8", "--samples-per-step", "1024", "--first.grid-share", "0"]
    options += ["--field.encoding", kind, "--field.dense.resolution", "16", "--refine-poses"]
    assert main(["fit", "neus", "demo", "--run", str(tmp_path / "run"), *options]) == 0
    opened = open_run(tmp_path / "run")
    assert opened.field.config.encoding.value == kind
    assert opened.field.distance(torch.zeros(1, 3)).isfinite()


def test_runs_of_before_have_the_hash_grid():
    from polyfield.apps.config_io import from_json, to_json

    stored = to_json(GridDistanceConfig())
    old = {k: stored[k] for k in ("grid", "network", "color", "geometry_features", "sh_degree", "bfloat16", "radius")}
    assert from_json(GridDistanceConfig, old) == GridDistanceConfig()
