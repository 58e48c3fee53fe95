"""Meshes after extraction: holes closed, roughness gone, volumes, colours and the sides that faces look to kept."""

import math
from dataclasses import replace

import pytest
import torch
from polyfield.apps.errors import UserError
from polyfield.apps.mesh_cleanup import Cleanup
from polyfield.geometry import Aabb, Mesh
from polyfield.geometry.hole_filling import MOST, boundary_loops, fill_holes
from polyfield.geometry.isosurface import isosurface
from polyfield.geometry.mesh_cleaning import faults, signed_volume
from polyfield.geometry.mesh_ops import boundary_length, joined, keep_faces, vertex_normals, with_colors
from polyfield.geometry.smoothing import smooth

VOLUME = 4 / 3 * math.pi * 0.7**3


@pytest.fixture(scope="module")
def ball():
    made = isosurface(lambda p: p.norm(dim=1) - 0.7, Aabb.cube(), 32)
    return with_colors(made, made.vertices * 0.5 + 0.5)


def euler(mesh):
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(1).values
    return len(mesh.faces.unique()) - len(edges.unique(dim=0)) + len(mesh.faces)


def pierced(mesh, *places, radius=0.2):
    centers = mesh.vertices[mesh.faces].mean(1)
    gone = (torch.cdist(centers, torch.tensor(places)) < radius).any(1)
    return keep_faces(mesh, ~gone)


def test_holes_are_closed(ball):
    torn = pierced(ball, (0.7, 0.0, 0.0), (0.0, -0.7, 0.0))
    loops = boundary_loops(torn.faces)
    assert len(loops) == 2 and all(len(loop) == len(set(loop)) > 10 for loop in loops)
    whole = fill_holes(torn, 200)
    assert euler(torn) == 0 and euler(whole) == 2 and not faults(whole)
    assert abs(signed_volume(whole) / VOLUME - 1) < 0.03, "flat lids, turned outwards"
    assert torch.equal(whole.vertices, torn.vertices) and torch.equal(whole.colors, torn.colors)


def test_only_holes_up_to_a_size(ball):
    torn = joined([pierced(ball, (0.7, 0.0, 0.0), radius=0.3), pierced(ball, (0.0, 0.0, 0.7), radius=0.1)])
    large, small = sorted((len(loop) for loop in boundary_loops(torn.faces)), reverse=True)
    assert len(boundary_loops(fill_holes(torn, small).faces)) == 1
    assert len(boundary_loops(fill_holes(torn, small - 1).faces)) == 2
    assert fill_holes(ball, 100) is ball
    assert not boundary_loops(fill_holes(torn, large).faces)


def test_a_boundary_that_touches_itself():
    """Two holes that share a vertex: a sheet of squares without two that meet at a corner."""
    side = 5
    number = torch.arange(side * side).view(side, side)
    x, y = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    corners = torch.stack([number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]], -1)
    kept = torch.ones(side - 1, side - 1, dtype=torch.bool)
    kept[1, 1] = kept[2, 2] = False
    squares = corners[kept]
    faces = torch.cat([squares[:, [0, 1, 2]], squares[:, [0, 2, 3]]])
    sheet = Mesh(torch.stack([x, y, torch.zeros_like(x)], -1).view(-1, 3).float(), faces)
    assert sorted(len(loop) for loop in boundary_loops(faces)) == [4, 4, 16]
    whole = fill_holes(sheet, 4)
    assert len(whole.faces) == 2 * 16 and sorted(map(len, boundary_loops(whole.faces))) == [16]
    assert (vertex_normals(whole)[:, 2] > 0.99).all(), "turned like the rest"


def test_the_lid_of_a_bent_boundary_is_the_smallest():
    """An L: a fan to the middle of its corners would leave it."""
    shape = torch.tensor([[0, 0], [3, 0], [3, 1], [1, 1], [1, 3], [0, 3]]).float()
    rim = torch.cat([shape, torch.zeros(6, 1)], 1)
    lower = rim - torch.tensor([0.0, 0.0, 1.0])
    a = torch.arange(6)
    b = (a + 1) % 6
    walls = torch.cat([torch.stack([a + 6, b + 6, b], 1), torch.stack([a + 6, b, a], 1)])
    closed = fill_holes(Mesh(torch.cat([rim, lower]), walls), 6)
    assert not faults(closed)
    assert signed_volume(closed) == pytest.approx(5.0)


