# ruff: noqa: F401 (tests, imported to be run)
"""The CUDA kernels: the tests of the ops, run again in the emulator, or with ``--device cuda`` on a GPU.

What is imported here as a test runs here under the fixture ``_on_gpu``: CUDA kernels then do its work. Sizes cover
empty work, partial warps and several blocks; references are those of ``tests/reference``.
"""

import pytest
import torch
from polyfield.cuda import occupancy as ops
from polyfield.cuda.hash_encoding import HashLayout, hash_encode
from polyfield.cuda.marching import interval_points, march_grid
from polyfield.cuda.marching_cubes import marching_cubes, marching_cubes_blocks
from polyfield.cuda.packing import append_packed

from tests.emulation import on_both, on_gpu
from tests.test_compositing import test_by_hand as test_composite_by_hand
from tests.test_compositing import test_extreme_inputs as test_composite_extremes
from tests.test_compositing import test_gradcheck as test_composite_gradcheck
from tests.test_compositing import test_gradients_of_some_outputs_only as test_composite_of_some_outputs
from tests.test_compositing import test_matches_the_reference as test_composite
from tests.test_compositing import test_prune_matches_the_reference as test_prune
from tests.test_compositing import test_prune_nothing_and_no_rays as test_prune_nothing
from tests.test_distortion import test_far_from_the_origin as test_distortion_far_away
from tests.test_distortion import test_gradcheck as test_distortion_gradcheck
from tests.test_distortion import test_matches_the_reference as test_distortion
from tests.test_marching import CASES, random_bits, random_rays
from tests.test_marching import test_a_ray_along_an_axis_is_cut_into_the_intervals_of_its_cells as test_march
from tests.test_marching import test_bits_are_packed_by_brick as test_pack_bits
from tests.test_marching import test_extreme_rays as extreme_rays
from tests.test_marching import test_matches_the_reference as test_march_grid
from tests.test_marching import test_states_are_distances_between_bricks as test_brick_states
from tests.test_marching import test_states_do_not_reach_across_a_border_between_cascades as test_borders
from tests.test_marching_cubes import gyroid, noise, sphere
from tests.test_marching_cubes import test_closed_shapes as test_marching_cubes_closed
from tests.test_marching_cubes import test_constant_values_and_levels_out_of_range_give_nothing as test_nothing
from tests.test_marching_cubes import test_gradcheck as test_marching_cubes_gradcheck
from tests.test_marching_cubes import test_infinite_and_huge_values as test_marching_cubes_extremes
from tests.test_occupancy import test_ops_match_torch as test_occupancy
from tests.test_sh_basis import test_gradcheck as test_sh_basis_gradcheck
from tests.test_sh_basis import test_matches_the_definition as test_sh_basis
from tests.test_sparse_adam import test_closed_form_of_the_first_step as test_adam_by_hand
from tests.test_sparse_adam import test_dense_is_adamw_and_keeps_the_gradient as test_dense_adam
from tests.test_sparse_adam import test_extreme_gradients as test_adam_extremes
from tests.test_sparse_adam import test_half_copy as test_adam_half_copy
from tests.test_sparse_adam import test_matches_the_reference as test_adam
from tests.test_sphere_tracing import test_a_ball_by_hand as test_trace_by_hand
from tests.test_sphere_tracing import test_extremes as test_trace_extremes
from tests.test_sphere_tracing import test_matches_the_reference as test_sphere_trace


@pytest.fixture(autouse=True)
def _on_gpu(device):
    with on_gpu(device):
        yield


def close(found, wanted, **kw):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, **kw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [0, 1, 300])
def test_interval_points(samples, dtype):
    g = torch.Generator().manual_seed(0)
    origins, directions = torch.randn(2, 9, 3, generator=g, dtype=dtype).unbind(0)
    starts, ends = torch.rand(2, samples, generator=g, dtype=dtype).unbind(0)
    rays = torch.randint(0, 9, (samples,), generator=g, dtype=torch.int32)
    found = interval_points(origins, directions, starts, ends, rays)
    torch.testing.assert_close(found, origins[rays] + directions[rays] * ((starts + ends) / 2)[:, None])


@pytest.mark.parametrize("counts", [[], [0], [3, 0, 40, 1, 0, 33], [1] * 200])
def test_append_packed(counts):
    g = torch.Generator().manual_seed(1)
    first = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    rays = torch.arange(0, len(counts), 3)
    second = torch.arange(len(rays) + 1, dtype=torch.int32) * 2
    packs = [[torch.rand(int(offsets[-1]), generator=g) for _ in range(2)] for offsets in (first, second)]

    def flat(a, b, first, c, d, second, rays):
        tensors, ray_indices, offsets = append_packed([a, b], first, [c, d], second, rays)
        return *tensors, ray_indices, offsets

    close(*on_both(flat, *packs[0], first, *packs[1], second, rays), atol=0, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c.values()))
