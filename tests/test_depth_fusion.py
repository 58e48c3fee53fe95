"""Fusion of depth maps: a sphere and a plane of known shape, colours, what nobody saw, nested boxes, bad input."""

import math

import pytest
import torch
from polyfield.geometry import Aabb, Camera, CameraModel, Pixels
from polyfield.geometry import transforms as tf
from polyfield.geometry.depth_fusion import blocks_with, fuse_depths
from polyfield.geometry.sparse_blocks import block_lattice

UP = torch.tensor([0.0, 0.0, 1.0])
RADIUS = 0.6


def around(count=12, radius=2.5, size=96, heights=(-0.9, 0.0, 0.9)):
    poses = [pose for height in heights for pose in tf.orbit(torch.zeros(3), radius, count, height, UP)]
    return [Camera.perspective(size, size, 0.7, pose) for pose in poses]


def sphere(camera, radius=RADIUS):
    """What a camera sees of a sphere in the middle: exact depths, colours x + 1/2."""
    rays = camera.rays()
    along = -(rays.origins * rays.directions).sum(-1)
    square = along**2 - rays.origins.square().sum(-1) + radius**2
    depths = along - square.clamp(min=0).sqrt()
    shape = (camera.height, camera.width)
    colors = (rays.origins + rays.directions * depths[:, None] + 0.5).view(*shape, 3)
    return Pixels(colors, (square > 0).float().view(shape), depths.view(shape))


def wall(camera, height=0.0):
    """What it sees of the plane z = height."""
    rays = camera.rays()
    depths = (height - rays.origins[:, 2]) / rays.directions[:, 2]
    shape = (camera.height, camera.width)
    return Pixels(alphas=(depths > 0).float().view(shape), depths=depths.view(shape))


def test_a_sphere_within_a_quarter_of_a_voxel():
    cameras, voxel = around(), 2 / 64
    mesh = fuse_depths(cameras, [sphere(c) for c in cameras], Aabb.cube(1.0), voxel)
    error = mesh.vertices.norm(dim=1) - RADIUS
    assert error.abs().mean() < 0.25 * voxel
    assert error.abs().max() < voxel
    assert ((mesh.normals * mesh.vertices).sum(1) / RADIUS).mean() > 0.97, "normals point outside"
    assert (mesh.colors - (mesh.vertices + 0.5).clamp(0, 1)).abs().mean() < 0.02
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(1).values
    assert (edges.unique(dim=0, return_counts=True)[1] == 2).all(), "seen from all sides, it is closed"


def test_other_lenses_do():
    cameras = [
        Camera(c.K * torch.tensor([[0.8], [0.8], [1.0]]) + torch.tensor([[0, 0, 9.6], [0, 0, 9.6], [0, 0, 0]]),
               c.camera_to_world, c.width, c.height, CameraModel.OPENCV, torch.tensor([0.1, 0.02, 1e-3, -1e-3]))
        for c in around()
    ]  # fmt: skip
    mesh = fuse_depths(cameras, (sphere(c) for c in cameras), Aabb.cube(1.0), 2 / 48)
    assert (mesh.vertices.norm(dim=1) - RADIUS).abs().mean() < 0.25 * 2 / 48


def test_noise_averages_out():
    """Sixty views, each off by half a voxel: the surface is off by a fraction of that."""
    cameras, voxel = around(20), 2 / 48
    g = torch.Generator().manual_seed(0)
    views = []
    for camera in cameras:
        seen = sphere(camera)
        noise = torch.randn(seen.depths.shape, generator=g) * voxel / 2
        views.append(Pixels(alphas=seen.alphas, depths=seen.depths + noise))
    mesh = fuse_depths(cameras, views, Aabb.cube(1.0), voxel)
    assert (mesh.vertices.norm(dim=1) - RADIUS).abs().mean() < 0.25 * voxel
    assert mesh.colors is None


