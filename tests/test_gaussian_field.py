"""Gaussians asked at points: closed forms along a ray, all against all, cells that follow the parameters."""

import math

import pytest
import torch
from polyfield.fields import gaussian_cells
from polyfield.fields.gaussians import GaussianField
from polyfield.fields.protocols import Distance, Field, Primitives
from polyfield.geometry import Aabb, Camera, Gaussians
from polyfield.geometry import transforms as tf
from polyfield.geometry.occupancy import OccupancyGrid
from polyfield.geometry.transforms import quaternion_to_matrix
from polyfield.renderers.background import FixedBackground
from polyfield.renderers.opacity import density
from polyfield.renderers.splat import SplatRenderer
from polyfield.renderers.volume import MarchConfig, VolumeRenderer


def random_gaussians(count=300, seed=0, smallest=0.02, degree=2):
    g = torch.Generator().manual_seed(seed)
    scales = smallest * (1 + 9 * torch.rand(count, 3, generator=g) ** 2)
    return Gaussians(
        torch.rand(count, 3, generator=g) * 2 - 1,
        torch.randn(count, 4, generator=g),
        scales.log(),
        torch.randn(count, generator=g),
        0.3 * torch.randn(count, (degree + 1) ** 2, 3, generator=g),
    )


def field_of(gaussians):
    return GaussianField(gaussians, Aabb.cube(1.0))


def all_against_all(field, points):
    g = field.gaussians()
    local = torch.einsum("gji,ngj->ngi", quaternion_to_matrix(g.quats), points[:, None] - g.means) / g.scales
    square = local.square().sum(-1)
    strengths = -torch.log(1 - g.opacities) / (math.sqrt(2 * math.pi) * g.scales.amin(-1))
    return torch.where(square <= 9, strengths * torch.exp(-square / 2), 0).sum(1)


def test_is_what_it_says():
    field = field_of(random_gaussians())
    assert isinstance(field, Field)
    assert isinstance(field, Primitives)
    assert not isinstance(field, Distance)


@pytest.mark.parametrize("opacity", [0.05, 0.5, 0.95])
def test_a_ray_through_the_middle_is_absorbed_as_the_ellipse_is(opacity):
    quats, scales = torch.tensor([[0.3, -0.5, 0.7, 0.2]]), torch.tensor([[0.3, 0.05, 0.2]])
    logit = torch.tensor([math.log(opacity / (1 - opacity))])
    field = field_of(Gaussians(torch.tensor([[0.1, 0.2, -0.1]]), quats, scales.log(), logit, torch.zeros(1, 1, 3)))
    axis = quaternion_to_matrix(quats)[0, :, 1]
    t = torch.linspace(-0.2, 0.2, 4001)
    sigma = field.query(field.means[0].detach() + t[:, None] * axis).values.detach()
    absorbed = 1 - torch.exp(-sigma.sum() * 1e-4)
    assert abs(float(absorbed) - opacity) < 0.005, "but for what lies beyond 3 standard deviations"


