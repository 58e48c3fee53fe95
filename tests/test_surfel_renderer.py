"""Surfels as the renderer draws them, and the two losses that look at their depths and normals."""

import math
from dataclasses import replace

import pytest
import torch
from polyfield.fields.gaussian_init import from_points
from polyfield.fields.gaussians import GaussianField
from polyfield.fields.surfels import LOG_THICKNESS, plane_normals, surfels, turning_z_to
from polyfield.geometry import Aabb, Camera, CameraModel, Pixels
from polyfield.geometry.transforms import quaternion_to_matrix
from polyfield.renderers.losses.depth_distortion import DepthDistortion
from polyfield.renderers.losses.normal_consistency import NormalConsistency, depth_normals
from polyfield.renderers.protocols import Step
from polyfield.renderers.surfels import SurfelConfig, SurfelRenderer

from .test_splat_renderer import camera, wall

BLACK = (0.0, 0.0, 0.0)
COARSE = {"spacing": 0.2}  # discs of several pixels, so that they themselves are seen and not the pixels' own Gaussians


def floor(view):
    """Depths along the rays of ``view`` to the plane z = 0."""
    rays = view.rays()
    return (-rays.origins[:, 2] / rays.directions[:, 2]).view(view.height, view.width)


def test_depths_and_normals_are_those_of_the_plane():
    view, field = camera(), wall(**COARSE)
    wanted = floor(view)
    for median in (False, True):
        pixels = SurfelRenderer(BLACK).eval().render(field, view, normals=True, median_depths=median).pixels
        solid = pixels.alphas > 0.98
        assert solid.float().mean() > 0.15
        assert (pixels.depths - wanted)[solid].abs().quantile(0.95) < 1e-4
        torch.testing.assert_close(pixels.normals[solid], torch.tensor([0.0, 0, 1]).expand(int(solid.sum()), 3))
    assert not pixels.depths[pixels.alphas < 0.4].any(), "no median where light is not halved"


@pytest.mark.parametrize("median", [False, True])
def test_a_fit_sees_geometry_if_told_so(median):
    field = wall(**COARSE)
    for parameter in field.parameters():
        parameter.grad = torch.zeros_like(parameter)
    plain = SurfelRenderer(BLACK).train().render(field, camera())
    assert plain.pixels.depths is None and plain.distortions is None and plain.mean_normals is None
    render = SurfelRenderer(BLACK, SurfelConfig(median_depth=median), geometry=True).train().render(field, camera())
    solid = render.pixels.alphas > 0.98
    assert (render.pixels.depths - floor(camera()))[solid].abs().quantile(0.95) < 1e-4
    assert (render.distortions >= 0).all() and render.mean_normals.shape == (60, 80, 3)
    (render.pixels.depths.sum() + render.distortions.sum() + render.mean_normals.square().sum()).backward()
    assert all(bool(p.grad.any()) for p in (field.means, field.quats, field.log_scales, field.logit_opacities))


def test_what_it_refuses():
    renderer, field, view = SurfelRenderer(BLACK), wall(), camera()
    with pytest.raises(ValueError, match="SurfelRenderer: view: expected a Camera, got Rays; draw whole images"):
        renderer.render(field, view.rays())
    bent = replace(view, model=CameraModel.FISHEYE, distortion=torch.zeros(4))
    with pytest.raises(ValueError, match="SurfelRenderer: view: expected no distortion and a lens pinhole, got a"):
        renderer.render(field, bent)


def test_normals_of_depths():
    """Of a plane, exactly; none at the border and beside pixels without depth."""
    view = camera()
    depths = floor(view).clone()
    depths[20, 30] = 0
    found = depth_normals(depths, view)
    known = found.square().sum(-1) > 0
    assert not known[0].any() and not known[:, -1].any() and not known[20, 29] and not known[21, 30]
    assert known[1:-1, 1:-1].sum() == 58 * 78 - 4
    torch.testing.assert_close(found[known], torch.tensor([0.0, 0, 1]).expand(int(known.sum()), 3), atol=1e-3, rtol=0)
    assert not depth_normals(torch.ones(2, 5), Camera.perspective(5, 2, 0.9, torch.eye(4))).any()


def losses_of(field, **options):
    render = SurfelRenderer(BLACK, geometry=True).train().render(field, camera())
    step = Step(0, field, camera(), render, Pixels(), **options)
    return {"distortion": DepthDistortion(1.0)(step), "normals": NormalConsistency(1.0)(step)}


def test_what_the_losses_are_of():
    """Of a wall of discs in its plane next to nothing; they grow as discs are turned or a second wall stands behind."""
    flat, turned, two = wall(**COARSE), wall(**COARSE), wall(opacity=0.5, **COARSE)
    with torch.no_grad():
        turned.quats[:] = torch.tensor([math.cos(0.3), math.sin(0.3), 0.0, 0.0])
        two.means[::2, 2] -= 0.5
    flat, turned, two = losses_of(flat), losses_of(turned), losses_of(two)
    assert flat["distortion"] < 1e-7 and flat["normals"] < 1e-3
    assert turned["normals"] > 20 * flat["normals"] and two["distortion"] > 20 * flat["distortion"]


def test_losses_begin_late_and_say_what_they_miss():
    early = losses_of(wall(), spent=0.05)
    assert early["distortion"] == 0 and early["normals"] == 0
    turned = wall(**COARSE)
    with torch.no_grad():
        turned.quats[:] = torch.tensor([math.cos(0.3), math.sin(0.3), 0.0, 0.0])
    assert losses_of(turned, spent=0.15)["distortion"] > 0 and losses_of(turned, spent=0.15)["normals"] == 0
    render = SurfelRenderer(BLACK).train().render(turned, camera())
    step = Step(0, turned, camera(), render, Pixels())
    with pytest.raises(ValueError, match=r"depth_distortion: render: expected distortions, got none; use SurfelRender"):
        DepthDistortion()(step)
    with pytest.raises(ValueError, match=r"normal_consistency: render: expected depths and normals, got none"):
        NormalConsistency()(step)


def test_first_surfels_lie_in_the_surface_of_their_points():
    g = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(2000, 3, generator=g), dim=-1)
    made = surfels(from_points(points, torch.ones(2000, 3)))
    axes = quaternion_to_matrix(made.quats)[..., 2]
    assert ((axes * points).sum(-1).abs() > 0.95).float().mean() > 0.99
    assert (made.log_scales[:, 2] == LOG_THICKNESS).all() and (made.log_scales[:, :2] > -5).all()
    assert plane_normals(points[:5]).tolist() == [[0, 0, 1]] * 5
    for axis in (torch.eye(3), -torch.eye(3)):
        torch.testing.assert_close(
            quaternion_to_matrix(turning_z_to(axis))[..., 2].abs(), axis.abs(), atol=1e-6, rtol=0
        )


def test_no_surfels():
    field = GaussianField(from_points(torch.zeros(0, 3), torch.zeros(0, 3)), Aabb.cube(1.0))
    pixels = SurfelRenderer((0.2, 0.4, 0.6)).eval().render(field, camera(), normals=True).pixels
    assert not pixels.alphas.any() and pixels.depths.isfinite().all()
    assert torch.equal(pixels.colors, torch.tensor([0.2, 0.4, 0.6]).expand(60, 80, 3))
