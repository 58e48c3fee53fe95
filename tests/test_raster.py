import pytest
import torch
from polyfield.geometry import Camera, CameraModel, Mesh
from polyfield.geometry.raster import barycentric, bilinear, covered, nearest_weights, see_mesh
from polyfield.geometry.transforms import look_at


def coverage(corners, width, height, **options):
    """(height, width) how many triangles cover each pixel."""
    count = torch.zeros(height * width, dtype=torch.long)
    for _, pixel, _ in covered(corners, width, height, **options):
        count.index_add_(0, pixel, torch.ones_like(pixel))
    return count.view(height, width)


def test_a_square_of_two_triangles_covers_each_pixel_once():
    a, b, c, d = torch.tensor([[2.1, 1.2], [7.9, 1.2], [7.9, 5.7], [2.1, 5.7]])
    for triangles in ([[a, b, c], [a, c, d]], [[c, b, a], [d, c, a]]):  # either way round
        count = coverage(torch.stack([torch.stack(t) for t in triangles]), 10, 8, portion=7)
        wanted = torch.zeros(8, 10, dtype=torch.long)
        wanted[1:6, 2:8] = 1
        assert torch.equal(count[:1], wanted[:1])
        assert torch.equal(count.clamp_max(1), wanted)


def test_random_triangles_beside_barycentric_weights():
    g = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 3, 2, generator=g, dtype=torch.float64) * 40 - 10
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    centers = torch.stack([x.reshape(-1), y.reshape(-1)], 1).double() + 0.5
    weights = barycentric(corners.repeat_interleave(400, 0), centers.repeat(40, 1))
    inside = (weights >= 0).all(1).view(40, 400)
    found = torch.zeros(40, 400, dtype=torch.bool)
    for triangle, pixel, outside in covered(corners, 20, 20, portion=100):
        found[triangle, pixel] = True
        assert (outside == 0).all()
    assert torch.equal(found, inside)
    wide = torch.zeros(40, 400)
    for triangle, pixel, outside in covered(corners, 20, 20, margin=1.0):
        wide[triangle, pixel] = 1 + outside.float()
    _, distance = nearest_weights(corners.repeat_interleave(400, 0), centers.repeat(40, 1))
    assert torch.equal(wide > 0, (distance <= 1).view(40, 400))
    assert torch.equal(wide == 1, inside), "nothing outside is 0 away"
    assert ((wide > 1) & (wide <= 2)).sum() > 100


def test_nearest_points_of_triangles_beside_a_search():
    g = torch.Generator().manual_seed(0)
    corners, points = torch.rand(50, 3, 2, generator=g).double(), torch.rand(50, 2, generator=g).double() * 2 - 0.5
    weights, distance = nearest_weights(corners, points)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(50).double())
    at = (corners * weights[..., None]).sum(1)
    torch.testing.assert_close((at - points).norm(dim=1), distance)
    a, b = torch.meshgrid(*[torch.linspace(0, 1, 101).double()] * 2, indexing="ij")
    grid = torch.stack([a, b, 1 - a - b], -1).view(-1, 3)
    grid = grid[grid[:, 2] >= -1e-9]
    searched = torch.cdist(points[:, None], grid @ corners).amin((1, 2))
    assert (distance <= searched + 1e-9).all() and (searched - distance < 0.02).all()
    flat = torch.tensor([[[0.0, 0], [1, 0], [2, 0]]])
    found = nearest_weights(flat, torch.tensor([[1.5, 1.0]]))
    assert found[1] == 1 and found[0].isfinite().all()


def test_triangles_that_cover_nothing():
    flat = torch.tensor([[[0.0, 0], [5, 5], [9, 9]], [[1, 1], [1, 1], [1, 1]], [[0, 0], [float("nan"), 1], [5, 0]]])
    outside = torch.tensor([[[-9.0, 0], [-1, 5], [-9, 9]]])
    assert coverage(torch.cat([flat, outside]), 8, 8).sum() == 0
    assert coverage(flat[:0], 8, 8).sum() == 0


def test_what_a_camera_sees():
    """Two slanted squares, one before half of the other: depths and points are those of the rays."""
    quad = torch.tensor([[0, 1, 2], [0, 2, 3]])
    back = torch.tensor([[-2.0, -2, 0.5], [2, -2, -0.5], [2, 2, -0.5], [-2, 2, 0.5]])
    front = torch.tensor([[-2.0, -2, 1.0], [0, -2, 1.0], [0, 2, 1.3], [-2, 2, 1.3]])
    mesh = Mesh(torch.cat([back, front]), torch.cat([quad, quad + 4]))
    pose = look_at(torch.tensor([0.3, -0.4, 5.0]), torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]))
    camera = Camera.perspective(40, 30, 0.6, pose)
    seen = see_mesh(mesh, camera)
    assert (seen.faces >= 0).all()
    points = (mesh.vertices[mesh.faces[seen.faces.view(-1)]] * seen.weights.view(-1, 3, 1)).sum(1)
    pixels, depths = camera.project(points)
    torch.testing.assert_close(pixels, camera.pixel_centers(), atol=1e-3, rtol=0)
    torch.testing.assert_close(depths, seen.z_depths.view(-1), atol=1e-4, rtol=0)
    is_front = seen.faces.view(-1) >= 2
    assert is_front.float().mean() == pytest.approx(0.5, abs=0.15)
    assert torch.equal(is_front, points[:, 2] > 0.6)
    assert (points[is_front, 0] <= 1e-4).all()
    away = see_mesh(
        mesh, Camera.perspective(8, 8, 0.6, look_at(pose[:3, 3], pose[:3, 3] * 2, torch.tensor([0.0, 1, 0])))
    )
    assert (away.faces == -1).all() and away.z_depths.isinf().all()
    assert camera.model is CameraModel.PINHOLE


def test_between_pixels():
    """A picture that is linear in x and y is found at any place within the outermost centres, and held outside."""
    y, x = torch.meshgrid(torch.arange(5) + 0.5, torch.arange(7) + 0.5, indexing="ij")
    places = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([6.0, 4.0]) + 0.5
    torch.testing.assert_close(bilinear(torch.stack([x, 10 * y], -1), places), places * torch.tensor([1.0, 10.0]))
    corner = bilinear(torch.stack([x, y], -1), torch.tensor([[0.0, 0.0], [7.0, 5.0]]))
    torch.testing.assert_close(corner, torch.tensor([[0.5, 0.5], [6.5, 4.5]]))
    whole = bilinear((20 * x[..., None]).to(torch.uint8), torch.tensor([[3.0, 2.0]]))
    torch.testing.assert_close(whole, torch.tensor([[60.0]]))