def test_all_against_all(monkeypatch):
    field = field_of(random_gaussians())
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1)) * 3 - 1.5
    wanted = all_against_all(field, points)
    assert (wanted > 0).float().mean() > 0.2
    torch.testing.assert_close(field.query(points).values, wanted, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(gaussian_cells, "PAIRS", 100)  # in many parts it is the same
    torch.testing.assert_close(field.query(points).values, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["one", "flat", "huge", "same place", "far apart"])
def test_shapes_that_are_hard_to_sort(change):
    g = random_gaussians(1 if change == "one" else 200)
    if change == "flat":
        g.log_scales[:, 0] = math.log(1e-6)
    if change == "huge":
        g.log_scales[::7] = math.log(30.0)
    if change == "same place":
        g.means[:] = 0.25
    if change == "far apart":
        g.means[::3] *= 1e4
    field = field_of(g)
    points = torch.cat([g.means + 0.01, torch.rand(500, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1])
    torch.testing.assert_close(field.query(points).values, all_against_all(field, points), rtol=2e-3, atol=1e-3)
    cells = field.cells()
    assert len(cells.members) <= gaussian_cells.ENTRIES * max(len(field), 1) or cells.side == 1


def test_no_gaussians():
    field = field_of(random_gaussians()[:0])
    output = field.query(torch.rand(5, 3), torch.nn.functional.normalize(torch.rand(5, 3), dim=1), gradients=True)
    assert output.values.tolist() == [0] * 5
    assert not output.colors.any() and not output.gradients.any()


def test_colors_of_one_are_those_of_its_harmonics():
    g = random_gaussians(1, degree=1)
    field = field_of(g)
    directions = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    x, y, z = directions.unbind(1)
    basis = torch.stack([torch.full_like(x, 0.28209479), *(0.48860251 * v for v in (-y, z, -x))], 1)
    wanted = (basis @ g.sh[0] + 0.5).clamp(0, 1)
    torch.testing.assert_close(field.query(g.means.expand(4, 3), directions).colors, wanted)


def test_cells_follow_the_parameters():
    field = field_of(random_gaussians())
    points = torch.rand(300, 3) * 2 - 1
    first = field.cells()
    field.query(points)
    assert field.cells() is first, "nothing changed"
    with torch.no_grad():
        field.logit_opacities += 1
    assert field.cells() is first, "opacities move nothing"
    with torch.no_grad():
        field.means += 0.5
    torch.testing.assert_close(field.query(points).values, all_against_all(field, points), rtol=1e-4, atol=1e-4)
    assert field.cells() is not first
    field.load_state_dict(field_of(random_gaussians(50, seed=4)).state_dict())
    torch.testing.assert_close(field.query(points).values, all_against_all(field, points), rtol=1e-4, atol=1e-4)


def test_gradients_against_finite_differences():
    """In float64, of points and of every parameter, away from where Gaussians end."""
    gaussians = random_gaussians(4, degree=1)
    g = Gaussians(*(t.double() for t in vars(gaussians).values()))
    field = field_of(g).double()
    points = g.means + 0.3 * g.scales.amin(-1, keepdim=True)
    directions = torch.nn.functional.normalize(points, dim=1)
    inputs = [p.detach().clone().requires_grad_() for p in (*field.parameters(), points)]
    names = [name for name, _ in field.named_parameters()]

    def ask(*inputs):
        values = dict(zip(names, inputs[:-1], strict=True))
        # Finite differences move parameters in place of the module's: cells are made anew for each.
        with torch.nn.utils.stateless._reparametrize_module(field, values):
            field._cells = None
            output = field.query(inputs[-1], directions, gradients=True)
        return output.values, output.gradients, output.colors

    assert torch.autograd.gradcheck(ask, inputs, eps=1e-7, atol=1e-3, rtol=1e-3)


def test_marched_it_looks_as_it_does_rasterized():
    """Small round Gaussians, apart from each other: both renderers show nearly the same."""
    g = random_gaussians(60, smallest=0.05, degree=0)
    g.log_scales[:] = math.log(0.08)
    field = field_of(g)
    camera = Camera.perspective(48, 48, 0.8, tf.orbit(torch.zeros(3), 3.0, 1, 0.3, torch.tensor([0.0, 0, 1]))[0])
    occupancy = OccupancyGrid(32, 1, 1.0)
    march = VolumeRenderer(occupancy, density, FixedBackground((0.0, 0.0, 0.0)), MarchConfig(steps_per_diagonal=256))
    marched = march.eval().render(field, camera).pixels
    splats = SplatRenderer((0.0, 0.0, 0.0)).eval().render(field, camera).pixels
    assert (marched.alphas - splats.alphas).abs().mean() < 0.05
    assert (marched.colors - splats.colors).abs().mean() < 0.05
    both = (marched.alphas > 0.6) & (splats.alphas > 0.6)
    assert both.float().mean() > 0.05
    assert (marched.depths - splats.depths)[both].abs().median() < 0.05
