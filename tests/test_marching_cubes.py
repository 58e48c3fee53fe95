import itertools
import math

import mcubes
import numpy as np
import pytest
import torch
from polyfield.cuda import marching_cubes_table as table
from polyfield.cuda.marching_cubes import marching_cubes, marching_cubes_blocks

from tests.reference import marching_cubes as reference


def lattice(shape, half=1.0):
    axes = [torch.linspace(-half, half, n, dtype=torch.float64) for n in shape]
    return torch.meshgrid(*axes, indexing="ij")


def sphere(shape, radius=0.7):
    return torch.stack(lattice(shape)).norm(dim=0) - radius


def torus(shape):
    x, y, z = lattice(shape)
    return ((x * x + y * y).sqrt() - 0.6).square().add(z * z).sqrt() - 0.25


def gyroid(shape, periods=1.5):
    x, y, z = (math.pi * periods * a for a in lattice(shape))
    return x.sin() * y.cos() + y.sin() * z.cos() + z.sin() * x.cos()


def plane(shape):
    x, y, z = lattice(shape)
    return 0.3 * x + 0.5 * y - 0.8 * z + 0.01


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def enclosed(values):
    """The same with a border above every level, so that the surface stays inside."""
    return torch.nn.functional.pad(values[1:-1, 1:-1, 1:-1], (1,) * 6, value=3.0)


def edge_counts(faces):
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).long()
    return edges, torch.unique(edges.sort(1).values, dim=0, return_counts=True)


def assert_closed(vertices, faces):
    edges, (_, counts) = edge_counts(faces)
    assert (counts == 2).all()
    assert len(torch.unique(edges, dim=0)) == len(edges)  # each direction once: neighbours agree about the outside
    assert len(torch.unique(faces)) == len(vertices)


def euler(vertices, faces):
    return len(vertices) - len(edge_counts(faces)[1][0]) + len(faces)


def volume(vertices, faces):
    a, b, c = vertices.double()[faces.long()].unbind(1)
    return float((a * b.cross(c, dim=-1)).sum() / 6)


SHAPES = [(2, 2, 2), (2, 3, 5), (17, 33, 65), (9, 4, 64), (3, 3, 66), (5, 6, 129), (20, 20, 20)]
FUNCTIONS = [sphere, torus, gyroid, plane, noise]


def test_the_table_is_closed_and_oriented():
    for case in range(256):
        triangles = table.triangles()[case]
        boundary = set()
        for a, b, c in triangles:
            for edge in ((a, b), (b, c), (c, a)):
                assert edge not in boundary
                boundary.symmetric_difference_update({edge} if edge[::-1] not in boundary else {edge[::-1]})
        for a, b in boundary:  # what no second triangle shares lies in a face of the cube
            assert any(a in face and b in face for face in table.FACE_EDGES)
        crossed = {e for e in range(12) if len({case >> c & 1 for c in table.edge_corners(e)}) == 2}
        assert {e for t in triangles for e in t} == crossed


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(2, 2, 2), (5, 4, 7), (3, 3, 66)])
def test_matches_the_definition(function, shape):
    values = function(shape)
    wanted = reference.canonical(*reference.marching_cubes(values))
    found = reference.canonical(*marching_cubes(values))
    torch.testing.assert_close(found[0], wanted[0], atol=1e-12, rtol=0)
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_same_surface_as_pymcubes(function, shape, dtype):
    values, level = function(shape).to(dtype), 0.125
    vertices, faces = marching_cubes(values, level)
    wanted, wanted_faces = mcubes.marching_cubes(values.double().numpy(), level)
    assert (len(vertices), len(faces)) == (len(wanted), len(wanted_faces))
    assert vertices.dtype == dtype and faces.dtype == torch.int32
    if len(wanted):
        if len(wanted) < 9000:
            gap = torch.cdist(vertices.double(), torch.from_numpy(wanted), compute_mode="donot_use_mm_for_euclid_dist")
            limit = 1e-5 * max(shape) if dtype == torch.float32 else 1e-9
            assert max(gap.min(0).values.max(), gap.min(1).values.max()) < limit
        found, there = np.sort(vertices.double().numpy(), 0), np.sort(wanted, 0)
        np.testing.assert_allclose(found, there, atol=3e-6 * max(shape) if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(4, 4, 4), (7, 9, 70), (12, 12, 12)])
def test_noise_is_watertight(shape, seed):
    assert_closed(*marching_cubes(enclosed(noise(shape, seed))))


@pytest.mark.parametrize(("function", "characteristic"), [(sphere, 2), (torus, 0)])
def test_closed_shapes(function, characteristic):
    values = function((33, 40, 65))
    vertices, faces = marching_cubes(values.float())
    assert_closed(vertices, faces)
    assert euler(vertices, faces) == characteristic
    points = vertices.double() / (torch.tensor(values.shape) - 1) * 2 - 1
    wanted = 4 / 3 * math.pi * 0.7**3 if function is sphere else 2 * math.pi**2 * 0.6 * 0.25**2
    assert volume(points, faces) == pytest.approx(
        wanted, rel=0.03
    )  # positive: counter-clockwise seen from above the level
    if function is sphere:
        assert (points.norm(dim=1) - 0.7).abs().max() < 2e-3


