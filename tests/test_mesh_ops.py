import math

import pytest
import torch
from polyfield.geometry import Aabb, Mesh
from polyfield.geometry import mesh_ops as ops
from polyfield.geometry.isosurface import isosurface


def balls(points):
    """Three of radius 0.4, 0.25 and 0.1."""
    centers = torch.tensor([[-0.4, -0.4, 0.0], [0.5, 0.4, 0.0], [0.6, -0.6, 0.5]])
    return (torch.cdist(points, centers) - torch.tensor([0.4, 0.25, 0.1])).amin(1)


@pytest.fixture(scope="module")
def mesh():
    made = isosurface(balls, Aabb.cube(), 48)
    return ops.with_colors(made, made.vertices * 0.5 + 0.5)


@pytest.fixture(scope="module")
def ball():
    made = isosurface(lambda p: p.norm(dim=1) - 0.7, Aabb.cube(), 48)
    return ops.with_colors(made, made.vertices * 0.5 + 0.5)


def test_largest_components(mesh):
    parts = [len(ops.largest_components(mesh, n).faces) for n in (1, 2, 3, 4, 0)]
    assert parts[0] < parts[1] < parts[2] == parts[3] == parts[4] == len(mesh.faces)
    largest = ops.largest_components(mesh)
    assert (largest.vertices - torch.tensor([-0.4, -0.4, 0.0])).norm(dim=1).max() < 0.41
    assert len(largest.normals) == len(largest.colors) == len(largest.vertices)
    torch.testing.assert_close(largest.colors, largest.vertices * 0.5 + 0.5)
    assert len(ops.largest_components(mesh, 0, min_fraction=0.1).faces) == parts[1]
    assert len(ops.largest_components(mesh, 1, min_fraction=0.99).faces) == 0
    nothing = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    assert len(ops.largest_components(nothing).faces) == 0
    with pytest.raises(ValueError, match="largest_components: count, min_fraction"):
        ops.largest_components(mesh, -1)


def test_crop(mesh):
    box = Aabb(torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([1.0, 1.0, 0.1]))
    cut = ops.crop(mesh, box)
    assert 0 < len(cut.faces) < len(mesh.faces)
    assert box.contains(cut.vertices).all()
    assert len(torch.unique(cut.faces)) == len(cut.vertices) == len(cut.normals)
    assert len(ops.crop(mesh, Aabb(box.high * 2, box.high * 3)).vertices) == 0


def test_simplify(ball):
    coarse = ops.simplify(ball, 1000)
    assert 900 <= len(coarse.faces) <= 1000
    assert (coarse.vertices.norm(dim=1) - 0.7).abs().max() < 0.02
    assert (coarse.colors - (coarse.vertices * 0.5 + 0.5)).abs().max() < 0.03
    assert ((coarse.normals * coarse.vertices).sum(1) > 0.6).all()
    assert len(torch.unique(coarse.faces)) == len(coarse.vertices)
    assert ops.simplify(ball, len(ball.faces)) is ball
    assert ops.simplify(Mesh(ball.vertices, ball.faces), 500).normals is None
    with pytest.raises(ValueError, match="simplify: target_faces: expected at least 1, got 0"):
        ops.simplify(ball, 0)


def test_normals(ball):
    away = torch.nn.functional.normalize(ball.vertices, dim=1)
    assert (ops.vertex_normals(ball) * away).sum(1).min() > 0.99
    assert (ops.face_normals(ball) * away[ball.faces[:, 0]]).sum(1).min() > 0.9
    alone = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    assert torch.equal(ops.vertex_normals(alone), torch.zeros(3, 3))


def test_transform(ball):
    c, s = math.cos(0.7), math.sin(0.7)
    matrix = torch.tensor([[2 * c, -2 * s, 0, 1], [s, c, 0, -2], [0, 0, 3, 0.5], [0, 0, 0, 1.0]])
    moved = ops.transform(ball, matrix)
    torch.testing.assert_close(ops.transform(moved, matrix.inverse()).vertices, ball.vertices, atol=1e-5, rtol=0)
    assert (moved.normals * ops.vertex_normals(moved)).sum(1).min() > 0.98
    mirrored = ops.transform(ball, torch.diag(torch.tensor([-1.0, 1, 1, 1])))
    assert (mirrored.normals * ops.vertex_normals(mirrored)).sum(1).min() > 0.98
    assert (mirrored.normals * mirrored.vertices).sum(1).min() > 0.6
    with pytest.raises(ValueError, match=r"transform: matrix: expected shape \(4, 4\), got \(3, 3\)"):
        ops.transform(ball, torch.eye(3))
    with pytest.raises(ValueError, match="transform: matrix: expected an invertible one"):
        ops.transform(ball, torch.diag(torch.tensor([0.0, 1, 1, 1])))


def test_sample_surface(ball):
    points, normals = ops.sample_surface(ball, 20000, torch.Generator().manual_seed(1))
    assert points.shape == normals.shape == (20000, 3)
    assert (points.norm(dim=1) - 0.7).abs().max() < 2e-3
    assert (normals * points).sum(1).min() > 0.65
    assert points.mean(0).abs().max() < 0.015  # uniform
    assert points.square().mean(0).sub(0.49 / 3).abs().max() < 0.005
    again, _ = ops.sample_surface(ball, 20000, torch.Generator().manual_seed(1))
    assert torch.equal(points, again)
    flat = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="sample_surface: mesh: expected triangles with an area, got 1 triangles"):
        ops.sample_surface(flat, 10)


def test_with_colors(ball):
    assert ops.with_colors(ball, ball.vertices * 9).colors.max() == 1
    with pytest.raises(ValueError, match="with_colors: colors: expected shape"):
        ops.with_colors(ball, ball.colors[:5])