def test_what_nobody_saw_has_no_surface():
    cameras = around(heights=(0.9,))
    mesh = fuse_depths(cameras, [wall(c) for c in cameras], Aabb.cube(1.0), 2 / 32)
    assert mesh.vertices[:, 2].abs().max() < 2 / 32, "neither below the plane nor at the border of the views"
    assert (mesh.normals[:, 2] > 0.9).all()
    one = around(1, heights=(0.3,))
    half = fuse_depths(one, [sphere(one[0])], Aabb.cube(1.0), 2 / 48)
    facing = (half.vertices * one[0].position).sum(1)
    assert (facing > -0.1).all(), "the back of what one camera saw is open"


def test_nested_boxes_reach_further():
    cameras = around(heights=(0.9,))
    near = fuse_depths(cameras, [wall(c) for c in cameras], Aabb.cube(0.25), 1 / 32)
    far = fuse_depths(cameras, [wall(c) for c in cameras], Aabb.cube(0.25), 1 / 32, cascades=3)
    assert near.vertices.abs().max() <= 0.25
    assert 0.9 < far.vertices[:, :2].abs().max() <= 1.0
    outside = far.vertices[(far.vertices[:, :2].abs() > 0.6).any(1)]
    assert len(outside) < 0.5 * len(far.vertices), "further out, triangles are larger"
    grid = torch.cartesian_prod(torch.linspace(-0.9, 0.9, 40), torch.linspace(-0.9, 0.9, 40))
    gaps = torch.cdist(grid, far.vertices[:, :2]).amin(1)
    assert gaps.max() < 3 / 16, "no gap where boxes meet"


def test_only_blocks_with_points_are_looked_at():
    bounds = Aabb(torch.tensor([-1.0, -0.5, 0.0]), torch.tensor([1.0, 0.7, 0.9]))
    points = bounds.low + torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * bounds.extent
    _, shape = block_lattice(bounds, 60)
    index = torch.cartesian_prod(*(torch.arange(s) for s in shape))
    size = bounds.extent / torch.tensor(shape)
    low = bounds.low + index * size
    wanted = ((points >= low[:, None]) & (points < (low + size)[:, None])).all(-1).any(1)
    assert torch.equal(blocks_with([points[:20], points[20:]], bounds, 60)(low + size / 2, size / 2), wanted)
    assert blocks_with([points + 9], bounds, 60) is None


def test_pixels_without_a_depth():
    """Zero depths and thin alphas see nothing; NaN where there is no alpha is no depth."""
    cameras = around()
    views = [sphere(c) for c in cameras]
    plain = fuse_depths(cameras, views, Aabb.cube(1.0), 2 / 32)
    zeros = [Pixels(v.colors, None, torch.where(v.alphas > 0, v.depths, 0.0)) for v in views]
    nans = [Pixels(v.colors, v.alphas, torch.where(v.alphas > 0, v.depths, math.nan)) for v in views]
    for other in (zeros, nans):
        mesh = fuse_depths(cameras, other, Aabb.cube(1.0), 2 / 32)
        assert torch.equal(mesh.vertices, plain.vertices)


def test_bad_input():
    camera = around(1)[0]
    view, box = sphere(camera), Aabb.cube(1.0)
    with pytest.raises(ValueError, match="fuse_depths: voxel, truncation, cascades: expected a positive voxel"):
        fuse_depths([camera], [view], box, 0.0)
    with pytest.raises(ValueError, match=r"fuse_depths: views: expected depths of shape \(96, 96\), got None"):
        fuse_depths([camera], [Pixels(view.colors)], box, 0.1)
    with pytest.raises(ValueError, match=r"expected depths of shape \(96, 96\), got \(96, 95\)"):
        fuse_depths([camera], [Pixels(depths=view.depths[:, 1:])], box, 0.1)
    with pytest.raises(ValueError, match="shorter"):
        fuse_depths([camera], [], box, 0.1)
    with pytest.raises(ValueError, match="fuse_depths: views: expected a surface inside the bounds, found none"):
        fuse_depths([camera], [view], Aabb(torch.full((3,), 5.0), torch.full((3,), 6.0)), 0.1)
