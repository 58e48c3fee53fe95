"""The contract of every field in ``fields/``: shapes, finite values, honest gradients, and files that bring it back."""

import importlib
import pkgutil

import pytest
import torch
from polyfield.fields.dense_grid import DenseGridConfig
from polyfield.fields.encoding_kinds import EncodingKind
from polyfield.fields.gaussian_init import from_points, random_points
from polyfield.fields.gaussians import GaussianField
from polyfield.fields.protocols import Field, FieldOutput
from polyfield.fields.signed_distance import SignedDistanceConfig
from polyfield.fields.unsigned_distance import UnsignedDistanceConfig
from polyfield.geometry import Aabb

from polyfield import fields


def field_configs():
    """Every ``<Name>Config`` whose ``build`` takes bounds, in the modules of the folder."""
    found = []
    for module in pkgutil.iter_modules(fields.__path__):
        members = vars(importlib.import_module(f"polyfield.fields.{module.name}"))
        for name, member in members.items():
            build = getattr(member, "build", None)
            if (
                name.endswith("Config")
                and member.__module__.endswith(module.name)
                and "bounds" in getattr(build, "__annotations__", {})
            ):
                found.append(member)
    return found


def gaussians(bounds):
    """Gaussians begin with points rather than a config: some at random, of all shapes."""
    drawn = from_points(*random_points(bounds, 400, torch.Generator().manual_seed(0)), opacity=0.5)
    built = GaussianField(drawn, bounds)
    with torch.no_grad():
        built.quats.normal_()
        built.log_scales += torch.randn(400, 3) * 0.5
        built.sh.normal_(std=0.2)
    return built


CONFIGS = field_configs()
ENCODED = {
    f"{config.__name__}-{kind.value}": config(encoding=kind, dense=DenseGridConfig(resolution=32)).build
    for config in (SignedDistanceConfig, UnsignedDistanceConfig)
    for kind in EncodingKind
}
BUILDS = {config.__name__: config().build for config in CONFIGS} | ENCODED | {"gaussians": gaussians}


@pytest.fixture(params=BUILDS)
def build(request):
    """Makes a field for some bounds."""
    return BUILDS[request.param]


@pytest.fixture
def field(build):
    torch.manual_seed(0)
    built = build(Aabb(torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([1.0, 2.0, 3.0])))
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 2 and parameter.shape[0] > 4096:  # tables start near zero: give them some shape
                parameter.uniform_(-0.5, 0.5)
    if hasattr(built, "encoding"):
        built.encoding.refresh()
    return built


def points(n, seed=0):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [2.0, 4.0, 4.0]
    ) + torch.tensor([-1.0, -2.0, -1.0])


def unit(n):
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(1)), dim=-1)


def test_there_are_fields():
    assert CONFIGS


def test_is_a_field(field):
    assert isinstance(field, Field)


@pytest.mark.parametrize("n", [0, 1, 37])
def test_shapes(field, n):
    output = field.query(points(n), unit(n), gradients=True)
    assert isinstance(output, FieldOutput)
    assert output.values.shape == (n,)
    assert output.colors.shape == (n, 3)
    assert output.gradients.shape == (n, 3)
    assert field.query(points(n)).colors is None
    assert field.query(points(n)).gradients is None


def test_finite_everywhere_and_colors_in_range(field):
    far = torch.tensor([[1e6, 0, 0], [-1e6, 1e6, 3], [0, 0, 0], [1, 2, 3], [-1, -2, -1]])
    output = field.query(torch.cat([points(100), far]), unit(105), gradients=True)
    for tensor in (output.values, output.colors, output.gradients):
        assert tensor.isfinite().all()
    assert output.colors.min() >= 0
    assert output.colors.max() <= 1


def test_directions_do_not_change_values(field):
    p = points(64)
    torch.testing.assert_close(field.query(p).values, field.query(p, unit(64)).values)
    torch.testing.assert_close(field.query(p).values, field.query(p, gradients=True).values, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_autograd(field):
    p = points(256).requires_grad_()
    (wanted,) = torch.autograd.grad(field.query(p).values.sum(), p)
    found = field.query(p.detach(), gradients=True).gradients
    scale = wanted.abs().amax()
    assert ((found - wanted).abs() / scale).max() < 0.02  # bfloat16 networks round both, each in its own order
    assert ((found - wanted).abs() / scale).median() < 2e-3


def test_parameters_get_gradients(field):
    output = field.query(points(512), unit(512))
    (output.values.mean() + output.colors.mean()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_saved_and_loaded_it_is_the_same(field, build, tmp_path):
    from polyfield.apps.checkpoint import load_tensors, save_tensors

    save_tensors(tmp_path / "field.safetensors", field.state_dict(), {})
    twin = build(field.bounds)
    twin.load_state_dict(load_tensors(tmp_path / "field.safetensors")[0])
    with torch.no_grad():
        a, b = (f.query(points(99), unit(99)) for f in (field, twin))
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.colors, b.colors)
