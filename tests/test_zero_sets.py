"""Meshes of unsigned distances: complete, single, and ending where the surface does."""

import pytest
import torch
import trimesh
from polyfield.geometry import Aabb, Mesh
from polyfield.geometry.dual_mesh import dual_mesh
from polyfield.geometry.hole_filling import fill_small_holes
from polyfield.geometry.mesh_cleaning import clean, faults
from polyfield.geometry.mesh_ops import boundary_edges, boundary_length, face_areas, largest_components, sample_surface
from polyfield.geometry.near_cells import key_of, near_cells, place_of
from polyfield.geometry.pseudo_signs import pseudo_sign_mesh

from .unsigned_shapes import TURN, ball, bowl, cloth, disc, unsigned

SHAPES = {"disc": (disc, 1), "bowl": (bowl, 1), "ball": (ball, 0), "cloth": (cloth, 1)}
CELL = 2 / 48


def boundaries(mesh):
    """How many closed lines the boundary consists of."""
    ends = boundary_edges(mesh.faces)
    label = torch.arange(len(mesh.vertices))
    for _ in range(len(ends)):
        low = torch.minimum(label[ends[:, 0]], label[ends[:, 1]])
        label.scatter_reduce_(0, ends.reshape(-1), low.repeat_interleave(2), "amin")
        if bool((label[ends[:, 0]] == label[ends[:, 1]]).all()):
            break
    return len(label[ends[:, 0]].unique())


def apart(mesh, truth):
    """Distances of places on each surface from the other."""
    generator = torch.Generator().manual_seed(0)
    return [unsigned(b)(sample_surface(a, 20_000, generator)[0])[0] for a, b in ((mesh, truth), (truth, mesh))]


@pytest.mark.parametrize("name", SHAPES)
def test_dual_meshes_are_single_and_whole(name):
    make, loops = SHAPES[name]
    truth = make()
    mesh = dual_mesh(unsigned(truth), Aabb.cube(), 48)
    there, back = apart(mesh, truth)
    assert float(there.max()) < 0.5 * CELL
    assert float(back.max()) < 0.7 * CELL, "nothing is missing"
    assert boundaries(mesh) == loops
    assert boundary_length(mesh) == pytest.approx(boundary_length(truth), rel=0.05)
    assert float(face_areas(mesh).sum()) == pytest.approx(float(face_areas(truth).sum()), rel=0.02), "no double layer"
    assert not any("more than two" in fault or "against" in fault for fault in faults(mesh))
    assert len(largest_components(mesh).faces) == len(mesh.faces)
    assert not clean(mesh).changes or name != "ball", "a closed surface is turned outwards"
    torch.testing.assert_close(mesh.normals.norm(dim=1), torch.ones(len(mesh.vertices)))


@pytest.mark.parametrize("name", SHAPES)
def test_marching_cubes_with_pseudo_signs(name):
    make, loops = SHAPES[name]
    truth = make()
    mesh = pseudo_sign_mesh(unsigned(truth), Aabb.cube(), 48)
    there, back = apart(mesh, truth)
    assert float(there.max()) < CELL
    assert float(back.max()) < 2 * CELL
    assert (boundaries(mesh) == 0) == (loops == 0)
    assert float(face_areas(mesh).sum()) == pytest.approx(float(face_areas(truth).sum()), rel=0.06)
    assert boundary_length(mesh) >= boundary_length(dual_mesh(unsigned(truth), Aabb.cube(), 48)) or loops == 0


def test_errors_of_the_distance_leave_no_holes():
    """Noise of a tenth of a cell in distances, and gradients that are off by 15 degrees."""
    truth = bowl()
    exact = unsigned(truth)

    def noisy(points):
        found, slopes = exact(points)
        wave = (points * 40).sin()
        return (found + 0.1 * CELL * wave.prod(1)).abs(), slopes + 0.25 * wave.roll(1, 1)

    mesh = dual_mesh(noisy, Aabb.cube(), 48)
    assert boundaries(mesh) == 1
    assert not any("more than two" in fault for fault in faults(mesh))


def test_sharp_edges_stay_sharp():
    """An open box: its corners are met within a fifth of a cell."""
    box = trimesh.creation.box((1, 1, 1))
    corners = torch.tensor(box.vertices).float() @ TURN.T
    faces = torch.tensor(box.faces)[torch.tensor(box.face_normals[:, 2]) < 0.5]
    mesh = dual_mesh(unsigned(Mesh(corners, faces)), Aabb.cube(), 48)
    off = torch.cdist(corners, mesh.vertices).amin(1)
    assert float(off.max()) < 0.2 * CELL
    assert boundary_length(mesh) == pytest.approx(4, rel=0.05)


