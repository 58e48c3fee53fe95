"""The ray-marching renderer against scenes whose pictures are known in closed form."""

import math

import pytest
import torch
from polyfield.fields.protocols import FieldOutput
from polyfield.geometry import Aabb, Camera, Rays
from polyfield.geometry.occupancy import OccupancyGrid
from polyfield.geometry.transforms import look_at
from polyfield.renderers.background import FixedBackground, LearnedBackground, RandomBackground
from polyfield.renderers.opacity import density
from polyfield.renderers.volume import MarchConfig, VolumeRenderer


class Ball:
    """Constant density inside a ball, coloured by position."""

    def __init__(self, radius=0.5, sigma=8.0):
        self.bounds, self.radius, self.sigma = Aabb.cube(1.0), radius, sigma

    def query(self, points, directions=None, *, gradients=False):
        r = points.norm(dim=-1)
        values = self.sigma * (r < self.radius).float()
        colors = None if directions is None else (points + 1) / 2
        return FieldOutput(values, -points / r[:, None].clamp(min=1e-6) if gradients else None, colors)


def renderer(field, steps=1024, background=(0.0, 0.0, 0.0), **changes):
    grid = OccupancyGrid(32, 1, 1.0)
    made = VolumeRenderer(grid, density, FixedBackground(background), MarchConfig(steps_per_diagonal=steps, **changes))
    grid.update(
        lambda p: (p.norm(dim=-1) < field.radius + 0.1).float() * 1e3,
        step=made.step,
        all_cells=True,
        generator=torch.Generator().manual_seed(0),
    )
    return made.eval()


def camera_of(width, height, focal):
    pose = look_at(torch.tensor([0.0, -2.0, 0.5]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return Camera(torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]), pose, width, height)


def rays_at(*offsets):
    n = len(offsets)
    origins = torch.tensor([[-2.0, y, 0.0] for y in offsets])
    return Rays(
        origins, torch.tensor([1.0, 0.0, 0.0]).expand(n, 3).contiguous(), torch.zeros(n), torch.full((n,), float("inf"))
    )


def test_opacity_and_depth_of_a_ball():
    ball = Ball()
    offsets = (0.0, 0.2, 0.4, 0.7)
    pixels = renderer(ball, min_alpha=0.0, min_transmittance=0.0).render(ball, rays_at(*offsets)).pixels
    chords = [2 * math.sqrt(max(0.25 - y * y, 0)) for y in offsets]
    wanted = torch.tensor([1 - math.exp(-8 * c) for c in chords])
    torch.testing.assert_close(pixels.alphas, wanted, atol=0.01, rtol=0)
    # E[t] inside = start + 1/sigma - c exp(-sigma c) / (1 - exp(-sigma c))
    for i, c in enumerate(chords[:3]):
        depth = 2 - c / 2 + 1 / 8 - c * math.exp(-8 * c) / (1 - math.exp(-8 * c))
        assert abs(float(pixels.depths[i]) - depth) < 0.01


def test_background_shines_through():
    ball = Ball()
    pixels = renderer(ball, background=(0.2, 0.4, 0.6)).render(ball, rays_at(0.9)).pixels
    torch.testing.assert_close(pixels.colors, torch.tensor([[0.2, 0.4, 0.6]]))
    assert pixels.alphas[0] == 0


def test_gradients_near_a_camera_fade():
    """With the square of the distance, up to where they are as they were; pictures stay the same."""

    class Kept(Ball):
        def query(self, points, directions=None, *, gradients=False):
            output = super().query(points, directions, gradients=gradients)
            if output.colors is not None:  # not at the first look
                output.values.requires_grad_()
                output.colors.requires_grad_()
                self.asked = output
            return output

    ball, got = Kept(), {}
    for reach in (0.0, 2.0):
        drawn = renderer(ball, near_gradients=reach).train().render(ball, rays_at(0.0, 0.2))
        drawn.pixels.colors.square().sum().backward()
        samples = drawn.samples
        got[reach] = ball.asked.values.grad, ball.asked.colors.grad, drawn.pixels.colors
    distances = (samples.t_starts + samples.t_ends) / 2
    assert distances.min() < 1.6 and distances.max() > 2.4, "on both sides of the reach"
    factors = (distances / 2).square().clamp(max=1)
    assert got[0.0][0].abs().min() > 0
    torch.testing.assert_close(got[2.0][0], got[0.0][0] * factors)
    torch.testing.assert_close(got[2.0][1], got[0.0][1] * factors[:, None])
    assert torch.equal(got[2.0][2], got[0.0][2])


def test_dropping_hidden_samples_changes_next_to_nothing():
    ball = Ball(sigma=60.0)
    exact = renderer(ball, min_alpha=0.0, min_transmittance=0.0).render(ball, rays_at(0.0, 0.3))
    quick = renderer(ball).render(ball, rays_at(0.0, 0.3))
    assert len(quick.samples) < 0.7 * len(exact.samples)
    torch.testing.assert_close(quick.pixels.colors, exact.pixels.colors, atol=2e-3, rtol=0)


def test_an_image_is_its_rays():
    ball = Ball()
    camera = camera_of(32, 24, 40.0)
    made = renderer(ball, chunk=100)
    image = made.render(ball, camera, normals=True).pixels
    flat = made.render(ball, camera.rays(), normals=True).pixels
    assert image.colors.shape == (24, 32, 3)
    assert image.depths.shape == image.alphas.shape == (24, 32)
    torch.testing.assert_close(image.colors.reshape(-1, 3), flat.colors)
    torch.testing.assert_close(image.alphas.reshape(-1), flat.alphas)
    center = image.normals[12, 16]
    assert float(center @ torch.nn.functional.normalize(camera.camera_to_world[:3, 3], dim=0).float()) > 0.95


def test_rendering_leaves_the_mode_as_it_was():
    ball = Ball()
    camera = camera_of(8, 8, 8.0)
    made = renderer(ball).train()
    made.render(ball, camera)
    assert made.training


def test_no_rays():
    ball = Ball()
    empty = rays_at()
    empty = Rays(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0))
    pixels = renderer(ball).render(ball, empty).pixels
    assert pixels.colors.shape == (0, 3)


def test_backgrounds():
    rays = rays_at(0.0, 0.1, 0.2)
    white = RandomBackground((1.0, 1.0, 1.0))
    assert torch.equal(white(rays, False), torch.ones(3, 3))
    torch.manual_seed(3)
    first = white(rays, True)
    assert first.shape == (3, 3)
    assert not torch.equal(first, white(rays, True))
    learned = LearnedBackground()
    learned(rays, True).sum().backward()
    assert learned.logits.grad.abs().max() > 0


@pytest.mark.parametrize("size", [1.0, 0.01])
def test_density_law(size):
    from polyfield.geometry import Samples

    samples = Samples(
        torch.tensor([0.0, 1.0]), torch.tensor([size, 1 + size]), torch.zeros(2).int(), torch.tensor([0, 2]).int()
    )
    alphas = density(FieldOutput(torch.tensor([0.0, 3.0])), rays_at(0.0), samples)
    torch.testing.assert_close(alphas, torch.tensor([0.0, 1 - math.exp(-3 * size)]))
