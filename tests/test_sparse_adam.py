import copy

import pytest
import torch
from polyfield.cuda.sparse_adam import sparse_adam_
from polyfield.fields.optimizer import Adam

from tests.reference import sparse_adam as reference

OPTIONS = dict(lr=0.01, beta1=0.9, beta2=0.99, eps=1e-15)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_state(*shape, dtype=torch.float64, share=0.1, seed=0):
    """param, grad (a share of it non-zero, in blocks and alone), exp_avg, exp_avg_sq."""
    g = generator(seed)
    param, grad, first, second = (torch.randn(*shape, generator=g, dtype=dtype) for _ in range(4))
    keep = torch.rand(*shape, generator=g) < share
    keep[: len(keep) // 8] = True
    keep[len(keep) // 2 :] &= torch.rand(*keep[len(keep) // 2 :].shape, generator=g) < 0.02
    return [param, grad * keep, first, second.abs()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("shape", [(0,), (1,), (17, 1), (1000, 2), (3, 7, 5), (50001,)])
def test_matches_the_reference(shape, dense, dtype):
    state = random_state(*shape, dtype=dtype)
    ours, wanted = copy.deepcopy(state), copy.deepcopy(state)
    atol, rtol = (1e-6, 1e-5) if dtype == torch.float32 else (1e-14, 1e-12)
    for step in (1, 2, 500):
        sparse_adam_(*ours, step=step, **OPTIONS, weight_decay=0.1, dense=dense)
        reference.sparse_adam_(*wanted, step=step, **OPTIONS, weight_decay=0.1, dense=dense)
        for got, want in zip(ours, wanted, strict=True):
            torch.testing.assert_close(got, want, atol=atol, rtol=rtol)
        ours[1].copy_(state[1])
        wanted[1].copy_(state[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 3, 12, 48])
def test_columns_with_rates_of_their_own(columns, dtype):
    ours = random_state(101, columns, dtype=dtype, share=0.5)
    apart = [x.clone() for x in ours]
    rates = torch.rand(columns, generator=generator(1), dtype=dtype)
    sparse_adam_(*ours, step=2, **OPTIONS, weight_decay=0.1, column_rates=rates)
    for k in range(columns):
        column = [x[:, k].contiguous() for x in apart]
        sparse_adam_(*column, step=2, **{**OPTIONS, "lr": OPTIONS["lr"] * float(rates[k])}, weight_decay=0.1)
        for a, b in zip(ours, column, strict=True):
            torch.testing.assert_close(a[:, k], b)
    with pytest.raises(ValueError, match="column_rates: expected a length that divides"):
        sparse_adam_(*random_state(7, 3, dtype=dtype), step=1, **OPTIONS, column_rates=torch.ones(5, dtype=dtype))


def test_closed_form_of_the_first_step():
    # m' = g and v' = g^2, so the first step has length lr whatever the gradient.
    param, grad = torch.zeros(4), torch.tensor([3.0, -1e-3, 0.0, 1e8])
    sparse_adam_(param, grad, torch.zeros(4), torch.zeros(4), step=1, lr=0.5)
    torch.testing.assert_close(param, torch.tensor([-0.5, 0.5, 0.0, -0.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_untouched_numbers_keep_their_bits_and_the_gradient_is_consumed(dtype):
    state = random_state(4099, dtype=dtype)
    before = copy.deepcopy(state)
    sparse_adam_(*state, step=3, **OPTIONS)
    untouched = before[1] == 0
    assert 0 < int(untouched.sum()) < 4099
    for k in (0, 2, 3):
        assert torch.equal(state[k][untouched], before[k][untouched])
        assert (state[k][~untouched] != before[k][~untouched]).all()
    assert not state[1].any()


def test_dense_is_adamw_and_keeps_the_gradient():
    ours, theirs = (torch.nn.Parameter(torch.randn(333, generator=generator())) for _ in range(2))
    options = dict(lr=0.01, eps=1e-8, weight_decay=0.1)
    adamw = torch.optim.AdamW([theirs], betas=(0.9, 0.99), **options)
    moments = torch.zeros(2, 333)
    for step in range(1, 20):
        theirs.grad = torch.randn(333, generator=generator(step)) * (step % 3 > 0)
        grad = theirs.grad.clone()
        adamw.step()
        sparse_adam_(ours, grad, *moments, step=step, beta1=0.9, beta2=0.99, **options, dense=True)
        assert torch.equal(grad, theirs.grad)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dense", [False, True])
def test_half_copy(dtype, dense):
    state = random_state(3001, dtype=torch.float32)
    special = [
        0.0,
        -0.0,
        1e-7,
        -6e-8,
        5.96e-8,
        2.9e-8,
        6.1e-5,
        65519.0,
        65520.0,
        -7e4,
        1e38,
        float("inf"),
        float("nan"),
    ]
    state[0][: len(special)] = torch.tensor(special)
    state[0][len(special) : 1000] *= torch.logspace(-9, 5, 1000 - len(special))
    half = state[0].to(dtype)
    before = half.clone()
    untouched = state[1] == 0
    sparse_adam_(*state, step=1, **{**OPTIONS, "lr": 1e-9}, half=half, dense=dense)
    numbers = ~state[0].isnan()
    assert half[~numbers].isnan().all()
    assert torch.equal(half[numbers].view(torch.int16), state[0].to(dtype)[numbers].view(torch.int16))
    if not dense:
        assert torch.equal(half[untouched & numbers], before[untouched & numbers])


def test_extreme_gradients():
    grad = torch.tensor([float("nan"), float("inf"), 1e30, 1e-30, -0.0, 0.0, 1.0])
    param, first, second = torch.zeros(7), torch.zeros(7), torch.zeros(7)
    sparse_adam_(param, grad, first, second, step=1, lr=0.1)
    assert param[0].isnan() and not param[1].isfinite()  # not hidden, and not spread
    assert param[2:].isfinite().all() and param[4] == 0 and param[5] == 0


def test_same_bits_for_any_number_of_threads():
    threads, found = torch.get_num_threads(), []
    try:
        for count in (threads, 1, 3):
            torch.set_num_threads(count)
            state = random_state(70001, dtype=torch.float32)
            sparse_adam_(*state, step=7, **OPTIONS)
            found.append(state)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_opcheck():
    state = random_state(40, dtype=torch.float32)
    arguments = (*state, state[0].bfloat16(), 1, 0.1, 0.9, 0.99, 1e-15, 0.0, False)
    torch.library.opcheck(torch.ops.polyfield.sparse_adam_.default, arguments)


def test_errors():
    a, b = torch.zeros(4), torch.zeros(5)
    with pytest.raises(ValueError, match=r"sparse_adam_: grad: expected shape \(4\), got \(5,\)"):
        sparse_adam_(a, b, a, a, step=1, lr=0.1)
    with pytest.raises(TypeError, match="sparse_adam_: exp_avg: expected float32, got float64"):
        sparse_adam_(a, a, a.double(), a, step=1, lr=0.1)
    with pytest.raises(TypeError, match="sparse_adam_: param: expected float32 or float64, got float16"):
        sparse_adam_(a.half(), a, a, a, step=1, lr=0.1)
    with pytest.raises(ValueError, match="sparse_adam_: step: expected a number from 1"):
        sparse_adam_(a, a, a, a, step=0, lr=0.1)
    with pytest.raises(ValueError, match="sparse_adam_: beta2: expected a number from 0 to 1"):
        sparse_adam_(a, a, a, a, step=1, lr=0.1, beta2=1.5)
    with pytest.raises(TypeError, match="sparse_adam_: half: expected bfloat16 or float16, got float32"):
        sparse_adam_(a, a, a, a, step=1, lr=0.1, half=a)
    with pytest.raises(TypeError, match="sparse_adam_: param: expected float32, got float64"):
        sparse_adam_(*[a.double()] * 4, step=1, lr=0.1, half=a.half())
    with pytest.raises(ValueError, match="sparse_adam_: param: expected a contiguous tensor"):
        sparse_adam_(torch.zeros(4, 4).T[1:], *[torch.zeros(3, 4)] * 3, step=1, lr=0.1)


# ---- the optimizer --------------------------------------------------------------------------------------------------


def model(half=None):
    table = torch.nn.Parameter(torch.randn(100, 2, generator=generator()))
    weight = torch.nn.Parameter(torch.randn(5, 3, generator=generator(1)))
    copies = None if half is None else [torch.empty(100, 2, dtype=half)]
    groups = [{"params": [table], "sparse": True, "half": copies}, {"params": [weight], "weight_decay": 0.01}]
    return table, weight, copies, Adam(groups, lr=0.05)


def work(table, weight, step):
    rows = torch.randint(100, (20,), generator=generator(step))
    ((table[rows] - 1).square().sum() + (weight.sum() - step) ** 2).backward()


def test_optimizer_owns_the_buffers_of_sparse_groups():
    table, weight, _, optimizer = model()
    address = table.grad.data_ptr()
    assert weight.grad is None
    for step in range(5):
        optimizer.zero_grad()
        assert weight.grad is None and table.grad.data_ptr() == address and not table.grad.any()
        work(table, weight, step)
        optimizer.step()
        assert not table.grad.any() and weight.grad.any()
    # A step left out: what was accumulated must not stay.
    work(table, weight, 9)
    optimizer.zero_grad()
    assert table.grad.data_ptr() == address and not table.grad.any()
    weight.grad = torch.ones_like(weight)
    optimizer.zero_grad(set_to_none=False)
    assert not weight.grad.any()


def test_optimizer_lowers_the_loss_and_runs_closures():
    table, weight, _, optimizer = model()
    before = float((table.detach() - 1).square().sum())

    def closure():
        optimizer.zero_grad()
        loss = (table - 1).square().sum() + weight.square().sum()
        loss.backward()
        return loss

    for _ in range(60):
        loss = optimizer.step(closure)
    assert float(loss.detach()) < 0.1 * before


@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_resume_is_exact(half):
    table, weight, copies, optimizer = model(half)
    for step in range(4):
        optimizer.zero_grad()
        work(table, weight, step)
        optimizer.step()
    saved = copy.deepcopy((table.detach(), weight.detach(), optimizer.state_dict()))
    table2, weight2, copies2, optimizer2 = model(half)
    with torch.no_grad():
        table2.copy_(saved[0])
        weight2.copy_(saved[1])
    optimizer2.load_state_dict(saved[2])
    for step in range(4, 8):
        for t, w, o in ((table, weight, optimizer), (table2, weight2, optimizer2)):
            o.zero_grad()
            work(t, w, step)
            o.step()
    assert torch.equal(table, table2) and torch.equal(weight, weight2)
    assert optimizer.state_dict()["state"][0]["step"] == 8 == optimizer2.state_dict()["state"][0]["step"]
    if half is not None:
        assert torch.equal(copies[0], table.detach().to(half)) and torch.equal(copies2[0], copies[0])


def test_half_copies_follow():
    table, weight, copies, optimizer = model(torch.float16)
    assert torch.equal(copies[0], table.detach().half())
    work(table, weight, 0)
    optimizer.step()
    assert torch.equal(copies[0], table.detach().half())
    with torch.no_grad():
        table.zero_()
    optimizer.refresh_halves()
    assert not copies[0].any()


def test_the_step_is_counted_per_parameter_and_lr_may_change():
    first, second = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    optimizer = Adam([first, second], lr=0.1)
    first.grad = torch.ones(3)
    optimizer.step()
    assert second not in optimizer.state or not optimizer.state[second]
    optimizer.param_groups[0]["lr"] = 0.2
    second.grad = torch.ones(3)
    first.grad = None
    optimizer.step()
    torch.testing.assert_close(first.detach(), torch.full((3,), -0.1))
    torch.testing.assert_close(second.detach(), torch.full((3,), -0.2))


def test_optimizer_errors():
    p = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="Adam: lr: expected a number from 0"):
        Adam([p], lr=-1.0)
    with pytest.raises(ValueError, match=r"Adam: betas\[1\]: expected"):
        Adam([p], betas=(0.9, 1.0))
    with pytest.raises(TypeError, match="Adam: params: expected float32 or float64, got float16"):
        Adam([torch.nn.Parameter(torch.zeros(3).half())])
    with pytest.raises(ValueError, match=r"Adam: half: expected shape \(3\), got \(2,\)"):
        Adam([{"params": [p], "half": [torch.zeros(2).half()]}])
    with pytest.raises(ValueError, match=r"Adam: half: expected one tensor or None per parameter \(1\), got 2"):
        Adam([{"params": [p], "half": [None, None]}])