def test_cells_near_a_surface_are_few_and_enough():
    asked = []

    def ask(points):
        asked.append(len(points))
        away = points.norm(dim=1) - 0.6
        return away.abs(), torch.nn.functional.normalize(points, dim=1) * away.sign()[:, None]

    lattice, cells = near_cells(ask, Aabb.cube(), 256)
    centers = lattice.world(place_of(cells) + 0.5)
    assert float((centers.norm(dim=1) - 0.6).abs().max()) < 1.2 * lattice.cell
    crossed = 4 * torch.pi * 0.6**2 / lattice.cell**2
    assert crossed < len(cells) < 4 * crossed
    assert sum(asked) < 256**3 / 15
    assert lattice.cell == pytest.approx(2 / 256)


def test_keys_are_unique_and_come_back():
    places = torch.randint(-(1 << 19), 1 << 19, (1000, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(place_of(key_of(places)), places)


def test_a_box_that_is_no_cube():
    truth = disc()
    box = Aabb(truth.vertices.amin(0) - 0.1, truth.vertices.amax(0) + 0.2)
    mesh = dual_mesh(unsigned(truth), box, 40)
    assert boundary_length(mesh) == pytest.approx(boundary_length(truth), rel=0.05)


@pytest.mark.parametrize("method", [dual_mesh, pseudo_sign_mesh])
def test_a_thick_slab_is_refused_before_it_takes_the_memory(method):
    asked = []

    def slab(points):
        asked.append(len(points))
        return (points[:, 2].abs() - 0.4).relu(), torch.ones_like(points)

    with pytest.raises(ValueError, match=r"near_cells: max_bytes: expected cells that fit into 0.5 GiB, got .* lower"):
        method(slab, Aabb.cube(), 1024, max_bytes=2**29)
    assert sum(asked) < 8 * 2**29 / 2200 + 33**3


@pytest.mark.parametrize("method", [dual_mesh, pseudo_sign_mesh])
def test_errors(method):
    def far(points):
        return torch.full_like(points[:, 0], 3.0), torch.ones_like(points)

    def straight(points):
        return torch.zeros_like(points[:, 0]), torch.ones_like(points)

    with pytest.raises(ValueError, match=r"near_cells: resolution: expected 1 to \d+ cells, got 0"):
        method(far, Aabb.cube(), 0)
    with pytest.raises(ValueError, match="near_cells: bounds: expected low < high"):
        method(far, Aabb(torch.ones(3), -torch.ones(3)), 32)
    with pytest.raises(
        ValueError, match=r"near_cells: function: expected distances that come down to zero .* got 3 at"
    ):
        method(far, Aabb.cube(), 32)
    with pytest.raises(ValueError, match="function: expected gradients that turn round at the surface, got none"):
        method(straight, Aabb.cube(), 16)
    with pytest.raises(ValueError, match="near_cells: function: expected numbers, got NaN or infinity"):
        method(lambda p: (p[:, 0] * torch.nan, p), Aabb.cube(), 16)
    with pytest.raises(ValueError, match=r"near_cells: function: expected distances \(\d+,\) and gradients .* got"):
        method(lambda p: (p, p), Aabb.cube(), 16)


def test_small_holes_are_filled_and_boundaries_left():
    closed = ball()
    middles = closed.vertices[closed.faces].mean(1)
    half = Mesh(closed.vertices, closed.faces[middles[:, 2] < 0.1])
    low = (middles[middles[:, 2] < 0.1][:, 2] < -0.1).nonzero()[:, 0]
    kept = torch.ones(len(half.faces), dtype=torch.bool)
    kept[low[[0, len(low) // 3, len(low) // 2]]] = False
    torn = Mesh(half.vertices, half.faces[kept])
    whole = fill_small_holes(torn, 8)
    assert len(whole.faces) == len(torn.faces) + 9
    assert boundary_length(whole) == pytest.approx(boundary_length(half))
    assert not any("against" in fault for fault in faults(whole)), "turned as their neighbours are"
    assert len(fill_small_holes(torn, 8, lambda middles: middles[:, 0] > 10).faces) == len(torn.faces)
    assert torch.equal(fill_small_holes(closed, 8).faces, closed.faces)
