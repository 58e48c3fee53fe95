"""The fused radiance field on tensor cores: against its reference, in the emulator or with ``--device cuda`` on a GPU.

Sizes cover empty work, partial tiles, several blocks that each take several tiles, levels that lie in and across a
lane's four channels, and inputs of the colour network that fill no whole tile.
"""

import pytest
import torch
from polyfield.cuda import radiance_tensor
from polyfield.cuda.radiance import Found, radiance, radiance_density
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.networks import MlpConfig
from polyfield.fields.radiance_grid import RadianceGrid, RadianceGridConfig
from polyfield.geometry import Aabb

from tests.emulation import on_both, on_gpu
from tests.reference import radiance as reference
from tests.test_radiance import as_double, case, results


@pytest.fixture(autouse=True)
def _on_gpu(device):
    with on_gpu(device):
        yield


@pytest.fixture
def launched(monkeypatch):
    """The kernels that were launched for the fused field."""
    names, really = [], radiance_tensor.launch

    def launch(name, *arguments, **options):
        names.append(name)
        really(name, *arguments, **options)

    monkeypatch.setattr(radiance_tensor, "launch", launch)
    return names


FIELDS = [  # samples, features per entry, sizes
    (0, 4, {}),
    (1, 4, {}),
    (800, 4, {}),
    (40, 1, {}),
    (40, 2, {"extras": 0, "geometry": 4, "hidden": (2, 1)}),
    (70, 8, {"extras": 9, "geometry": 16, "hidden": (0, 0)}),
    (50, 4, {"extras": 20, "geometry": 20, "hidden": (1, 1)}),
]


@pytest.mark.parametrize("n, features, sizes", FIELDS, ids=str)
def test_matches_its_roundings(n, features, sizes, launched):
    arguments = case(n, features, torch.float32, **sizes)
    got = results(radiance, *arguments, bfloat16=True)
    assert launched == ["radiance_pack", "radiance_tensor", "radiance_tensor_backward"]
    wanted = results(reference.radiance, *as_double(arguments), bfloat16=True)
    for a, b in zip(got, wanted, strict=True):  # a sum in float32 rounds to the other neighbour now and then
        assert a.shape == b.shape and (a - b).norm() <= 2e-3 * b.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reads_the_half_copy_and_adds_to_the_buffer(dtype):
    points, extras, table, layout, density, color = case(100, 4, torch.float32)
    half, buffer = table.detach().to(dtype), torch.ones_like(table)
    rounded = half.float().requires_grad_()
    wanted = results(radiance, points, extras, rounded, layout, density, color, bfloat16=True)
    found = radiance(points, extras, table, layout, density, color, half=half, table_grad=buffer, bfloat16=True)
    for a, b in zip(found, wanted, strict=False):
        assert torch.equal(a, b)
    g = torch.Generator().manual_seed(9)
    torch.autograd.backward(found, [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o) for o in found])
    assert table.grad is None and all(w.grad is not None for w in (*density, *color))
    torch.testing.assert_close(buffer, wanted[2] + 1, atol=1e-5, rtol=1e-5)


def test_density_alone_is_the_same():
    points, extras, table, layout, density, color = case(100, 4, torch.float32)
    sigmas, _ = radiance(points, extras, table, layout, density, color, bfloat16=True)
    alone = radiance_density(points, table, layout, density, bfloat16=True)
    assert torch.equal(alone, sigmas) and not alone.requires_grad


def test_one_output_alone_has_a_gradient():
    arguments = case(100, 4, torch.float32)
    wanted = results(radiance, *arguments, bfloat16=True)
    g = torch.Generator().manual_seed(9)
    upstream = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o) for o in wanted[:2]]
    leaves = [arguments[2], *arguments[4], *arguments[5]]
    outputs = radiance(*arguments, bfloat16=True)
    parts = [torch.autograd.grad(o, leaves, u, retain_graph=True) for o, u in zip(outputs, upstream, strict=True)]
    assert all((grad == 0).all() for grad in parts[0][-len(arguments[5]) :])  # densities do not know of colours
    for a, b, both in zip(*parts, wanted[2:], strict=True):
        assert (a + b - both).norm() <= 1e-2 * both.norm()


def test_large_densities_are_cut_and_nan_stays():
    points, extras, table, layout, density, color = case(64, 4, torch.float32)
    with torch.no_grad():
        density[-1][0] *= 1e4
    sigmas, _ = radiance(points, extras, table, layout, density, color, bfloat16=True)
    assert sigmas.isfinite().all() and float(sigmas.detach().max()) == pytest.approx(3269017.4, rel=1e-5)
    (gradient,) = torch.autograd.grad(sigmas.sum(), table)
    assert gradient.isfinite().all()
    points[3] = float("nan")
    sigmas, colors = radiance(points, extras, table, layout, density, color, bfloat16=True)
    others = torch.arange(64) != 3
    assert sigmas[3].isnan() and colors[3].isnan().all()
    assert sigmas[others].isfinite().all() and colors[others].isfinite().all()


