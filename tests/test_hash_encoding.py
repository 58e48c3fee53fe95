import functools

import pytest
import torch
from polyfield.cuda.hash_encoding import HashLayout, hash_encode, hash_encode_with_gradient

from tests.reference import hash_encode as reference

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(levels=5, features=2, *, log2_size=9, finest=48, dimensions=3, dtype=F64):
    """A layout with dense and hashed levels, and a random table."""
    layout = HashLayout.build(
        levels, features, log2_size, base_resolution=4, finest_resolution=finest, dimensions=dimensions
    )
    return layout, torch.randn(layout.entries, features, generator=generator(), dtype=F64).to(dtype)


def along_rays(rays, steps=33, *, dimensions=3, dtype=F64, step=0.004, seed=0):
    """Short steps, so that many neighbours share a cell; some leave the unit cube."""
    g = generator(seed)
    start = torch.rand(rays, 1, dimensions, generator=g, dtype=F64) * 1.1 - 0.05
    direction = torch.nn.functional.normalize(torch.randn(rays, 1, dimensions, generator=g, dtype=F64), dim=-1)
    return (start + direction * (torch.arange(steps) * step)[None, :, None]).reshape(-1, dimensions).to(dtype)


def scattered(n, *, dimensions=3, dtype=F64, seed=0):
    return torch.rand(n, dimensions, generator=generator(seed), dtype=F64).to(dtype)


def gradients(outputs, inputs, upstream):
    return torch.autograd.grad(outputs, inputs, upstream)


# ---- layout ---------------------------------------------------------------------------------------------------------


def test_layout_follows_the_paper():
    layout = HashLayout.build()
    assert layout.levels == 16 and layout.features == 2 and layout.out_channels == 32
    assert layout.resolutions[0] == 16 and layout.resolutions[-1] == 2048
    growth = (2048 / 16) ** (1 / 15)
    assert all(n == int(16 * growth**level + 1e-6) for level, n in enumerate(layout.resolutions))
    for n, size, hashed in zip(layout.resolutions, layout.sizes, layout.hashed, strict=True):
        assert hashed == ((n + 1) ** 3 > 2**19)
        assert size == 2**19 if hashed else 0 <= size - (n + 1) ** 3 < 16
    assert layout.offsets == tuple(sum(layout.sizes[:level]) for level in range(16))
    assert layout.entries == sum(layout.sizes)
    assert HashLayout.build(levels=1, finest_resolution=64).resolutions == (16,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "HashLayout.build: levels: expected a number from 1 to 32, got 0"),
        ({"features": 3}, "HashLayout.build: features: expected 1, 2, 4 or 8, got 3"),
        ({"log2_size": 30}, "HashLayout.build: log2_size: expected a number from 4 to 26, got 30"),
        ({"base_resolution": 0}, "HashLayout.build: base_resolution: expected a number from 1"),
        ({"finest_resolution": 8}, "HashLayout.build: finest_resolution: expected a number from 16"),
        ({"dimensions": 4}, "HashLayout.build: dimensions: expected a number from 2 to 3, got 4"),
    ],
)
def test_layout_errors(options, message):
    with pytest.raises(ValueError, match=message):
        HashLayout.build(**options)


# ---- closed form ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_linear_function_on_a_dense_level_is_exact(dimensions):
    layout = HashLayout.build(1, 1, 16, base_resolution=7, finest_resolution=7, dimensions=dimensions)
    axis = torch.arange(8, dtype=F64) / 7
    slope = torch.tensor([2.0, -3.0, 0.5], dtype=F64)[:dimensions]
    vertices = torch.stack(torch.meshgrid(*[axis] * dimensions, indexing="ij")[::-1], -1).reshape(-1, dimensions)
    table = torch.zeros(layout.entries, 1, dtype=F64)
    table[: len(vertices), 0] = vertices @ slope + 0.25
    points = torch.cat([scattered(301, dimensions=dimensions), along_rays(9, dimensions=dimensions).clamp(0, 1)])
    features, jacobian = hash_encode_with_gradient(points, table, layout)
    torch.testing.assert_close(features[:, 0], points @ slope + 0.25, atol=1e-13, rtol=0)
    torch.testing.assert_close(jacobian[:, 0], slope.expand(len(points), -1), atol=1e-12, rtol=0)
    torch.testing.assert_close(hash_encode(points, table, layout), features, atol=1e-13, rtol=0)


