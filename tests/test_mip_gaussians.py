"""Mip-Splatting's filter in space: a convolution that keeps masses, as wide as photographs are coarse."""

import torch
from polyfield.cuda.gaussians import render_gaussians
from polyfield.fields.gaussians import GaussianField
from polyfield.fields.mip_gaussians import MipGaussianField, footprints
from polyfield.geometry import Aabb, Camera
from polyfield.geometry import transforms as tf

from tests.test_gaussian_field import random_gaussians


def camera(distance, width=40, focal=50.0):
    """Looks down on the origin from above."""
    pose = tf.look_at(torch.tensor([0.0, 0.0, distance]), torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]))
    K = torch.tensor([[focal, 0, width / 2], [0, focal, width / 2], [0, 0, 1]])
    return Camera(K, pose, width, width)


def test_covariances_add_up_and_masses_stay():
    g = random_gaussians(50)
    field = MipGaussianField(g, Aabb.cube(1.0))
    assert torch.allclose(field.gaussians().log_scales, g.log_scales, atol=1e-5)
    field.filters = torch.linspace(0, 0.3, 50)
    wide = field.gaussians()
    torch.testing.assert_close(wide.scales.square(), g.scales.square() + field.filters.square()[:, None])
    mass = lambda x: x.opacities * x.scales.prod(-1)  # noqa: E731
    torch.testing.assert_close(mass(wide), mass(g), rtol=1e-4, atol=1e-9)
    assert torch.equal(field.stored().log_scales, g.log_scales)


def test_a_query_sees_the_filtered_ones():
    g = random_gaussians(40)
    field = MipGaussianField(g, Aabb.cube(1.0))
    points = torch.rand(200, 3) * 2 - 1
    field.query(points)
    field.filters = torch.full((40,), 0.1)
    plain = GaussianField(field.gaussians().detach(), Aabb.cube(1.0))
    torch.testing.assert_close(field.query(points).values, plain.query(points).values)


def test_footprints_are_those_of_the_camera_that_sees_best():
    means = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [50.0, 0.0, 0.0]])
    near, far = camera(3.0), camera(6.0)
    torch.testing.assert_close(footprints(means, [near, far]), torch.tensor([3 / 50, 2 / 50, 1e-6]))
    torch.testing.assert_close(footprints(means, [far, near]), footprints(means, [near, far]))


def test_gradients_pass_through_the_filter():
    g = random_gaussians(30)
    field = MipGaussianField(g, Aabb.cube(1.0)).double()
    field.filters = torch.full((30,), 0.05, dtype=torch.float64)
    view = camera(4.0)

    def loss():
        x = field.gaussians()
        K, pose = view.K.double(), view.world_to_camera.double()
        drawn = render_gaussians(x.means, x.quats, x.log_scales, x.logit_opacities, x.sh, K, pose, 40, 40)
        return drawn.colors.square().sum() + drawn.alphas.sum()

    for parameter in (field.log_scales, field.logit_opacities):
        along = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        (slope,) = torch.autograd.grad(loss(), parameter)
        values = []
        with torch.no_grad():
            for h in (1e-5, -2e-5):
                parameter.add_(along, alpha=h)
                values.append(float(loss()))
            parameter.add_(along, alpha=1e-5)
        torch.testing.assert_close(float((slope * along).sum()), (values[0] - values[1]) / 2e-5, rtol=2e-2, atol=1e-3)


def test_any_number_loads():
    one, other = (MipGaussianField(random_gaussians(n), Aabb.cube(1.0)) for n in (20, 35))
    one.filters = torch.rand(20)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.filters, one.filters) and len(other) == 20
