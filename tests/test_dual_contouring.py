"""Sharp level sets: edges and corners are met, surfaces are closed and single, pieces in one cell stay apart."""

import math

import pytest
import torch
import trimesh
from polyfield.geometry import Aabb, Mesh
from polyfield.geometry.dual_contouring import dual_contour
from polyfield.geometry.dual_parts import nearest_to_planes, nearest_within
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.mesh_cleaning import faults
from polyfield.geometry.mesh_ops import face_areas, face_normals, sample_surface
from polyfield.geometry.sparse_blocks import OpenSurfaceWarning

from .unsigned_shapes import TURN, unsigned

CELL = 2 / 32


def cube(points):
    """Exact, edges of length 1, turned."""
    q = (points @ TURN).abs() - 0.5
    return q.clamp(min=0).norm(dim=1) + q.amax(1).clamp(max=0)


def cube_slopes(points):
    q = points @ TURN
    away = (q.abs() - 0.5).clamp(min=0)
    inside = torch.nn.functional.one_hot(q.abs().argmax(1), 3).to(points)
    found = torch.where((away > 0).any(1, keepdim=True), away, inside) * q.sign()
    return torch.nn.functional.normalize(found, dim=1) @ TURN.T


def ball(points):
    return points.norm(dim=1) - 0.6


def bored(points):
    """A cube less three bores, as CAD has it: edges straight and round, convex and concave."""
    q = points @ TURN
    bores = [0.3 - (q[:, [i, (i + 1) % 3]]).norm(dim=1) for i in range(3)]
    return torch.stack([cube(points), *bores]).amax(0)


def edges_of_cube(count=200):
    """Points (12 count, 3) on the edges, and the corners (8, 3)."""
    s = torch.linspace(-0.5, 0.5, count)
    rows = []
    for axis in range(3):
        for a in (-0.5, 0.5):
            for b in (-0.5, 0.5):
                p = torch.empty(count, 3)
                p[:, axis], p[:, (axis + 1) % 3], p[:, (axis + 2) % 3] = s, a, b
                rows.append(p)
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 3)
    return torch.cat(rows) @ TURN.T, corners @ TURN.T


def off(points, mesh):
    """How far points are from a mesh, cells."""
    return unsigned(Mesh(mesh.vertices, mesh.faces))(points)[0] / CELL


@pytest.mark.parametrize("slopes", [cube_slopes, None])
def test_a_cube_keeps_its_edges_and_corners(slopes):
    sharp, blunt = dual_contour(cube, slopes, Aabb.cube(), 32), isosurface(cube, Aabb.cube(), 32)
    edges, corners = edges_of_cube(60)
    assert float(off(corners, sharp).max()) < 0.05
    assert float(off(corners, blunt).mean()) > 0.3
    assert float(off(edges, sharp).mean()) < 0.1 * float(off(edges, blunt).mean())
    volume = trimesh.Trimesh(sharp.vertices, sharp.faces, process=False).volume
    assert volume == pytest.approx(1, abs=1e-4)
    flat = (face_normals(sharp) @ TURN).abs().amax(1)
    assert float(face_areas(sharp)[flat < 0.99].sum()) < 1e-3 * 6, "triangles lie in the cube's faces"


@pytest.mark.parametrize("function", [cube, ball, bored])
@pytest.mark.parametrize("resolution", [24, 56])
def test_closed_oriented_and_single(function, resolution):
    mesh = dual_contour(function, None, Aabb.cube(), resolution)
    assert not faults(mesh)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).is_watertight
    reference = isosurface(function, Aabb.cube(), 2 * resolution)
    assert float(face_areas(mesh).sum()) == pytest.approx(float(face_areas(reference).sum()), rel=0.05)
    solid = [trimesh.Trimesh(m.vertices, m.faces, process=False) for m in (mesh, reference)]
    assert solid[0].volume == pytest.approx(solid[1].volume, rel=0.02)
    assert solid[0].euler_number == solid[1].euler_number
    points, normals = sample_surface(mesh, 2000, torch.Generator().manual_seed(0))
    assert float(function(points).abs().max()) < 0.6 * 2 / resolution
    assert float(function(points).abs().mean()) < 0.02 * 2 / resolution
    grown = function(points + 0.3 * normals * 2 / resolution)
    assert float((grown > 0).float().mean()) > 0.99, "normals point outwards"
    torch.testing.assert_close(mesh.normals.norm(dim=1), torch.ones(len(mesh.vertices)))


