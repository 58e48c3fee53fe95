"""Opacity laws: what a field's values mean to a ray."""

import pytest
import torch
from polyfield.cuda.compositing import composite
from polyfield.fields.protocols import FieldOutput
from polyfield.geometry import Rays, Samples
from polyfield.renderers.opacity import Neus, Volsdf, density, slopes_along

N = 400


def towards_a_plane(cosine=-1.0, count=N):
    """A ray from z = 1 that meets z = 0 under this cosine: its samples, distances and their gradients."""
    slope = torch.tensor([(1 - cosine**2) ** 0.5, 0.0, cosine])
    rays = Rays(torch.tensor([[0.0, 0, 1]]), slope[None], torch.zeros(1), torch.full((1,), torch.inf))
    ends = torch.linspace(0, 2 / abs(cosine), count + 1)
    samples = Samples(ends[:-1], ends[1:], torch.zeros(count, dtype=torch.int32), torch.tensor([0, count]).int())
    z = samples.positions(rays)[:, 2]
    return rays, samples, FieldOutput(z, gradients=torch.tensor([[0.0, 0, 1]]).expand(count, 3))


def sharp(sharpness, annealing=1.0):
    law = Neus(sharpness)
    law.annealing.fill_(annealing)
    return law


def weights_of(alphas, samples):
    return composite(alphas, [], samples.ray_offsets)[0]


def test_density():
    rays, samples, _ = towards_a_plane()
    sigma = torch.linspace(0, 5, N)
    alphas = density(FieldOutput(sigma), rays, samples)
    torch.testing.assert_close(alphas, 1 - torch.exp(-sigma * (samples.t_ends - samples.t_starts)))
    assert torch.equal(density.densities(sigma), sigma)


@pytest.mark.parametrize("cosine", [-1.0, -0.7, -0.3])
@pytest.mark.parametrize("sharpness", [30.0, 300.0])
def test_neus_is_unbiased(cosine, sharpness):
    """The weights are greatest where the ray meets the surface, whatever the angle, and a solid wall is opaque."""
    rays, samples, output = towards_a_plane(cosine)
    weights = weights_of(sharp(sharpness)(output, rays, samples), samples).detach()
    middle = (samples.t_starts + samples.t_ends) / 2
    assert weights.sum() > 0.99
    assert (middle[weights.argmax()] - 1 / abs(cosine)).abs() < 2 * (samples.t_ends - samples.t_starts).mean()


def test_neus_is_its_formula():
    rays, samples, output = towards_a_plane(-0.6, 50)
    dt, s = samples.t_ends - samples.t_starts, 40.0
    near, far = (torch.sigmoid(s * (output.values + side * 0.5 * 0.6 * dt)) for side in (1, -1))
    wanted = ((near - far) / near).clamp(0, 1)
    clear = near > 0.01
    torch.testing.assert_close(sharp(s)(output, rays, samples)[clear], wanted[clear], atol=2e-3, rtol=0)


def test_neus_is_blind_to_what_a_ray_leaves():
    rays, samples, output = towards_a_plane()
    leaving = FieldOutput(-output.values, gradients=-output.gradients)
    outside = leaving.values > 0.1
    assert sharp(200.0)(leaving, rays, samples)[outside].max() < 1e-4
    assert sharp(20.0, annealing=0.0)(leaving, rays, samples).max() >= 0


@pytest.mark.parametrize("cosine", [-0.9, -0.5, -0.1])
def test_slopes_between_neighbours_serve_as_gradients(cosine):
    """What is skipped by distances alone is what gradients would have skipped."""
    law = sharp(100.0)
    rays, samples, output = towards_a_plane(cosine)
    with_gradients = weights_of(law(output, rays, samples), samples)
    without = weights_of(law(FieldOutput(output.values), rays, samples), samples)
    torch.testing.assert_close(without, with_gradients, atol=2e-3, rtol=0)


def test_slopes_stay_within_rays():
    samples = Samples(
        torch.tensor([0.0, 1, 2, 0, 5]),
        torch.tensor([1.0, 2, 3, 1, 6]),
        torch.tensor([0, 0, 0, 1, 2]).int(),
        torch.tensor([0, 3, 4, 5]).int(),
    )
    slopes = slopes_along(torch.tensor([3.0, 2.5, 2.4, 9.0, 1.0]), samples)
    torch.testing.assert_close(slopes, torch.tensor([-0.5, -0.1, -0.1, -1.0, -1.0]))
    assert slopes_along(torch.tensor([1.0]), samples).tolist() == [-1.0]


def test_sharpness_is_learned():
    rays, samples, output = towards_a_plane()
    law = sharp(50.0)
    assert law.sharpness.item() == pytest.approx(50.0, rel=1e-5)
    depth = weights_of(law(output, rays, samples), samples) @ ((samples.t_starts + samples.t_ends) / 2 - 1).square()
    depth.backward()
    assert law.third.grad < -1e-6 or law.third.grad > 1e-6
    assert torch.isfinite(law.third.grad)


def test_volsdf_is_its_formula():
    rays, samples, output = towards_a_plane(-0.6)
    beta, d = 0.05, output.values
    sigma = torch.where(d < 0, 1 - torch.exp(d / beta) / 2, torch.exp(-d / beta) / 2) / beta
    wanted = 1 - torch.exp(-sigma * (samples.t_ends - samples.t_starts))
    law = Volsdf(beta)
    torch.testing.assert_close(law(output, rays, samples), wanted, atol=1e-6, rtol=1e-5)
    assert weights_of(law(output, rays, samples), samples).sum() > 0.99
    law(output, rays, samples).sum().backward()
    assert torch.isfinite(law.third.grad)
    assert law.third.grad != 0


@pytest.mark.parametrize("law", [sharp(100.0), Volsdf(0.01)])
def test_densities_for_the_occupancy(law):
    distances = torch.linspace(-0.5, 0.5, 101)
    found = law.densities(distances).detach()
    assert found[0].item() == pytest.approx(100.0, rel=1e-3)
    assert found[-1] < 1e-6
    assert (found.diff() <= 0).all()
    torch.testing.assert_close(law.densities(distances, 0.1)[10:], found[:-10], atol=2e-3, rtol=1e-3)
