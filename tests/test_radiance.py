import pytest
import torch
from polyfield.cuda.hash_encoding import HashLayout
from polyfield.cuda.radiance import Found, radiance, radiance_density
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.radiance_grid import RadianceGrid, RadianceGridConfig
from polyfield.geometry import Aabb

from tests.reference import radiance as reference


def case(n, features=2, dtype=torch.float64, levels=4, hidden=(1, 2), extras=5, geometry=7, requires_grad=True):
    """points, extras, table, layout, density weights, colour weights; float32 ones are exact in float32."""
    g = torch.Generator().manual_seed(n + features)
    layout = HashLayout.build(levels=levels, features=features, log2_size=9, base_resolution=4, finest_resolution=64)

    def draw(*shape, scale=1.0):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).float().to(dtype)

    def network(inputs, layers, outputs):
        sizes = [inputs, *[32] * layers, outputs]
        return [draw(o, i, scale=i**-0.5).requires_grad_(requires_grad) for i, o in zip(sizes, sizes[1:], strict=False)]

    points = torch.rand(n, 3, generator=g).to(dtype) * 1.2 - 0.1
    table = draw(layout.entries, features).requires_grad_(requires_grad)
    density = network(layout.out_channels, hidden[0], geometry)
    return points, draw(n, extras), table, layout, density, network(extras + geometry, hidden[1], 3)


def results(op, points, extras, table, layout, density, color, **options):
    """Both outputs and the gradients of a loss on them."""
    outputs = op(points, extras, table, layout, density, color, **options)
    g = torch.Generator().manual_seed(9)
    upstream = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.dtype) for o in outputs]
    leaves = [table, *density, *color]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, upstream)]


def as_double(arguments):
    def double(t):
        if isinstance(t, torch.Tensor):
            return t.detach().double().requires_grad_(t.requires_grad)
        return [double(x) for x in t] if isinstance(t, list) else t

    return [double(t) for t in arguments]


def assert_near(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.isfinite().all()
        scale = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b.double(), atol=tolerance * max(1.0, scale), rtol=0)


@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("n", [0, 1, 191, 193, 1500])
def test_matches_the_reference(n, features):
    arguments = case(n, features)
    assert_near(results(radiance, *arguments), results(reference.radiance, *arguments), 1e-11)
    arguments = case(n, features, torch.float32)
    assert_near(results(radiance, *arguments), results(reference.radiance, *as_double(arguments)), 1e-4)


@pytest.mark.parametrize("hidden", [(0, 1), (1, 4), (3, 0)])
def test_depths_of_the_networks(hidden):
    arguments = case(300, hidden=hidden)
    assert_near(results(radiance, *arguments), results(reference.radiance, *arguments), 1e-11)


def test_gradcheck():
    points, extras, table, layout, density, color = case(9, levels=2)

    def run(table, *weights):
        return radiance(points, extras, table, layout, list(weights[:2]), list(weights[2:]))

    assert torch.autograd.gradcheck(run, (table, *density, *color))


def test_bfloat16_matches_its_roundings():
    arguments = case(700, 4, torch.float32)
    got = results(radiance, *arguments, bfloat16=True)
    wanted = results(reference.radiance, *as_double(arguments), bfloat16=True)
    for a, b in zip(got, wanted, strict=True):  # a sum in float32 rounds to the other neighbour now and then
        assert (a - b).norm() <= 2e-3 * b.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reads_the_half_copy_and_gives_the_gradient_to_the_table(dtype):
    points, extras, table, layout, density, color = case(400, 4, torch.float32)
    half = table.detach().to(dtype)
    got = results(radiance, points, extras, table, layout, density, color, half=half)
    rounded = half.float().requires_grad_()
    wanted = results(radiance, points, extras, rounded, layout, density, color)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_adds_the_table_gradient_into_a_buffer():
    arguments = case(300, 4, torch.float32)
    table, weights = arguments[2], [*arguments[4], *arguments[5]]
    sigmas, colors = radiance(*arguments)
    (wanted,) = torch.autograd.grad(sigmas.sum() + colors.sum(), table)
    buffer = torch.ones_like(table)
    sigmas, colors = radiance(*arguments, table_grad=buffer)
    (sigmas.sum() + colors.sum()).backward()
    assert table.grad is None and all(w.grad is not None for w in weights)
    torch.testing.assert_close(buffer, wanted + 1, atol=1e-5, rtol=1e-5)