def test_two_sheets_in_one_cell_stay_apart():
    """Balls that nearly touch: one vertex per cell would join them."""
    centers = torch.tensor([[-0.413, 0.02, 0.01], [0.413, 0.02, 0.01]])
    function = lambda p: torch.cdist(p, centers).amin(1) - 0.4  # noqa: E731
    mesh = dual_contour(function, None, Aabb.cube(), 40)
    assert not faults(mesh)
    parts = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).split(only_watertight=True)
    assert [p.volume for p in parts] == pytest.approx([4 / 3 * math.pi * 0.4**3] * 2, rel=0.02)


def test_noise_is_meshed_without_cracks():
    """All 256 cases: values at random, whose surface nothing smooth could have."""
    g = torch.Generator().manual_seed(0)
    lattice = torch.rand(1, 1, 17, 17, 17, generator=g) - 0.5
    lattice[..., 0, :, :] = lattice[..., -1, :, :] = 1
    lattice[..., 0, :] = lattice[..., -1, :] = 1
    lattice[..., 0] = lattice[..., -1] = 1

    def function(points):
        at = points.flip(1)[None, None, None]
        return torch.nn.functional.grid_sample(lattice, at, align_corners=True)[0, 0, 0, 0]

    mesh = dual_contour(function, None, Aabb.cube(), 16, margin=math.inf)
    ends = torch.stack([mesh.faces, mesh.faces.roll(-1, 1)], 2).view(-1, 2)
    _, edge, count = ends.sort(1).values.unique(dim=0, return_inverse=True, return_counts=True)
    up = torch.zeros(len(count)).index_add_(0, edge, 2.0 * (ends[:, 0] < ends[:, 1]) - 1)
    assert bool((up == 0).all()), "each edge is run both ways alike"
    assert float((count > 2).float().mean()) < 0.02, "loops that share two faces of a cell are the exception"


def test_a_box_that_cuts_the_surface():
    box = Aabb(torch.tensor([-0.3, -1.0, -1.0]), torch.ones(3))
    with pytest.warns(OpenSurfaceWarning, match="dual_contour: the surface meets the bounds"):
        mesh = dual_contour(ball, None, box, 32)
    assert "open edges" in faults(mesh)[0]
    assert float(ball(mesh.vertices).abs().max()) < 0.01


def test_levels_and_boxes_that_are_no_cubes():
    box = Aabb(torch.tensor([-0.9, -0.8, -1.1]), torch.tensor([0.8, 1.0, 0.95]))
    mesh = dual_contour(ball, None, box, 37, 0.1)
    torch.testing.assert_close(mesh.vertices.norm(dim=1), torch.full((len(mesh.vertices),), 0.7), atol=2e-3, rtol=0)


def test_planes_meet_in_a_point_a_line_or_between():
    normals = torch.eye(3)
    point = torch.tensor([0.1, -0.2, 0.3])
    quadrics = torch.stack([sum(torch.outer(n, n) for n in normals[:k]) for k in (3, 2, 1)])
    found = nearest_to_planes(quadrics, torch.stack([quadrics[k] @ point for k in range(3)]), 0.05)
    torch.testing.assert_close(found, torch.tensor([[0.1, -0.2, 0.3], [0.1, -0.2, 0], [0.1, 0, 0]]))


def test_steps_that_leave_the_box_come_back_to_the_nearest_place():
    g = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(50, 6, 3, generator=g), dim=2)
    shifts = torch.randn(50, 6, generator=g)
    quadrics, right = normals.transpose(1, 2) @ normals, (normals * shifts[..., None]).sum(1)
    half = torch.full((50, 3), 0.3)
    steps = nearest_to_planes(quadrics, right, 1e-6)
    found = nearest_within(quadrics, right, steps, -half, half, rounds=100)
    error = lambda x: ((normals * x[:, None]).sum(2) - shifts).square().sum(1)  # noqa: E731
    grid = torch.cartesian_prod(*[torch.linspace(-0.3, 0.3, 13)] * 3)
    best = torch.stack([error(p.expand(50, 3)) for p in grid]).amin(0)
    assert bool((found.abs() <= 0.3 + 1e-6).all()) and bool((error(found) <= best + 1e-4).all())


def test_errors():
    with pytest.raises(ValueError, match="level: expected a value that the function crosses inside the bounds, got 9"):
        dual_contour(ball, None, Aabb.cube(), 16, 9.0)
    with pytest.raises(ValueError, match=r"dual_contour: gradients: expected shape \(\d+, 3\), got \(\d+, 2\)"):
        dual_contour(ball, lambda p: p[:, :2], Aabb.cube(), 16)