@pytest.mark.parametrize("max_samples", [0, 7])
def test_march_grid_is_that_of_the_cpu(case, max_samples):
    """Also with more runs per ray than are kept between the passes."""
    case = dict(case)
    _, bits = random_bits(case.pop("cascades"), case["resolution"], 0.3)
    o, d, near, far, jitter = random_rays(200, spread=2.0)

    def march(o, d, near, far, bits, jitter):
        return march_grid(o, d, near, far, bits, half=1.0, jitter=jitter, max_samples=max_samples, **case)

    found, wanted = on_both(march, o, d, near, far, bits, jitter)
    a, b = (x[3].cpu().diff() for x in (found, wanted))
    agree = a == b  # rounding may decide otherwise where an interval's middle is on a wall
    assert agree.float().mean() > 0.97 and (a - b).abs().max() <= 2
    keep = lambda x: agree[x[2].cpu().long()]  # noqa: E731
    for i in range(3):
        torch.testing.assert_close(found[i].cpu()[keep(found)], wanted[i][keep(wanted)], atol=3e-5, rtol=1e-5)


def test_march_extremes():
    extreme_rays(march_grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [sphere, gyroid, noise])
@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 4, 2), (5, 6, 33), (9, 4, 64), (3, 5, 70), (4, 3, 129)])
def test_marching_cubes(function, shape, dtype):
    values = function(shape).to(dtype)
    (vertices, faces), (v, f) = on_both(marching_cubes, values, 0.1)
    assert torch.equal(faces.cpu(), f)
    torch.testing.assert_close(vertices.cpu(), v)


@pytest.mark.parametrize("n", [1, 4, 65])
def test_marching_cubes_blocks(n):
    side = {1: 5, 4: 3, 65: 2}[n]
    values = noise((side * n + 1,) * 3) if n < 65 else sphere((n + 1, n + 1, side * n + 1))
    blocks = [(x, y, z) for x in range(side) for y in range(side) for z in range(side) if (x + 2 * y + z) % 5]
    if n == 65:
        blocks = [(0, 0, z) for z in range(side)]
    part = lambda i: slice(i * n, i * n + n + 1)  # noqa: E731
    cut = torch.stack([values[part(x), part(y), part(z)] for x, y, z in blocks])
    (vertices, faces), (v, f) = on_both(marching_cubes_blocks, cut, torch.tensor(blocks), 0.05)
    assert len(f) and torch.equal(faces.cpu(), f)
    torch.testing.assert_close(vertices.cpu(), v)


def test_marching_cubes_says_what_is_wrong():
    values = torch.zeros(4, 4, 40)
    values[1, 2, 35] = torch.nan
    with pytest.raises(ValueError, match=r"got NaN at index \[?\(1, 2, 35\)"):
        marching_cubes(values)
    blocks = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    with pytest.raises(ValueError, match="expected equal values where blocks meet"):
        marching_cubes_blocks(blocks, torch.tensor([[0, 0, 0], [1, 0, 0]]))


def test_cells_listed_twice_have_one_outcome():
    g = torch.Generator().manual_seed(0)
    densities = torch.rand(50, generator=g) - 0.2
    cells = torch.randint(0, 50, (300,), generator=g, dtype=torch.int32)
    values = torch.rand(300, generator=g) * 0.5
    raised = densities.clone()
    ops.raise_densities(raised, cells, values, 0.9)
    for cell, (before, after) in enumerate(zip(densities.tolist(), raised.tolist(), strict=True)):
        if before < 0 or not (cells == cell).any():
            assert after == before
        else:
            assert after == pytest.approx(max(0.9 * before, float(values[cells == cell].max())))


@pytest.mark.parametrize("n", [0, 1, 31, 257, 1000])
def test_hash_encode_of_any_number_of_points(n):
    """Along rays, so that runs of one cell cross from one warp and block to the next; against the CPU."""
    layout = HashLayout.build(7, 2, 9, base_resolution=4, finest_resolution=48)
    g = torch.Generator().manual_seed(0)
    table = torch.randn(layout.entries, 2, generator=g)
    points = (torch.rand(1, 3, generator=g) + torch.arange(n)[:, None] * torch.tensor([1e-3, 3e-4, 2e-4])) % 1
    upstream = torch.randn(n, layout.out_channels, generator=g)

    def run(points, table, upstream):
        points, table = points.clone().requires_grad_(), table.clone().requires_grad_()
        features = hash_encode(points, table, layout)
        return features.detach(), *torch.autograd.grad(features, (points, table), upstream)

    close(*on_both(run, points, table, upstream), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("cascades, resolution", [(1, 4), (1, 72), (3, 32)])
def test_occupancy_is_that_of_the_cpu(cascades, resolution):
    _, bits = random_bits(cascades, resolution, 0.02)
    bits[:, 0] = -1
    for f in (ops.brick_states, ops.occupied_cells):
        found, wanted = on_both(f, bits, resolution)
        assert torch.equal(found.cpu(), wanted)
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 2
    found, wanted = on_both(ops.locate_cells, points, resolution, cascades, 1.0)
    assert torch.equal(found.cpu(), wanted)
