"""The rasterizing renderer: depths, normals and pictures against closed forms; what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from polyfield.fields.gaussian_init import from_points
from polyfield.fields.gaussians import GaussianField
from polyfield.geometry import Aabb, Camera, CameraModel
from polyfield.geometry import transforms as tf
from polyfield.geometry.gaussians import SH_C0
from polyfield.renderers.splat import SplatConfig, SplatRenderer, lengthening

UP = torch.tensor([0.0, 0, 1])


def camera(width=80, height=60):
    return Camera.perspective(width, height, 0.9, tf.orbit(torch.zeros(3), 3.0, 5, 0.5, UP)[1])


def wall(normal_axis=2, spacing=0.08, opacity=0.99):
    """Flat Gaussians on a plane through the middle."""
    axis = torch.arange(-12.0, 13) * spacing
    across = torch.cartesian_prod(axis, axis)
    points = torch.zeros(len(across), 3)
    others = [k for k in range(3) if k != normal_axis]
    points[:, others] = across
    g = from_points(points, torch.full_like(points, 0.25), degree=0, opacity=opacity, share=0.8)
    g.log_scales[:, normal_axis] = math.log(1e-4)
    return GaussianField(g, Aabb.cube(1.0))


def test_depths_are_along_the_ray():
    """Of a slanted plane: where each ray meets it; expected and median alike, within the size of Gaussians."""
    view, field = camera(), wall()
    rays = view.rays()
    wanted = (-rays.origins[:, 2] / rays.directions[:, 2]).view(60, 80)
    renderer = SplatRenderer((0.0, 0.0, 0.0)).eval()
    for median in (False, True):
        pixels = renderer.render(field, view, median_depths=median).pixels
        solid = pixels.alphas > 0.98
        assert solid.float().mean() > 0.15
        assert (pixels.depths - wanted)[solid].abs().mean() < 0.1
    assert not pixels.depths[pixels.alphas < 0.4].any(), "no median where light is not halved"
    z = (rays.directions @ view.forward).view(60, 80)
    torch.testing.assert_close(1 / lengthening(view), z, atol=1e-5, rtol=1e-5)


def test_depth_of_one_gaussian_on_a_slanted_ray():
    """Exactly z times the ray's lengthening: seen at the image's corner."""
    view = camera()
    rays = view.rays(torch.tensor([[10.5, 8.5]]))
    place = rays.origins + rays.directions * 2.5
    g = from_points(place, torch.ones(1, 3), opacity=0.9)
    pixels = SplatRenderer((0.0, 0.0, 0.0)).eval().render(GaussianField(g, Aabb.cube(2.0)), view).pixels
    assert float(pixels.depths[8, 10]) == pytest.approx(2.5, rel=1e-4)
    # The blur spreads it: opacity at its middle is the peak's.
    assert float(pixels.alphas[8, 10]) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_normals_point_to_the_camera(axis):
    view, field = camera(), wall(axis)
    with torch.no_grad():
        field.quats[::2] = torch.tensor([0.0, 0, 0, 0]).index_fill(0, torch.tensor((axis + 1) % 3 + 1), 1.0)  # turned
    pixels = SplatRenderer((0.0, 0.0, 0.0)).eval().render(field, view, normals=True).pixels
    solid = pixels.alphas > 0.9
    wanted = torch.zeros(3)
    wanted[axis] = math.copysign(1.0, float(view.position[axis]))
    assert solid.any()
    assert ((pixels.normals[solid] * wanted).sum(-1) > 0.99).all()
    torch.testing.assert_close(pixels.normals[solid].norm(dim=-1), torch.ones(int(solid.sum())))


def test_colors_over_the_background():
    field = wall()
    pixels = SplatRenderer((0.0, 1.0, 0.5)).eval().render(field, camera()).pixels
    expected = 0.25 * pixels.alphas[..., None] + torch.tensor([0.0, 1.0, 0.5]) * (1 - pixels.alphas[..., None])
    torch.testing.assert_close(pixels.colors, expected, atol=1e-4, rtol=0)
    assert (SH_C0 * field.sh[:, 0] + 0.5 - 0.25).abs().max() < 1e-6


def test_backgrounds_are_random_while_fitting_only():
    renderer, field = SplatRenderer((1.0, 1.0, 1.0), random=True), wall()
    renderer.generator.manual_seed(0)
    first, second = (renderer.train().render(field, camera()).background for _ in range(2))
    assert not torch.equal(first, second)
    shown = renderer.eval().render(field, camera())
    assert torch.equal(shown.background, torch.ones(3))
    assert not shown.pixels.colors.requires_grad


def test_the_fit_adds_to_gradients_in_place():
    renderer, field = SplatRenderer((0.0, 0.0, 0.0)).train(), wall()
    for parameter in field.parameters():
        parameter.grad = torch.zeros_like(parameter)
    buffers = [p.grad.data_ptr() for p in field.parameters()]
    render = renderer.render(field, camera())
    assert render.pixels.depths is None
    render.pixels.colors.square().sum().backward()
    assert [p.grad.data_ptr() for p in field.parameters()] == buffers
    assert all(bool(p.grad.any()) for p in (field.means, field.sh, field.logit_opacities))


def test_blur_and_antialiasing():
    """From afar, a small Gaussian without anti-aliasing covers more than it should."""
    g = from_points(torch.zeros(1, 3), torch.ones(1, 3), opacity=0.9)
    g.log_scales[:] = math.log(0.002)
    field = GaussianField(g, Aabb.cube(1.0))
    plain, mip = (
        float(SplatRenderer((0.0,) * 3, SplatConfig(antialias=on)).eval().render(field, camera()).pixels.alphas.sum())
        for on in (False, True)
    )
    assert mip < 0.2 * plain


def test_no_gaussians():
    g = from_points(torch.zeros(0, 3), torch.zeros(0, 3))
    field = GaussianField(g, Aabb.cube(1.0))
    renderer = SplatRenderer((0.2, 0.4, 0.6)).eval()
    for options in ({}, {"normals": True}, {"median_depths": True}):
        pixels = renderer.render(field, camera(), **options).pixels
        assert not pixels.alphas.any()
        assert torch.equal(pixels.colors, torch.tensor([0.2, 0.4, 0.6]).expand(60, 80, 3))
        assert pixels.depths.isfinite().all()


def test_fisheye_is_drawn():
    view = replace(camera(), model=CameraModel.FISHEYE, distortion=torch.zeros(4))
    pixels = SplatRenderer((0.0, 0.0, 0.0)).eval().render(wall(), view).pixels
    rays = view.rays()
    wanted = (-rays.origins[:, 2] / rays.directions[:, 2]).view(60, 80)
    solid = pixels.alphas > 0.98
    assert solid.float().mean() > 0.15
    assert (pixels.depths - wanted)[solid].abs().mean() < 0.1


def test_what_it_refuses():
    renderer, field, view = SplatRenderer((0.0, 0.0, 0.0)), wall(), camera()
    with pytest.raises(ValueError, match="SplatRenderer: view: expected a Camera, got Rays; draw whole images"):
        renderer.render(field, view.rays())
    bent = replace(view, model=CameraModel.OPENCV, distortion=torch.tensor([0.1, 0, 0, 0]))
    with pytest.raises(ValueError, match="no distortion and a lens pinhole or fisheye, got a lens opencv; use undist"):
        renderer.render(field, bent)
    with pytest.raises(ValueError, match="got a lens equirectangular"):
        renderer.render(field, Camera.equirectangular(64, 32, torch.eye(4)))