def test_density_alone_is_the_same():
    points, extras, table, layout, density, color = case(1000, 2, torch.float32)
    sigmas, _ = radiance(points, extras, table, layout, density, color)
    alone = radiance_density(points, table, layout, density)
    assert not alone.requires_grad
    torch.testing.assert_close(alone, sigmas.detach(), rtol=1e-5, atol=0)


def test_one_output_alone_has_a_gradient():
    arguments = case(100)
    sigmas, colors = radiance(*arguments)
    for output in (sigmas, colors):
        wanted = reference.radiance(*arguments)[0 if output is sigmas else 1]
        leaves = [arguments[2], *arguments[4]]
        got = torch.autograd.grad(output.sum(), leaves, retain_graph=True)
        assert_near(got, torch.autograd.grad(wanted.sum(), leaves), 1e-11)


def test_large_densities_are_cut_and_nan_stays():
    points, extras, table, layout, density, color = case(64, 2, torch.float32)
    with torch.no_grad():
        density[-1][0] *= 1e4
    sigmas, _ = radiance(points, extras, table, layout, density, color)
    assert sigmas.isfinite().all() and float(sigmas.detach().max()) == pytest.approx(3269017.4, rel=1e-5)
    (gradient,) = torch.autograd.grad(sigmas.sum(), table)
    assert gradient.isfinite().all()
    points[3] = float("nan")
    sigmas, colors = radiance(points, extras, table, layout, density, color)
    assert sigmas[3].isnan() and colors[3].isnan().all() and sigmas[:3].isfinite().all()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_deterministic_for_any_number_of_threads(bfloat16):
    arguments = case(5000, 4, torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(results(radiance, *arguments, bfloat16=bfloat16))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_field_answers_alike_from_one_kernel_and_from_its_parts(half, bfloat16, monkeypatch):
    torch.manual_seed(0)
    grid = HashGridConfig(levels=4, features=4, log2_size=10, half=half)
    field = RadianceGrid(RadianceGridConfig(grid=grid, bfloat16=bfloat16), Aabb.cube(1.0))
    with torch.no_grad():
        field.encoding.table.uniform_(-1, 1)
    field.encoding.refresh()
    points, directions = torch.rand(500, 3) * 2 - 1, torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)

    def answers():
        field.zero_grad()
        output = field.query(points, directions)
        (output.values.sum() + output.colors.square().sum()).backward()
        return [output.values, output.colors, *(p.grad.clone() for p in field.parameters())]

    fused = answers()
    assert len(field.query(points, directions.requires_grad_()).colors) == 500  # parts: directions want gradients
    directions.requires_grad_(False)
    monkeypatch.setattr(RadianceGrid, "_fused", lambda *_: None)
    for a, b in zip(fused, answers(), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_opcheck():
    points, extras, table, layout, density, color = case(20, 2, torch.float32)
    tensors = (*density, None, None, None, *color, None, None)
    given = (torch.randn(20, layout.out_channels), torch.randn(20, density[-1].shape[0]))
    for known in ((None, None), given):
        arguments = (points, extras, table, None, None, *tensors, *known, list(layout._numbers), False, True)
        torch.library.opcheck(torch.ops.polyfield.radiance.default, arguments)
    weights = [w.detach() for w in density]
    density_only = (points, table.detach(), None, weights, list(layout._numbers), False)
    torch.library.opcheck(torch.ops.polyfield.radiance_density.default, density_only)


def test_errors():
    points, extras, table, layout, density, color = case(10, 2, torch.float32)

    def check(error, message, **changes):
        given = dict(points=points, extras=extras, table=table, density=density, color=color) | changes
        with pytest.raises(error, match=message):
            radiance(given["points"], given["extras"], given["table"], layout, given["density"], given["color"])

    check(ValueError, r"radiance: extras: expected shape \(10, \*\)", extras=extras[:5])
    check(ValueError, r"radiance: density_weights\[0\]: expected shape \(\*, 8\)", density=density[::-1])
    check(ValueError, "outputs of color_weights", color=[*color[:-1], torch.zeros(4, 32)])
    check(ValueError, "points: expected a tensor without gradients", points=points.clone().requires_grad_())
    check(ValueError, "extras: expected a tensor without gradients", extras=extras.clone().requires_grad_())
    check(TypeError, "points: expected float32, got float64", points=points.double())
    rows, narrow = torch.zeros(10, 8), torch.zeros(10, 6)
    for found, message in (
        ((rows, narrow), r"found.geometry: expected shape \(10, 7\)"),
        ((narrow, rows), "found.features"),
    ):
        with pytest.raises(ValueError, match=message):
            radiance(points, extras, table, layout, density, color, found=Found(*found))