def test_a_vertex_returns_its_entry():
    layout = HashLayout.build(1, 4, 16, base_resolution=8, finest_resolution=8)
    table = torch.randn(layout.entries, 4, generator=generator())
    x, y, z = torch.meshgrid(*[torch.arange(9)] * 3, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3) / 8
    rows = (x + 9 * y + 81 * z).reshape(-1)
    torch.testing.assert_close(hash_encode(points, table, layout), table[rows], atol=1e-6, rtol=0)


# ---- against the reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize(("levels", "dimensions"), [(1, 3), (5, 3), (16, 3), (5, 2)])
@pytest.mark.parametrize("points", [along_rays, scattered])
def test_matches_the_reference(points, levels, dimensions, features):
    layout, table = make(levels, features, dimensions=dimensions)
    p = points(40, dimensions=dimensions).requires_grad_()
    table.requires_grad_()
    ours, wanted = hash_encode(p, table, layout), reference.hash_encode(p, table, layout)
    torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=0)
    upstream = torch.randn(wanted.shape, generator=generator(), dtype=F64)
    for got, want in zip(gradients(ours, (p, table), upstream), gradients(wanted, (p, table), upstream), strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)

    single = hash_encode(p.detach().float(), table.detach().float(), layout)
    wanted = reference.hash_encode(p.detach().float().double(), table.detach().float().double(), layout)
    # A cell's border is met to float32's precision: 2e-7 of the unit cube, 48 cells, corners up to 5 apart.
    torch.testing.assert_close(single.double(), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("n", [0, 1, 15, 17, 255, 256, 257, 1000])
@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_any_number_of_points(n, features):
    layout, table = make(3, features, dtype=torch.float32)
    p = along_rays(40, dtype=torch.float32)[:n].requires_grad_()
    table.requires_grad_()
    ours, wanted = hash_encode(p, table, layout), reference.hash_encode(p, table, layout)
    assert ours.shape == (n, layout.out_channels)
    torch.testing.assert_close(ours, wanted, atol=2e-4, rtol=0)
    upstream = torch.randn(wanted.shape, generator=generator())
    for got, want in zip(gradients(ours, (p, table), upstream), gradients(wanted, (p, table), upstream), strict=True):
        torch.testing.assert_close(got, want, atol=5e-3, rtol=1e-4)


def test_more_points_than_one_pass_of_the_backward():
    layout, table = make(3, 2, dtype=torch.float32)
    p = along_rays(1100, steps=64, dtype=torch.float32)
    table.requires_grad_()
    upstream = torch.randn(len(p), layout.out_channels, generator=generator())
    (got,) = gradients(hash_encode(p, table, layout), (table,), upstream)
    double = table.detach().double().requires_grad_()
    (want,) = gradients(reference.hash_encode(p.double(), double, layout), (double,), upstream.double())
    torch.testing.assert_close(got.double(), want, atol=2e-3, rtol=1e-4)


def test_a_table_beyond_the_caches():
    """It is met level by level."""
    layout, table = make(8, 4, log2_size=17, finest=1024, dtype=torch.float32)
    assert table.numel() * 4 > 8 << 20
    p = along_rays(2100, dtype=torch.float32)
    assert len(p) > 1 << 16
    table.requires_grad_()
    ours = hash_encode(p, table, layout)
    few = slice(65530, 65560)  # across two passes
    torch.testing.assert_close(hash_encode(p[few], table, layout), ours[few], atol=1e-5, rtol=0)
    upstream = torch.randn(ours.shape, generator=generator())
    (got,) = gradients(ours, (table,), upstream)
    double = table.detach().double().requires_grad_()
    wanted = reference.hash_encode(p.double(), double, layout)
    torch.testing.assert_close(ours.double(), wanted, atol=5e-3, rtol=0)
    (want,) = gradients(wanted, (double,), upstream.double())
    torch.testing.assert_close(got.double(), want, atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_half_tables(dtype, features):
    layout, table = make(5, features, dtype=dtype)
    table[:4, 0] = torch.tensor([0.0, -0.0, 2.0**-24, 3e4])  # float16: zeros, the smallest subnormal
    for found in (along_rays(30, dtype=torch.float32), scattered(500, dtype=torch.float32)):
        points = found.requires_grad_()
        widened = table.float()
        wanted = hash_encode_with_gradient(points, widened, layout)
        half = hash_encode_with_gradient(points, table, layout)
        assert half[0].dtype == torch.float32
        for got, want in zip(half, wanted, strict=True):
            assert torch.equal(got, want)
        upstream = torch.randn(half[0].shape, generator=generator())
        got, want = (gradients(hash_encode(points, t, layout), points, upstream)[0] for t in (table, widened))
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_special_numbers_of_half_tables(dtype):
    layout = HashLayout.build(1, 1, 12, base_resolution=15, finest_resolution=15)
    table = torch.zeros(layout.entries, 1, dtype=dtype)
    table[:3, 0] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    points = torch.tensor([[0.0, 0, 0], [1 / 15, 0, 0], [2 / 15, 0, 0], [0.5, 0.5, 0.5]])
    wanted = hash_encode(points, table.float(), layout)
    torch.testing.assert_close(hash_encode(points, table, layout), wanted, equal_nan=True)
    assert wanted[3].isfinite().all()


def test_half_copy_is_read_and_the_master_gets_the_gradient():
    layout, table = make(5, 2, dtype=torch.float32)
    half = table.bfloat16()
    table.requires_grad_()
    points = along_rays(20, dtype=torch.float32)
    features = hash_encode(points, table, layout, half=half)
    assert torch.equal(features, hash_encode(points, half.float(), layout))
    upstream = torch.randn(features.shape, generator=generator())
    (got,) = gradients(features, (table,), upstream)
    (want,) = gradients(hash_encode(points, table, layout), (table,), upstream)
    assert got.dtype == torch.float32 and torch.equal(got, want)
    leaf = half.clone().requires_grad_()
    (rounded,) = gradients(hash_encode(points, leaf, layout), (leaf,), upstream)
    assert torch.equal(rounded, want.bfloat16())


# ---- gradient buffer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encode", [hash_encode, hash_encode_with_gradient])
def test_table_grad_equals_autograd_bit_for_bit(encode):
    layout, table = make(5, 2, dtype=torch.float32)
    table.requires_grad_()
    points = along_rays(50, dtype=torch.float32)

    def outputs(**options):
        found = encode(points, table, layout, **options)
        return found if isinstance(found, tuple) else (found,)

    upstream = [torch.randn(o.shape, generator=generator(k)) for k, o in enumerate(outputs())]
    (want,) = gradients(outputs(), (table,), upstream)
    buffer = torch.zeros_like(table)
    torch.autograd.backward(outputs(table_grad=buffer), upstream)
    assert table.grad is None and torch.equal(buffer, want)

    # The parameter's own buffer, written twice in one graph: sums up, and stays the same tensor.
    table.grad = torch.zeros_like(table)
    address = table.grad.data_ptr()
    first, second = outputs(table_grad=table.grad), outputs(table_grad=table.grad)
    torch.autograd.backward([*first, *second], [*upstream, *upstream])
    assert table.grad.data_ptr() == address
    torch.testing.assert_close(table.grad, 2 * want, atol=2e-5, rtol=1e-5)


def test_nothing_is_accumulated_for_a_frozen_table():
    layout, table = make(2, 2, dtype=torch.float32)
    buffer = torch.zeros_like(table)
    points = scattered(9, dtype=torch.float32).requires_grad_()
    hash_encode(points, table, layout, table_grad=buffer).sum().backward()
    assert not buffer.any() and points.grad is not None


def test_the_table_may_change_before_the_backward():
    layout, table = make(2, 2, dtype=torch.float32)
    table.requires_grad_()
    features = hash_encode(scattered(9, dtype=torch.float32), table, layout)
    with torch.no_grad():
        table.mul_(2)
    features.sum().backward()
    assert float(table.grad.sum()) == pytest.approx(9 * 4, rel=1e-5)  # weights sum to 1 per level and feature


# ---- derivatives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("features", "dimensions"), [(1, 3), (2, 3), (4, 3), (8, 3), (2, 2)])
def test_jacobian_matches_autograd_of_the_reference(features, dimensions):
    layout, table = make(3, features, dimensions=dimensions)
    p = torch.cat([along_rays(4, dimensions=dimensions), scattered(50, dimensions=dimensions)]).requires_grad_()
    table.requires_grad_()
    ours = hash_encode_with_gradient(p, table, layout)
    wanted = reference.hash_encode_with_gradient(p, table, layout)
    upstream = [torch.randn(w.shape, generator=generator(k), dtype=F64) for k, w in enumerate(wanted)]
    for got, want in zip(ours, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    for used in (slice(2), slice(1), slice(1, 2)):  # both outputs, and each by itself
        got = torch.autograd.grad(ours[used], (p, table), upstream[used], retain_graph=True)
        want = torch.autograd.grad(wanted[used], (p, table), upstream[used], retain_graph=True)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, atol=1e-7, rtol=1e-9)


def test_jacobian_matches_finite_differences():
    layout, table = make(3, 2)
    cells = (scattered(100) * 4).floor()
    p = (cells + 0.3 + 0.1 * scattered(100, seed=1)) / 4 + 1e-4  # away from the borders of most levels
    _, jacobian = hash_encode_with_gradient(p, table, layout)
    h = 1e-7
    for axis in range(3):
        step = torch.zeros(3, dtype=F64)
        step[axis] = h
        difference = (hash_encode(p + step, table, layout) - hash_encode(p - step, table, layout)) / (2 * h)
        torch.testing.assert_close(difference, jacobian[..., axis], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_gradcheck(features):
    layout, table = make(2, features, log2_size=4, finest=6)
    points = (scattered(7) * 0.9 + 0.02).requires_grad_()
    table.requires_grad_()
    for encode in (hash_encode, hash_encode_with_gradient):
        run = functools.partial(encode, layout=layout)
        assert torch.autograd.gradcheck(run, (points, table), eps=1e-7, atol=1e-5)


def test_opcheck():
    layout, table = make(2, 2, dtype=torch.float32)
    points = scattered(5, dtype=torch.float32).requires_grad_()
    numbers = list(layout._numbers)
    half = table.half()
    table.requires_grad_()
    ops = torch.ops.polyfield
    torch.library.opcheck(ops.hash_encode.default, (points, table, None, None, numbers))
    torch.library.opcheck(ops.hash_encode.default, (points, table, half, None, numbers))
    torch.library.opcheck(ops.hash_encode_with_gradient.default, (points, table, None, None, numbers))
    arguments = (torch.zeros(layout.entries, 2), points.detach(), torch.ones(5, 4), None, numbers)
    torch.library.opcheck(ops.hash_encode_accumulate_.default, arguments)


# ---- extreme inputs -------------------------------------------------------------------------------------------------


def test_points_outside_are_clamped_and_have_no_gradient():
    layout, table = make(4, 2)
    points = torch.tensor([[-5.0, 0.3, 0.4], [0.2, 1e30, 0.4], [0.2, 0.3, -float("inf")], [7, 7, 7]], dtype=F64)
    ours = points.clone().requires_grad_()
    features, jacobian = hash_encode_with_gradient(ours, table, layout)
    assert torch.equal(features, hash_encode_with_gradient(points.clamp(0, 1), table, layout)[0])
    outside = (points < 0) | (points > 1)
    assert (jacobian.abs().sum(1)[outside] == 0).all() and (jacobian.abs().sum(1)[~outside] > 0).all()
    (g,) = gradients(hash_encode(ours, table, layout).sum(), ours, None)
    assert (g[outside] == 0).all() and (g[~outside] != 0).all()


def test_borders_are_inside():
    layout, table = make(4, 2)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 3).requires_grad_()
    torch.testing.assert_close(hash_encode(corners, table, layout), reference.hash_encode(corners, table, layout))
    (g,) = gradients(hash_encode(corners, table, layout).sum(), corners, None)
    assert g.isfinite().all() and (g != 0).all()


def test_nan_points_give_nan_features_of_their_own_only():
    layout, table = make(4, 2, dtype=torch.float32)
    points = scattered(40, dtype=torch.float32)
    wanted = hash_encode(points, table, layout)
    points[7, 1] = float("nan")
    points = points.requires_grad_()
    found = hash_encode(points, table, layout)
    assert found[7].isnan().all()
    keep = torch.arange(40) != 7
    torch.testing.assert_close(found[keep], wanted[keep])
    assert hash_encode_with_gradient(points, table, layout)[0][7].isnan().all()
    (g,) = gradients(found.sum(), points, None)
    assert g[keep].isfinite().all()


def test_fine_hashed_levels_of_huge_resolution():
    layout = HashLayout.build(3, 2, 14, base_resolution=16, finest_resolution=1 << 20)
    table = torch.randn(layout.entries, 2, generator=generator(), dtype=F64)
    points = along_rays(20, step=1e-5)
    wanted = reference.hash_encode(points, table, layout)
    torch.testing.assert_close(hash_encode(points, table, layout), wanted, atol=1e-8, rtol=0)


def test_same_bits_for_any_number_of_threads_and_again():
    layout, table = make(6, 2, log2_size=12, finest=256, dtype=torch.float32)
    points = torch.cat([along_rays(300, dtype=torch.float32), scattered(3000, dtype=torch.float32)]).requires_grad_()
    table.requires_grad_()
    upstream = torch.randn(len(points), layout.out_channels, generator=generator())
    threads, found = torch.get_num_threads(), []
    try:
        for count in (threads, threads, 1, 3):
            torch.set_num_threads(count)
            features = hash_encode(points, table, layout)
            found.append((features, *gradients(features, (points, table), upstream)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_strided_inputs():
    layout, table = make(3, 2, dtype=torch.float32)
    points = scattered(50, dtype=torch.float32)
    strided = torch.stack([points, points], 1)[:, 0]
    wide = torch.cat([table, table], 1)[:, :2]
    assert not strided.is_contiguous() and not wide.is_contiguous()
    assert torch.equal(hash_encode(strided, wide, layout), hash_encode(points, table, layout))


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_errors():
    layout, table = make(2, 2, dtype=torch.float32)
    points = torch.rand(4, 3)
    with pytest.raises(ValueError, match=r"hash_encode: points: expected shape \(\*, 3\), got \(4, 2\)"):
        hash_encode(points[:, :2], table, layout)
    with pytest.raises(ValueError, match=rf"hash_encode: table: expected shape \({layout.entries}, 2\)"):
        hash_encode(points, table[1:], layout)
    with pytest.raises(TypeError, match="hash_encode: points: expected float32, got float64"):
        hash_encode(points.double(), table, layout)
    with pytest.raises(TypeError, match=r"table: expected float32 or float64 or bfloat16 or float16, got int64"):
        hash_encode(points, table.long(), layout)
    with pytest.raises(TypeError, match="hash_encode: half: expected bfloat16 or float16, got float32"):
        hash_encode(points, table, layout, half=table)
    with pytest.raises(TypeError, match="hash_encode: table: expected float32, got float64"):
        hash_encode(points.double(), table.double(), layout, half=table.half())
    with pytest.raises(ValueError, match="hash_encode: half: expected shape"):
        hash_encode(points, table, layout, half=table[1:].half())
    with pytest.raises(TypeError, match="hash_encode_with_gradient: table_grad: expected float32, got float64"):
        hash_encode_with_gradient(points, table, layout, table_grad=table.double())
    with pytest.raises(ValueError, match="hash_encode: table_grad: expected shape"):
        hash_encode(points, table, layout, table_grad=table[1:])
    with pytest.raises(ValueError, match="hash_encode: table_grad: expected a contiguous tensor"):
        hash_encode(points, table, layout, table_grad=torch.zeros(2, layout.entries).T)