def test_what_is_too_large_or_in_float32_is_composed(launched, monkeypatch):
    assert not radiance_tensor.fits(*_networks([32, 64, 64, 64, 16], [32, 64, 64, 64, 3]))
    assert not radiance_tensor.fits(*_networks([32, 128, 16], [32, 128, 128, 3]))
    assert radiance_tensor.fits(*_networks([32, 64, 16], [32, 64, 64, 3]))
    monkeypatch.setattr(radiance_tensor, "REGISTERS", 64)
    arguments = case(30, 4, torch.float32, hidden=(1, 2))
    for bfloat16 in (False, True):
        got = results(radiance, *arguments, bfloat16=bfloat16)
        wanted = results(reference.radiance, *as_double(arguments), bfloat16=bfloat16)
        for a, b in zip(got, wanted, strict=True):
            assert (a - b).norm() <= 3e-3 * b.norm()
    radiance_density(*arguments[:1], *arguments[2:5])
    assert launched == []


def _networks(*sizes):
    return [[torch.empty(o, i) for i, o in zip(s[:-1], s[1:], strict=True)] for s in sizes]


@pytest.mark.parametrize("half", [False, True])
def test_a_field_answers_alike_from_one_kernel_and_from_its_parts(half, monkeypatch):
    """Of the sizes that a fit has: eight levels of four, networks 64 wide."""
    torch.manual_seed(0)
    grid = HashGridConfig(levels=8, features=4, log2_size=10, half=half)
    field = RadianceGrid(RadianceGridConfig(grid=grid, bfloat16=True), Aabb.cube(1.0))
    with torch.no_grad():
        field.encoding.table.uniform_(-1, 1)
    field.encoding.refresh()
    points, directions = torch.rand(150, 3) * 2 - 1, torch.nn.functional.normalize(torch.randn(150, 3), dim=-1)
    field, upstream = field.to(points.device), torch.rand(150, 3)

    def answers():
        field.zero_grad()
        output = field.query(points, directions)
        (output.values.log().sum() + (output.colors * upstream).sum()).backward()
        return [output.values, output.colors, *(p.grad.clone() for p in field.parameters())]

    fused = answers()
    monkeypatch.setattr(RadianceGrid, "_fused", lambda *_: None)
    for a, b in zip(fused, answers(), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_a_field_of_other_sizes_is_that_of_the_cpu():
    config = RadianceGridConfig(
        HashGridConfig(levels=3, features=2, log2_size=8, finest_resolution=32),
        density=MlpConfig(width=16),
        color=MlpConfig(width=32, hidden_layers=1),
        geometry_features=5,
        sh_degree=2,
        bfloat16=True,
    )
    field = RadianceGrid(config, Aabb.cube(1.0))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        field.encoding.table.copy_(torch.randn(field.encoding.table.shape, generator=g))
    points = torch.rand(40, 3, generator=g) * 2 - 1
    directions = torch.nn.functional.normalize(torch.randn(40, 3, generator=g), dim=-1)

    @torch.no_grad()
    def run(points, directions):
        output = field.to(points.device).query(points, directions)
        return output.values, output.colors, field.query(points).values

    for found, wanted in zip(*on_both(run, points, directions), strict=True):
        torch.testing.assert_close(found.cpu(), wanted, atol=1e-2, rtol=1e-2)


def test_what_a_march_found_is_for_the_cpu():
    points, extras, table, layout, density, color = case(20, 4, torch.float32)
    found = Found(torch.zeros(20, layout.out_channels), torch.zeros(20, len(density[-1])))
    with pytest.raises(ValueError, match="radiance: found: expected None on a GPU"):
        radiance(points, extras, table, layout, density, color, bfloat16=True, found=found)


def test_opcheck():
    points, extras, table, layout, density, color = case(20, 4, torch.float32)
    tensors = (*density, None, None, None, *color, None, None)
    arguments = (points, extras, table, None, None, *tensors, None, None, list(layout._numbers), True, True)
    torch.library.opcheck(torch.ops.polyfield.radiance.default, arguments)
    weights = [w.detach() for w in density]
    density_only = (points, table.detach(), None, weights, list(layout._numbers), True)
    torch.library.opcheck(torch.ops.polyfield.radiance_density.default, density_only)
