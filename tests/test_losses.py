"""Losses: closed forms, masks, and that each is finite, has a weight and a gradient."""

import importlib
import pkgutil
from dataclasses import fields as dataclass_fields
from dataclasses import replace

import pytest
import torch
from polyfield.fields.gaussian_init import from_points
from polyfield.fields.gaussians import GaussianField
from polyfield.fields.protocols import FieldOutput
from polyfield.geometry import Aabb, Camera, Pixels, Points, Rays, Samples
from polyfield.renderers import losses
from polyfield.renderers.losses.opacity import binary_entropy
from polyfield.renderers.losses.photometric import photometric
from polyfield.renderers.losses.ssim import SsimL1
from polyfield.renderers.protocols import Render, Step

R, S = 6, 24


def all_losses():
    for module in pkgutil.iter_modules(losses.__path__):
        members = vars(importlib.import_module(f"polyfield.renderers.losses.{module.name}")).values()
        yield from (m for m in members if isinstance(m, type) and m.__module__.endswith(f"losses.{module.name}"))


def step():
    g = torch.Generator().manual_seed(0)
    weights = (torch.rand(S, generator=g) * 0.2).requires_grad_()
    index = torch.arange(R).repeat_interleave(S // R).int()
    t = (torch.arange(S) % (S // R)).float()
    samples = Samples(t, t + 1, index, torch.arange(0, S + 1, S // R).int())
    alphas = torch.zeros(R).index_add(0, index.long(), weights)
    colors = alphas[:, None] * torch.rand(R, 3, generator=g)
    render = Render(
        Pixels(colors, alphas, alphas * 2),
        torch.rand(R, 3, generator=g),
        samples,
        weights,
        FieldOutput(weights, torch.ones(S, 3)),
        mean_normals=alphas[:, None] * torch.tensor([0.3, 0.0, 0.8]),
    )
    up = torch.tensor([0.0, 0.0, 1.0]).expand(R, 3)
    target = Pixels(torch.rand(R, 3, generator=g), torch.rand(R, generator=g), torch.full((R,), 0.7), up)
    rays = Rays(torch.zeros(R, 3), torch.ones(R, 3), torch.zeros(R), torch.ones(R))
    return Step(0, None, rays, render, target), weights


def image_step():
    """The same pixels as an image."""
    made, weights = step()
    image = lambda pixels: Pixels(pixels.colors.view(2, 3, 3), pixels.alphas.view(2, 3))  # noqa: E731
    render = Render(image(made.render.pixels), torch.tensor([0.2, 0.4, 0.6]))
    return replace(made, render=render, target=image(made.target)), weights


def distances_step():
    """Of a field of distances: its gradients matter wherever it was asked."""
    made, weights = step()
    slopes = weights[:, None] * torch.tensor([1.0, 2.0, -1.0])
    return replace(made, render=replace(made.render, output=FieldOutput(weights, slopes))), weights


def shape_step():
    """Points of a shape, whose distances are known."""
    made, weights = step()
    return replace(made, view=Points(torch.zeros(S, 3), torch.linspace(-1, 1, S))), weights


def slopes_step():
    """The same, with the gradients of distances."""
    made, weights = distances_step()
    up = torch.tensor([0.0, 0.0, 1.0]).expand(S, 3)
    return replace(made, view=Points(torch.zeros(S, 3), torch.linspace(-1, 1, S), up)), weights


class Ball(torch.nn.Module):
    """A dented sphere's distance, whose radius and dent are learned."""

    bounds, signed = Aabb.cube(), True

    def __init__(self):
        super().__init__()
        self.radius = torch.nn.Parameter(torch.tensor(0.5))
        self.dent = torch.nn.Parameter(torch.tensor(0.1))

    def query(self, points, directions=None, *, gradients=False):
        length = points.norm(dim=-1)
        values = length - self.radius + self.dent * torch.sin(9 * points[:, 0])
        wave = torch.stack([9 * torch.cos(9 * points[:, 0]), 0 * length, 0 * length], -1)
        slopes = points / length.clamp(min=1e-6)[:, None] + self.dent * wave
        return FieldOutput(values, slopes if gradients else None)


def field_step():
    """Of a field that a loss asks anew, with points that lie on its surface."""
    made, _ = step()
    field = Ball()
    rays = Rays(
        torch.tensor([[-2.0, 0.1, 0.2]]).expand(R, 3),
        torch.eye(3)[:1].expand(R, 3),
        torch.zeros(R),
        torch.full((R,), 9.0),
    )
    at = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(2)), dim=-1)
    output = field.query(made.render.samples.positions(rays) * 0.1 + 0.05, gradients=True)
    target = replace(made.target, alphas=torch.tensor([0.0, 0, 1, 1, 1, 0]), depths=torch.full((R,), 1.9))
    render = replace(made.render, output=output)
    known = Points(0.45 * at, normals=at)
    return replace(made, field=field, view=rays, render=render, target=target, known=known, spent=0.1), list(
        field.parameters()
    )


def primitives_step():
    """Of a field of Gaussians."""
    field = GaussianField(from_points(torch.eye(3), torch.eye(3)), Aabb.cube())
    made, _ = step()
    return replace(made, field=field), list(field.parameters())


def surfels_step():
    """An image with what surfels have of depths and normals."""
    made, weights = image_step()
    g = torch.Generator().manual_seed(1)
    view = Camera.perspective(6, 4, 0.9, torch.eye(4))
    spread = weights.reshape(4, 6)
    alphas = spread * 4
    normals = torch.nn.functional.normalize(torch.randn(4, 6, 3, generator=g), dim=-1)
    pixels = Pixels(None, alphas, 1 + spread)
    render = replace(made.render, pixels=pixels, distortions=spread.square(), mean_normals=normals)
    return replace(made, view=view, render=render, target=Pixels()), weights


STEPS = {
    "Curvature": field_step,
    "FreeSpace": field_step,
    "Sparsity": field_step,
    "SurfacePoints": field_step,
    "DepthDistortion": surfels_step,
    "Distance": shape_step,
    "Eikonal": distances_step,
    "NormalConsistency": surfels_step,
    "SsimL1": image_step,
    "MeanOpacity": primitives_step,
    "MeanScale": primitives_step,
    "Slope": slopes_step,
}
BY_RAYS = [loss for loss in all_losses() if loss.__name__ not in STEPS]


@pytest.mark.parametrize("loss", list(all_losses()), ids=lambda c: c.__name__)
def test_contract(loss):
    assert loss.__doc__
    assert next(f.name for f in dataclass_fields(loss)) == "weight"
    made, parameters = STEPS.get(loss.__name__, step)()
    one, two = loss(weight=1.0)(made), loss(weight=2.5)(made)
    assert one.shape == ()
    assert one.isfinite()
    torch.testing.assert_close(two, 2.5 * one)
    gradients = [g for g in torch.autograd.grad(one, parameters, allow_unused=True) if g is not None]
    assert gradients
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_squared_error_and_masks():
    a, b = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(photometric(a, b), torch.tensor((0.09 + 3) / 6))
    torch.testing.assert_close(photometric(a, b, torch.tensor([True, False])), torch.tensor(0.03))
    assert photometric(a, b, torch.tensor([False, False])) == 0


def test_huber_equals_the_squared_error_for_small_residuals_and_grows_linearly():
    zero = torch.zeros(1, 3)
    torch.testing.assert_close(photometric(zero, zero + 0.05, huber=0.1), photometric(zero, zero + 0.05))
    torch.testing.assert_close(photometric(zero, zero + 1.0, huber=0.1), torch.tensor(2 * 0.1 - 0.01))


def test_targets_with_alpha_lie_over_the_same_background():
    made, _ = step()
    wanted = made.target.colors * made.target.alphas[:, None] + made.render.background * (
        1 - made.target.alphas[:, None]
    )
    torch.testing.assert_close(made.target_colors, wanted)


def test_masked_pixels_of_an_image_touch_no_loss():
    made, weights = image_step()
    masks = torch.tensor([[True, False, True], [True, False, False]])
    loss = SsimL1()(replace(made, target=replace(made.target, masks=masks)))
    (gradient,) = torch.autograd.grad(loss, weights)
    counts = masks.view(-1).repeat_interleave(S // R)
    assert (gradient[~counts] == 0).all()
    assert (gradient[counts] != 0).any()


@pytest.mark.parametrize("loss", BY_RAYS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("has_alpha", [True, False])
def test_masked_pixels_touch_no_loss(loss, has_alpha):
    """A loss under a mask is the loss of the rays that count alone, and has no gradient elsewhere."""
    made, weights = step()
    masks = torch.tensor([True, False, True, True, False, False])
    target = replace(made.target, masks=masks, alphas=made.target.alphas if has_alpha else None)
    masked = loss(weight=1.0)(replace(made, target=target))
    (gradient,) = torch.autograd.grad(masked, weights, retain_graph=True)
    counts = masks.repeat_interleave(S // R)
    assert (gradient[~counts] == 0).all()
    assert (gradient[counts] != 0).any()

    per_ray = S // R
    kept = int(masks.sum())
    samples = Samples(
        made.render.samples.t_starts[counts],
        made.render.samples.t_ends[counts],
        torch.arange(kept).repeat_interleave(per_ray).int(),
        torch.arange(0, kept * per_ray + 1, per_ray).int(),
    )
    pixels = made.render.pixels
    render = Render(
        Pixels(pixels.colors[masks], pixels.alphas[masks], pixels.depths[masks]),
        made.render.background[masks],
        samples,
        weights[counts],
        mean_normals=made.render.mean_normals[masks],
    )
    alone = replace(target, masks=None)._map(lambda values: values[masks])
    torch.testing.assert_close(masked, loss(weight=1.0)(Step(0, None, made.view, render, alone)))

    nothing = loss(weight=1.0)(replace(made, target=replace(target, masks=torch.zeros(R, dtype=torch.bool))))
    assert nothing == 0


def test_opacity_is_least_at_the_extremes():
    assert binary_entropy(torch.tensor([1e-4, 1 - 1e-4]), torch.tensor([0.0, 1.0])).max() < 1e-3
    assert binary_entropy(torch.tensor([0.5]), torch.tensor([0.5])) > 0.6


def test_a_loss_says_what_it_misses():
    from polyfield.renderers.losses.distortion import Distortion
    from polyfield.renderers.losses.photometric import Photometric

    made, _ = step()
    with pytest.raises(ValueError, match="distortion: render: expected samples and weights, got none"):
        Distortion(1.0)(replace(made, render=replace(made.render, samples=None)))
    with pytest.raises(ValueError, match="photometric: target: expected colours"):
        Photometric()(replace(made, target=Pixels()))
    with pytest.raises(ValueError, match="expected a background for a target with alpha"):
        Photometric()(replace(made, render=replace(made.render, background=None)))
