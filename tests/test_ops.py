"""Ops with and without torch's dispatcher: the same numbers, gradients and changes in place."""

import pytest
import torch
from polyfield.cuda.ops import eager
from polyfield.cuda.sh_basis import sh_basis
from polyfield.cuda.sparse_adam import sparse_adam_
from torch.utils._python_dispatch import TorchDispatchMode


class Watched(TorchDispatchMode):
    """Notes the names of ops that the dispatcher sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.name())
        return function(*args, **(kwargs or {}))


def directions():
    unit = torch.nn.functional.normalize(torch.randn(7, 3, dtype=torch.float64), dim=1)
    return unit.requires_grad_()


def test_what_watches_sees_the_op_and_the_same_numbers():
    x = directions()
    plain = sh_basis(x, 3)
    (wanted,) = torch.autograd.grad(plain.square().sum(), x)
    with Watched() as mode:
        seen = sh_basis(x, 3)
        (found,) = torch.autograd.grad(seen.square().sum(), x)
    assert {"polyfield::sh_basis", "polyfield::sh_basis_backward"} <= set(mode.seen)
    assert torch.equal(seen, plain) and torch.equal(found, wanted)


def test_compiled():
    x = directions()
    compiled = torch.compile(lambda x: sh_basis(x, 2) * 2, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), sh_basis(x, 2) * 2)


def test_nothing_is_recorded_without_need():
    assert not sh_basis(directions().detach(), 2).requires_grad
    with torch.no_grad():
        assert not sh_basis(directions(), 2).requires_grad


def test_a_second_derivative_is_refused():
    x = directions()
    (first,) = torch.autograd.grad(sh_basis(x, 2).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        first.sum().backward()


@pytest.mark.parametrize("watched", [False, True])
def test_changes_in_place_are_known_to_autograd(watched):
    param, grad, m, v = torch.ones(4), torch.ones(4), torch.zeros(4), torch.zeros(4)
    weight = torch.ones(4, requires_grad=True)
    product = (weight * param).sum()  # keeps param for its gradient
    with Watched() if watched else torch.no_grad():
        sparse_adam_(param, grad, m, v, step=1, lr=0.1)
    assert float(param[0]) == pytest.approx(0.9) and not grad.any()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_changes_in_place_in_inference_mode():
    with torch.inference_mode():
        param, grad, m, v = torch.ones(4), torch.ones(4), torch.zeros(4), torch.zeros(4)
        sparse_adam_(param, grad, m, v, step=1, lr=0.1)
    assert float(param[0]) == pytest.approx(0.9)


def test_plain_tensors_alone_are_eager():
    assert eager(torch.ones(2)) and eager(torch.nn.Parameter(torch.ones(2)))
    assert not eager(torch._subclasses.FakeTensorMode().from_tensor(torch.ones(2)))
    with Watched():
        assert not eager(torch.ones(2))
