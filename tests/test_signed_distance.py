"""Signed distances: the sphere that they begin as, their gradients, and losses on these."""

import pytest
import torch
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.networks import MlpConfig
from polyfield.fields.protocols import Distance, Field
from polyfield.fields.signed_distance import SignedDistanceConfig
from polyfield.geometry import Aabb
from polyfield.renderers.losses.eikonal import Eikonal, eikonal

from .reference import hash_encode as reference

F64 = torch.float64
BOUNDS = Aabb(torch.tensor([-1.0, -1.5, -2.0]), torch.tensor([1.0, 1.5, 2.0]))
SMALL = SignedDistanceConfig(
    grid=HashGridConfig(levels=3, features=2, log2_size=9, base_resolution=4, finest_resolution=32),
    network=MlpConfig(width=16, hidden_layers=2),
    color=MlpConfig(width=16),
    geometry_features=4,
)


def points(n=200, seed=0):
    random = torch.Generator().manual_seed(seed)
    return BOUNDS.low + BOUNDS.extent * torch.rand(n, 3, generator=random)


def taught(dtype=F64, seed=0):
    """A field that is no sphere any more."""
    torch.manual_seed(seed)
    field = SMALL.build(BOUNDS).to(dtype)
    with torch.no_grad():
        field.encoding.table.normal_()
        field.network.weights[-1][0].normal_(std=0.05)
        for bias in field.network.biases:
            bias.normal_(std=0.1)
    return field


def test_it_is_a_distance_field():
    field = SMALL.build(BOUNDS)
    assert isinstance(field, Field)
    assert isinstance(field, Distance)
    assert field.signed


def test_it_begins_as_a_sphere():
    field, p = SMALL.build(BOUNDS), points()
    torch.testing.assert_close(field.distance(p), p.norm(dim=-1) - 0.5, atol=1e-6, rtol=0)
    torch.testing.assert_close(field.query(p, gradients=True).gradients, p / p.norm(dim=-1, keepdim=True))


def test_gradients_are_those_of_the_distances():
    field, p = taught(), points().double().requires_grad_()
    output = field.query(p, gradients=True)
    torch.testing.assert_close(output.values, field.query(p).values, atol=1e-12, rtol=0)
    (wanted,) = torch.autograd.grad(field.query(p).values.sum(), p)
    torch.testing.assert_close(output.gradients, wanted, atol=1e-9, rtol=1e-9)


def distances_in_torch(field, p):
    """The same distances from readable ops that can be differentiated twice."""
    unit = field.bounds.normalize(p)
    x = torch.cat([reference.hash_encode(unit, field.encoding.table, field.encoding.layout), 2 * unit - 1], -1)
    for layer, (weight, bias) in enumerate(zip(field.network.weights, field.network.biases, strict=True)):
        x = x @ weight.T + bias
        x = x.relu() if layer < len(field.network.weights) - 1 else x
    return p.norm(dim=-1) - 0.5 + x[:, 0]


def test_a_loss_on_gradients_needs_no_double_backward():
    field, p = taught(), points().double().requires_grad_()
    parameters = [field.encoding.table, *field.network.weights, *field.network.biases]
    (slopes,) = torch.autograd.grad(distances_in_torch(field, p).sum(), p, create_graph=True)
    wanted = torch.autograd.grad(eikonal(slopes), parameters, allow_unused=True)
    found = torch.autograd.grad(
        eikonal(field.query(p.detach(), gradients=True).gradients), parameters, allow_unused=True
    )
    assert wanted[0].abs().max() > 1e-3
    for name, (got, want) in enumerate(zip(found, wanted, strict=True)):
        zero = torch.zeros_like(parameters[name])
        torch.testing.assert_close(zero if got is None else got, zero if want is None else want, atol=1e-9, rtol=1e-7)


def test_colors_follow_normals():
    """Two points that differ in nothing but the direction they are looked at from, and their normal."""
    field, p = taught(torch.float32), points(8)
    directions = torch.nn.functional.normalize(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    output = field.query(p, directions)
    assert output.colors.shape == (8, 3)
    assert output.gradients is not None
    assert ((output.colors >= 0) & (output.colors <= 1)).all()
    assert not torch.allclose(output.colors, field.query(p, -directions).colors, atol=1e-4)


def test_a_shape_without_colors():
    from dataclasses import replace

    field = replace(SMALL, color=None).build(BOUNDS)
    assert field.color_network is None
    assert field.query(points(4), torch.eye(3)[[0, 1, 2, 0]]).colors is None


def test_eikonal():
    slopes = torch.tensor([[2.0, 0, 0], [0, 1.0, 0], [0, 0, 0.5]])
    assert eikonal(slopes).item() == pytest.approx((1 + 0 + 0.25) / 3)
    assert eikonal(torch.zeros(0, 3)) == 0


def test_eikonal_says_what_is_missing():
    from types import SimpleNamespace

    step = SimpleNamespace(render=SimpleNamespace(output=None))
    with pytest.raises(ValueError, match="eikonal: render: expected gradients of distances, got none"):
        Eikonal()(step)
