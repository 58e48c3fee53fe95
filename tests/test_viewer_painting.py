"""How pictures are painted: the crop box, in pieces, and at which pace."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from polyfield.apps.commands.render import Channel
from polyfield.apps.viewer.pace import LADDER, Pace, reduced, sharper
from polyfield.apps.viewer.painting import Painting
from polyfield.apps.viewer.panel import depth_for_browser, png_bytes
from polyfield.geometry import Aabb, Rays
from polyfield.geometry.rays import clip_to_box

from .viewer_fakes import camera, stage

BOX = Aabb(torch.tensor([-0.3, -0.4, -0.2]), torch.tensor([0.5, 0.1, 0.6]))

# The crop box.


def rays_of(origins, directions, near=0.0, far=math.inf):
    origins, directions = torch.tensor(origins), torch.tensor(directions)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    count = len(origins)
    return Rays(origins, directions, torch.full((count,), near), torch.full((count,), far))


def test_crop_closed_form():
    cube = Aabb.cube(1.0)
    through, inside, missed, behind, along_outside, along_inside, edge = range(7)
    rays = rays_of(
        [[-3.0, 0, 0], [0.0, 0, 0], [-3.0, 2, 0], [3.0, 0, 0], [-3.0, 1.5, 0], [-3.0, 0.5, -0.5], [-2.0, -2, 0]],
        [[1.0, 0, 0], [0.0, 1, 0], [1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [1.0, 1, 0]],
    )
    cut = clip_to_box(rays, cube)
    assert (float(cut.near[through]), float(cut.far[through])) == (2, 4)
    assert (float(cut.near[inside]), float(cut.far[inside])) == (0, 1)
    assert (float(cut.near[along_inside]), float(cut.far[along_inside])) == (2, 4)
    assert float(cut.near[edge]) == pytest.approx(math.sqrt(2))
    for ray in (missed, behind, along_outside):
        assert cut.near[ray] == cut.far[ray] == rays.near[ray]


def test_crop_keeps_near_and_far():
    rays = rays_of([[-3.0, 0, 0]] * 2, [[1.0, 0, 0]] * 2, near=2.5, far=3.0)
    cut = clip_to_box(rays, Aabb.cube(1.0))
    assert cut.near.tolist() == [2.5, 2.5]
    assert cut.far.tolist() == [3, 3]
    rays = rays_of([[-3.0, 0, 0]], [[1.0, 0, 0]], near=5.0)
    cut = clip_to_box(rays, Aabb.cube(1.0))
    assert cut.near.tolist() == cut.far.tolist() == [5]


def test_crop_is_what_a_mask_would_be():
    generator = torch.Generator().manual_seed(2)
    origins = torch.randn(2000, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(2000, 3, generator=generator), dim=-1)
    rays = Rays(origins, directions, torch.zeros(2000), torch.full((2000,), 10.0))
    cut = clip_to_box(rays, BOX)
    t = torch.rand(2000, 200, generator=generator) * 10
    points = origins[:, None] + directions[:, None] * t[..., None]
    kept = (t > cut.near[:, None]) & (t < cut.far[:, None])
    margin = 1e-5
    surely_in = Aabb(BOX.low + margin, BOX.high - margin).contains(points)
    surely_out = ~Aabb(BOX.low - margin, BOX.high + margin).contains(points)
    assert kept[surely_in].all()
    assert not kept[surely_out].any()
    assert surely_in.any()


def test_crop_of_a_picture():
    half = Aabb(torch.tensor([-1.0, -1, -1]), torch.tensor([1.0, 1, 0]))
    pixels = paint(stage(), camera(64, 48), box=half)
    points = pixels.colors - 0.5
    seen = pixels.alphas > 0
    assert seen.any()
    assert points[seen][:, 2].max() <= 1e-5
    assert (paint(stage(), camera(64, 48)).colors[..., 2] > 0.6).any()


def test_crop_of_nothing():
    assert len(clip_to_box(rays_of(torch.zeros(0, 3).tolist() or [[0.0, 0, 0]], [[1.0, 0, 0]])[:0], BOX)) == 0


# Painting.


def paint(stage, camera, pieces=10**9, **options):
    painting = Painting(stage, camera, **options)
    while not painting.done:
        painting.advance(pieces)
    return painting.pixels()


@pytest.mark.parametrize("pieces", [1, 7, 100, 10**6])
def test_pieces_make_the_whole(pieces):
    size = (13, 7) if pieces == 1 else (32, 24)
    whole, parts = paint(stage(), camera(*size)), paint(stage(), camera(*size), pieces, normals=True)
    assert whole.colors.shape == (size[1], size[0], 3)
    for name in ("colors", "alphas", "depths"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))
    assert whole.normals is None
    assert parts.normals.shape == whole.colors.shape


def test_large_pieces_are_cut():
    set_up = stage()
    paint(set_up, camera(200, 100))
    assert set_up.renderer.calls == 3


def test_painting_leaves_the_renderer_as_it_was():
    set_up = stage()
    for fitting in (True, False):
        set_up.renderer.train(fitting)
        paint(set_up, camera())
        assert set_up.renderer.training is fitting
    set_up.renderer.train(True)
    set_up.renderer.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        paint(set_up, camera())
    assert set_up.renderer.training


def test_z_depths():
    painting = Painting(stage(), camera(33, 25))
    painting.advance(10**6)
    pixels = painting.pixels()
    z = painting.z_depths(pixels)
    assert z[0, 0] == math.inf
    assert float(z[12, 16]) == pytest.approx(2.0, abs=1e-5), "2.5 to the middle of a ball of radius 1/2"
    seen = z.isfinite()
    assert (z[seen] <= pixels.depths[seen] + 1e-6).all()


def test_depth_for_the_browser_is_coarse_and_near_enough():
    z = torch.rand(300, 1000) * 5
    z[0, :10] = math.inf
    coarse = depth_for_browser(z)
    assert max(coarse.shape) <= 480
    assert np.isfinite(coarse).all()
    assert np.abs(depth_for_browser(z[:, :400]) - z[:, :400].clamp(max=160).numpy()).max() < 0.0013
    packed = (coarse * 100_000).astype(np.int64) % 256
    assert packed.min() > 100
    assert packed.max() < 156, "the low byte hardly changes, so that the picture of depths is small"


def test_png_is_the_picture():
    pixels = paint(stage(), camera(16, 12))
    image = np.asarray(Image.open(io.BytesIO(png_bytes(pixels, Channel.COLOR))))
    assert image.shape == (12, 16, 3)
    assert np.abs(image / 255 - pixels.colors.clamp(0, 1).numpy()).max() <= 0.5 / 255 + 1e-6


# Pace.


def test_pace_holds_the_frame_time():
    pace = Pace(1e-6)
    for seconds_per_pixel in (1e-8, 1e-7, 1e-6, 5e-6):
        for _ in range(40):
            pace.learn(1000, 1000 * seconds_per_pixel)
        assert pace.seconds_per_pixel == pytest.approx(seconds_per_pixel, rel=1e-3)
        divisor = pace.divisor(1280 * 720, 0.1)
        assert 1280 * 720 / divisor**2 * seconds_per_pixel <= 0.1
        finer = [d for d in LADDER if d < divisor]
        assert not finer or 1280 * 720 / finer[-1] ** 2 * seconds_per_pixel > 0.1
    for _ in range(60):
        pace.learn(1, 100.0)
    assert pace.divisor(1280 * 720) == LADDER[-1]
    assert pace.chunk() == 64


def test_ladder_leads_down_to_sharp():
    for start in LADDER:
        divisor, steps = start, 0
        while divisor > 1:
            assert sharper(divisor) in LADDER
            assert sharper(divisor) < divisor
            divisor, steps = sharper(divisor), steps + 1
        assert steps <= 5
    assert reduced(3, 1000, 16) == (1, 62)
