import copy

import pytest
import torch
from polyfield.cuda.gaussians import render_gaussians
from polyfield.cuda.sh_adam import sh_adam_
from polyfield.fields.optimizer import Adam
from polyfield.fields.sh_factors import ShFactors

from tests.reference import sh_adam as reference
from tests.test_gaussians import scene

OPTIONS = dict(lr=0.01, beta1=0.9, beta2=0.99, eps=1e-15)


def random_state(count, bases, dtype=torch.float64, share=0.6, seed=0):
    """sh, factors (a share of the Gaussians was seen), exp_avg, exp_avg_sq."""
    g = torch.Generator().manual_seed(seed)
    sh, first, second = (torch.randn(count, bases, 3, generator=g, dtype=dtype) for _ in range(3))
    factors = torch.randn(count, 6, generator=g, dtype=dtype)
    factors[:, :3] = torch.nn.functional.normalize(factors[:, :3], dim=-1)
    factors[torch.rand(count, generator=g) > share, 3:] = 0
    return [sh, factors, first, second.abs()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degree, bases", [(0, 1), (0, 4), (1, 4), (1, 16), (2, 9), (3, 16), (4, 25)])
@pytest.mark.parametrize("count", [0, 1, 37])
def test_matches_the_reference(count, degree, bases, dtype):
    ours = random_state(count, bases, dtype)
    wanted = copy.deepcopy(ours)
    atol, rtol = (1e-5, 1e-5) if dtype == torch.float32 else (1e-12, 1e-11)
    sh_adam_(*ours, degree=degree, step=3, **OPTIONS)
    reference.sh_adam_(*wanted, degree=degree, step=3, **OPTIONS)
    for name, got, want in zip(("sh", "factors", "exp_avg", "exp_avg_sq"), ours, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=atol, rtol=rtol, msg=lambda m, name=name: f"{name}: {m}")


def test_columns_have_rates_of_their_own_and_the_unseen_keep_their_bits():
    state, plain = random_state(50, 4), random_state(50, 4)
    before, seen = copy.deepcopy(state), state[1][:, 3:].abs().sum(1) > 0
    rates = torch.tensor([1.0, 1, 1, *[0.25] * 9], dtype=torch.float64)
    sh_adam_(*state, degree=1, step=1, **OPTIONS, column_rates=rates)
    sh_adam_(*plain, degree=1, step=1, **OPTIONS)
    steps = (state[0] - before[0]) / (plain[0] - before[0])
    torch.testing.assert_close(steps[seen], rates.view(1, 4, 3).expand(int(seen.sum()), 4, 3))
    for k in (0, 2, 3):
        assert torch.equal(state[k][~seen], before[k][~seen])
    assert not state[1][:, 3:].any()


def test_same_bits_for_any_number_of_threads():
    threads, found = torch.get_num_threads(), []
    try:
        for count in (threads, 1, 3):
            torch.set_num_threads(count)
            state = random_state(40001, 4, torch.float32)
            sh_adam_(*state, degree=1, step=7, **OPTIONS)
            found.append(state)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("degree", [0, 2, 3])
def test_a_render_leaves_the_factors_of_its_gradient(degree):
    gaussians, K, pose = scene(90, degree=3)
    sh = gaussians[4].clone().requires_grad_()
    render_gaussians(*gaussians[:4], sh, K, pose, 40, 33, degree=degree).colors.square().sum().backward()
    buffers = (*(torch.zeros_like(x) for x in gaussians[:4]), torch.zeros(90, 6, dtype=torch.float64))
    inputs = [x.clone().requires_grad_() for x in gaussians]
    drawn = render_gaussians(*inputs, K, pose, 40, 33, degree=degree, grad_buffers=buffers)
    drawn.colors.square().sum().backward()
    torch.testing.assert_close(reference.gradient(buffers[4], 16, degree), sh.grad, atol=1e-10, rtol=1e-8)


def test_an_optimizer_steps_by_them():
    gaussians, K, pose = scene(60, degree=2, dtype=torch.float32)
    found = []
    for factored in (False, True):
        means, quats, scales, logits, sh = (torch.nn.Parameter(x.clone()) for x in gaussians)
        colors = ShFactors()
        group = {"params": [sh], "sparse": True, **({"factors": [colors]} if factored else {})}
        adam = Adam([{"params": [means, quats, scales, logits], "sparse": True}, group], lr=0.01)
        assert (sh.grad is None) == factored
        for degree in (0, 1, 2):
            last = colors.open(sh, degree) if factored else sh.grad
            buffers = (means.grad, quats.grad, scales.grad, logits.grad, last)
            drawn = render_gaussians(
                means, quats, scales, logits, sh, K, pose, 40, 33, degree=degree, grad_buffers=buffers
            )
            drawn.colors.square().sum().backward()
            adam.step()
        found.append(sh.detach())
    assert torch.equal(*found)


def test_two_passes_backward_need_a_step_between_them():
    gaussians, K, pose = scene(30, degree=1, dtype=torch.float32)
    inputs = [x.clone().requires_grad_() for x in gaussians]
    colors = ShFactors()

    def draw():
        buffers = (*(torch.zeros_like(x) for x in gaussians[:4]), colors.open(inputs[4], 1))
        return render_gaussians(*inputs, K, pose, 20, 20, grad_buffers=buffers).colors.sum()

    first, second = draw(), draw()
    first.backward()
    with pytest.raises(RuntimeError, match="expected factors that no other render has written to"):
        second.backward()
    with pytest.raises(RuntimeError, match=r"expected a step of the optimizer, or zero_grad\(\), between two passes"):
        colors.open(inputs[4], 1)
    colors.clear()
    assert not colors.open(inputs[4], 1).any()
    assert colors.open(inputs[4][:12], 0).shape == (12, 6)


def test_arguments_are_checked():
    state = random_state(5, 4)
    with pytest.raises(ValueError, match=r"sh_adam_: factors: expected shape \(5, 6\), got \(5, 3\)"):
        sh_adam_(state[0], state[1][:, :3], *state[2:], degree=1, step=1, lr=0.1)
    with pytest.raises(TypeError, match="sh_adam_: factors: expected float64, got float32"):
        sh_adam_(state[0], state[1].float(), *state[2:], degree=1, step=1, lr=0.1)
    with pytest.raises(ValueError, match="sh_adam_: degree: expected a number from 0 to 1, got 2"):
        sh_adam_(*state, degree=2, step=1, lr=0.1)
    with pytest.raises(ValueError, match=r"sh_adam_: column_rates: expected shape \(12\), got \(3,\)"):
        sh_adam_(*state, degree=1, step=1, lr=0.1, column_rates=torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="sh_adam_: sh: expected a contiguous tensor"):
        sh_adam_(state[0].transpose(0, 1).contiguous().transpose(0, 1), *state[1:], degree=1, step=1, lr=0.1)