def test_every_edge_on_the_border_only_is_open():
    vertices, faces = marching_cubes(plane((12, 13, 14)))
    _, (edges, counts) = edge_counts(faces)
    ends = vertices[edges[counts == 1]]  # (*, 2, 3)
    high = torch.tensor([11.0, 12.0, 13.0], dtype=torch.float64)
    assert (((ends == 0) | (ends == high)).all(1)).any(1).all()
    n = torch.tensor([0.3 * 2 / 11, 0.5 * 2 / 12, -0.8 * 2 / 13], dtype=torch.float64)
    a, b, c = vertices[faces.long()].unbind(1)
    normals = (b - a).cross(c - a, dim=1)
    big = normals.norm(dim=1) > 1e-9
    torch.testing.assert_close(
        torch.nn.functional.normalize(normals[big]), (n / n.norm()).expand(int(big.sum()), 3), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("shape", [(0, 0, 0), (1, 1, 1), (1, 5, 5), (5, 5, 1), (0, 3, 3)])
def test_too_small_for_a_cell(shape):
    vertices, faces = marching_cubes(torch.randn(shape))
    assert vertices.shape == (0, 3) and faces.shape == (0, 3)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_values_and_levels_out_of_range_give_nothing(value):
    for level in (0.0, 5.0, -5.0, math.inf, -math.inf):
        vertices, faces = marching_cubes(torch.full((5, 6, 70), value), level)
        assert len(vertices) == len(faces) == 0


def test_values_equal_to_the_level_stay_watertight():
    values = enclosed(noise((10, 10, 10)).round())
    vertices, faces = marching_cubes(values)
    assert_closed(vertices, faces)
    assert vertices.isfinite().all()
    wanted, wanted_faces = mcubes.marching_cubes(values.numpy(), 0.0)
    assert (len(vertices), len(faces)) == (len(wanted), len(wanted_faces))


def test_infinite_and_huge_values():
    values = torch.where(sphere((12, 12, 12)) > 0, math.inf, -math.inf).float()
    vertices, faces = marching_cubes(values)
    assert_closed(vertices, faces)
    assert ((vertices % 1 == 0.5).sum(1) == 1).all()
    vertices, faces = marching_cubes(torch.where(values > 0, 3e38, -3e38))
    assert vertices.isfinite().all() and len(faces)


def test_no_result_depends_on_threads_or_runs():
    values, threads = gyroid((60, 50, 70)).float(), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(marching_cubes(values))
    finally:
        torch.set_num_threads(threads)
    for vertices, faces in results[1:]:
        assert torch.equal(vertices, results[0][0]) and torch.equal(faces, results[0][1])


def test_strided_values():
    values = noise((6, 7, 8))
    for found, wanted in zip(
        marching_cubes(values.transpose(0, 2)),
        marching_cubes(values.transpose(0, 2).clone(memory_format=torch.contiguous_format)),
        strict=True,
    ):
        assert torch.equal(found, wanted)


# ---- blocks ----------------------------------------------------------------------------------------------------------
def cut(values, n, keep=None):
    """Dense values (n a + 1, n b + 1, n c + 1) -> blocks and their coordinates, in a shuffled order."""
    coordinates = torch.tensor(list(itertools.product(*((range((s - 1) // n)) for s in values.shape))))
    coordinates = coordinates[torch.randperm(len(coordinates), generator=torch.Generator().manual_seed(5))]
    if keep is not None:
        coordinates = coordinates[keep(coordinates)]
    blocks = [
        values[n * x : n * x + n + 1, n * y : n * y + n + 1, n * z : n * z + n + 1] for x, y, z in coordinates.tolist()
    ]
    return torch.stack(blocks), coordinates


@pytest.mark.parametrize(("n", "shape"), [(1, (3, 4, 5)), (4, (9, 13, 17)), (8, (25, 17, 25)), (70, (71, 71, 141))])
@pytest.mark.parametrize("function", [sphere, gyroid, noise])
def test_blocks_equal_dense(function, n, shape):
    values = function(shape).float()
    if n == 70:
        values = (
            function((71, 71, 141)).float()
            if function is not noise
            else torch.nn.functional.pad(noise((4, 4, 9)).float(), (60, 72, 60, 7, 60, 7))
        )
    dense = marching_cubes(values, 0.0537)
    sparse = marching_cubes_blocks(*cut(values, n), 0.0537)
    assert len(sparse[0]) == len(dense[0]) and len(sparse[1]) == len(dense[1])
    for found, wanted in zip(reference.canonical(*sparse), reference.canonical(*dense), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("seed", range(5))
def test_missing_blocks_only_open_the_mesh(seed):
    n, values = 3, noise((13, 10, 16), seed)
    generator = torch.Generator().manual_seed(seed)
    blocks, coordinates = cut(values, n, lambda c: torch.rand(len(c), generator=generator) < 0.6)
    vertices, faces = marching_cubes_blocks(blocks, coordinates, 0.1)
    parts = [marching_cubes(b, 0.1) for b in blocks]
    assert len(faces) == sum(len(f) for _, f in parts)
    everything = torch.cat([v + n * c for (v, _), c in zip(parts, coordinates, strict=True)])
    wanted = torch.unique((everything * 1e4).round(), dim=0)
    assert len(vertices) == len(wanted)  # each position once
    assert torch.equal(torch.unique((vertices * 1e4).round(), dim=0), wanted)
    assert edge_counts(faces)[1][1].max() <= 2
    assert len(torch.unique(faces)) == len(vertices)


def test_blocks_anywhere_in_any_number():
    values = sphere((17, 17, 17)).float()
    blocks, coordinates = cut(values, 8)
    here, there = marching_cubes_blocks(blocks, coordinates), marching_cubes_blocks(blocks, (coordinates - 1000).int())
    assert torch.equal(here[1], there[1])
    torch.testing.assert_close(there[0] + 8000, here[0], atol=1e-3, rtol=0)
    vertices, faces = marching_cubes_blocks(blocks[:0], coordinates[:0])
    assert vertices.shape == (0, 3) and faces.shape == (0, 3)
    alone = marching_cubes_blocks(blocks[:1], torch.zeros(1, 3, dtype=torch.int64))
    assert all(torch.equal(a, b) for a, b in zip(alone, marching_cubes(blocks[0]), strict=True))


# ---- gradients -------------------------------------------------------------------------------------------------------
def test_gradcheck():
    values = sphere((4, 5, 6)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: marching_cubes(v, 0.1)[0], values)
    blocks, coordinates = cut(sphere((5, 5, 5)), 2)
    vertices, _ = marching_cubes_blocks(blocks.requires_grad_(), coordinates)
    dense = sphere((5, 5, 5)).requires_grad_()
    marching_cubes(dense)[0].square().sum().backward()
    vertices.square().sum().backward()
    summed = torch.zeros_like(dense)
    for grad, (x, y, z) in zip(blocks.grad, coordinates.tolist(), strict=True):
        summed[2 * x : 2 * x + 3, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3] += grad
    torch.testing.assert_close(summed, dense.grad, atol=1e-12, rtol=0)


def test_gradients_are_finite_at_infinite_values():
    values = torch.where(sphere((6, 6, 6)) > 0, math.inf, -1.0).requires_grad_()
    marching_cubes(values)[0].sum().backward()
    assert values.grad.isfinite().all()


def test_opcheck():
    values = sphere((5, 5, 5)).float()
    torch.library.opcheck(torch.ops.polyfield.marching_cubes.default, (values.clone().requires_grad_(), 0.1, True))
    torch.library.opcheck(torch.ops.polyfield.marching_cubes_blocks.default, (*cut(values, 2), 0.1, False))


# ---- errors ----------------------------------------------------------------------------------------------------------
def test_errors():
    with pytest.raises(ValueError, match=r"marching_cubes: values: expected shape \(\*, \*, \*\), got \(2, 3\)"):
        marching_cubes(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="marching_cubes: values: expected float32 or float64, got float16"):
        marching_cubes(torch.zeros(2, 2, 2, dtype=torch.float16))
    with pytest.raises(ValueError, match="expected at most 65535 along the last axis, got 70000"):
        marching_cubes(torch.zeros(2, 2, 70000))
    for z in (0, 40, 69):
        values = torch.zeros(3, 4, 70)
        values[1, 2, z] = math.nan
        with pytest.raises(
            ValueError, match=rf"marching_cubes: values: expected numbers, got NaN at index \(1, 2, {z}\); replace"
        ):
            marching_cubes(values)


def test_errors_of_blocks():
    blocks, coordinates = cut(sphere((5, 5, 5)), 2)
    with pytest.raises(
        ValueError, match=r"expected shape \(B, n \+ 1, n \+ 1, n \+ 1\) with n >= 1, got \(8, 3, 3, 2\)"
    ):
        marching_cubes_blocks(blocks[..., :2], coordinates)
    with pytest.raises(ValueError, match=r"block_coordinates: expected shape \(8, 3\), got \(7, 3\)"):
        marching_cubes_blocks(blocks, coordinates[:7])
    with pytest.raises(TypeError, match="block_coordinates: expected int64 or int32, got float32"):
        marching_cubes_blocks(blocks, coordinates.float())
    with pytest.raises(ValueError, match=r"block_coordinates: expected distinct blocks, got \[\d, \d, \d\] twice"):
        marching_cubes_blocks(blocks, coordinates.clamp(max=0))
    with pytest.raises(ValueError, match="block_coordinates: expected within"):
        marching_cubes_blocks(blocks, coordinates + 2**20)
    with pytest.raises(ValueError, match="values: expected equal values where blocks meet"):
        marching_cubes_blocks(blocks * (1 - 2 * (torch.arange(8) == 3)).view(-1, 1, 1, 1), coordinates)
    blocks[2, 1, 0, 1] = math.nan
    with pytest.raises(
        ValueError, match=r"marching_cubes_blocks: values: expected numbers, got NaN at index \(2, 1, 0, 1\)"
    ):
        marching_cubes_blocks(blocks, coordinates)