def test_no_edge_is_run_twice():
    """A ring of four triangles whose hole has no diagonal left: both are edges of faces elsewhere."""
    square = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.5, 1], [0.5, 0.5, -1]]).float()
    faces = [[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4], [0, 2, 5], [1, 3, 5]]
    mesh = Mesh(square, torch.tensor(faces))
    assert torch.equal(fill_holes(mesh, 4).faces[: len(faces)], mesh.faces)
    edges = fill_holes(mesh, 4).faces
    pairs = torch.cat([edges[:, [0, 1]], edges[:, [1, 2]], edges[:, [2, 0]]])
    assert len(pairs.unique(dim=0)) == len(pairs)


def test_smoothing_keeps_the_volume(ball):
    noise = 0.02 * torch.randn(ball.vertices.shape, generator=torch.Generator().manual_seed(0))
    rough = replace(ball, vertices=ball.vertices + noise)
    calm = smooth(rough, 20)
    wander = lambda mesh: float(mesh.vertices.norm(dim=1).std())  # noqa: E731
    assert wander(calm) < 0.4 * wander(rough)
    assert abs(signed_volume(calm) / VOLUME - 1) < 0.02
    assert torch.equal(calm.faces, rough.faces) and torch.equal(calm.colors, rough.colors)
    torch.testing.assert_close(calm.normals, vertex_normals(calm))
    assert smooth(ball, 0) is ball
    with pytest.raises(ValueError, match="smooth: times: expected at least 0, got -1"):
        smooth(ball, -1)


def test_smoothing_leaves_boundaries_where_they_are(ball):
    half = keep_faces(ball, (ball.vertices[ball.faces][..., 2] > 0).all(1))
    calm = smooth(half, 30)
    assert boundary_length(calm) == pytest.approx(2 * math.pi * 0.7, rel=0.05)
    assert float(calm.vertices[:, 2].min()) > -0.02
    alone = replace(half, vertices=torch.cat([half.vertices, torch.ones(1, 3)]), colors=None, normals=None)
    assert torch.equal(smooth(alone, 3).vertices[-1], torch.ones(3)), "of no face"


def test_all_of_it_in_order(ball):
    crumb = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]), torch.eye(3), torch.ones(3, 3))
    torn = joined([pierced(ball, (0.7, 0.0, 0.0)), crumb])
    whole = Cleanup(fill_holes=100, smooth=5, target_faces=1000).clean(torn)
    assert euler(whole) == 2 and not faults(whole) and len(whole.faces) <= 1000
    assert whole.colors is not None and abs(signed_volume(whole) / VOLUME - 1) < 0.04
    assert len(Cleanup(components=0).clean(torn).faces) == len(torn.faces)
    assert len(Cleanup().clean(torn, several=True).faces) == len(torn.faces) - 1, "crumbs go"
    assert len(Cleanup().clean(torn, connected=False).faces) == len(torn.faces)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(components=-1), "--components: expected at least 0, got -1"),
        (dict(fill_holes=2), f"--fill-holes: expected 0, or 3 to {MOST} edges, got 2"),
        (dict(fill_holes=MOST + 1), f"--fill-holes: expected 0, or 3 to {MOST} edges"),
        (dict(fill_holes=-4), "--fill-holes: expected at least 0, got -4"),
        (dict(smooth=-1), "--smooth: expected at least 0, got -1"),
        (dict(target_faces=3), "--target-faces: expected at least 4, got 3"),
    ],
)
def test_numbers_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=f"extract: {message}"):
        Cleanup(**options).check()


def test_how_large_a_hole_can_be(ball):
    with pytest.raises(ValueError, match=f"fill_holes: most: expected 3 to {MOST} edges, got 2"):
        fill_holes(ball, 2)
