"""Moving, copying and dropping Gaussians: pictures stay, caps hold, and the optimizer's moments follow their rows."""

import math

import pytest
import torch
from polyfield.fields import density_control as control
from polyfield.fields.gaussian_init import from_points
from polyfield.fields.gaussians import NAMES, GaussianField
from polyfield.fields.optimizer import Adam
from polyfield.geometry import Aabb, Camera
from polyfield.geometry import transforms as tf
from polyfield.renderers.splat import SplatRenderer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted(count=200, seed=0):
    """A field whose every row has moments that name it: exp_avg is the row's number, exp_avg_sq its square."""
    g = generator(seed)
    points = torch.rand(count, 3, generator=g) - 0.5
    gaussians = from_points(points, torch.rand(count, 3, generator=g), degree=1)
    gaussians.logit_opacities[:] = torch.randn(count, generator=g)
    field = GaussianField(gaussians, Aabb.cube(1.0))
    optimizer = Adam([{"params": [getattr(field, name)], "sparse": True} for name in NAMES], lr=0.0)
    for name in NAMES:
        parameter = getattr(field, name)
        parameter.grad.normal_(generator=g)
    optimizer.step()
    for name in NAMES:
        rows = torch.arange(float(count)).view(-1, *[1] * (getattr(field, name).dim() - 1)) + 1
        optimizer.state[getattr(field, name)]["exp_avg"][:] = rows
        optimizer.state[getattr(field, name)]["exp_avg_sq"][:] = rows**2
    return field, optimizer


def moments(field, optimizer):
    """(G,) the row that each row's moments name; the same for all parameters and both moments."""
    found = []
    for name in NAMES:
        state = optimizer.state[getattr(field, name)]
        assert state["exp_avg"].shape == getattr(field, name).shape
        assert getattr(field, name).grad.shape == getattr(field, name).shape
        found += [
            state["exp_avg"].reshape(len(field), -1)[:, 0],
            state["exp_avg_sq"].reshape(len(field), -1)[:, 0].sqrt(),
        ]
    assert all(torch.equal(found[0], other) for other in found)
    return found[0]


def test_neighbours_in_space_become_neighbours_in_memory():
    field, optimizer = fitted(300)
    before, statistics = field.gaussians().detach(), control.Statistics(300, torch.device("cpu"))
    statistics.sums[:, 0] = torch.arange(300.0) + 1
    gaps = lambda: field.means.detach().diff(dim=0).norm(dim=1).mean()  # noqa: E731
    far = gaps()
    control.reorder(field, optimizer, statistics)
    assert gaps() < 0.4 * far
    rows = moments(field, optimizer)
    assert torch.equal(rows, statistics.sums[:, 0])
    for name in NAMES:
        assert torch.equal(getattr(field, name), getattr(before, name)[rows.long() - 1])
    steps_on(field, optimizer)


def steps_on(field, optimizer):
    """The optimizer knows the parameters that there are now, and no others."""
    known = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in known] == [id(getattr(field, name)) for name in NAMES]
    assert set(map(id, optimizer.state)) <= set(map(id, known))
    for p in known:
        p.grad.fill_(1.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    before = field.means.detach().clone()
    optimizer.step()
    assert len(field) == 0 or (field.means != before).all()


def picture(field):
    pose = tf.orbit(torch.zeros(3), 2.0, 1, 0.4, torch.tensor([0.0, 0, 1]))[0]
    return SplatRenderer((0.0, 0.0, 0.0)).eval().render(field, Camera.perspective(96, 96, 0.8, pose)).pixels


def test_one_copy_is_the_same():
    opacities, scales = torch.tensor([0.1, 0.9]), torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    new_opacities, new_scales = control.copies(opacities, scales, torch.ones(2))
    torch.testing.assert_close(new_opacities, opacities)
    torch.testing.assert_close(new_scales, scales)


@pytest.mark.parametrize("count", [2, 3, 10, 51])
@pytest.mark.parametrize("opacity", [0.05, 0.5, 0.95])
def test_copies_absorb_what_one_did(opacity, count):
    """In the middle exactly, and in total along a line through it: eq. 9 keeps the integral of alpha."""
    scale = 0.7
    new, scales = control.copies(torch.tensor([opacity]), torch.full((1, 3), scale), torch.tensor([count]))
    assert 1 - (1 - float(new)) ** count == pytest.approx(opacity, rel=1e-3)
    x = torch.linspace(-8, 8, 8001, dtype=torch.float64)
    one = opacity * torch.exp(-0.5 * (x / scale) ** 2)
    many = 1 - (1 - float(new) * torch.exp(-0.5 * (x / float(scales[0, 0])) ** 2)) ** count
    assert float(many.sum() / one.sum()) == pytest.approx(1, rel=2e-3)
    assert float((many - one).abs().max()) < 0.3 * opacity


def test_growth_keeps_the_picture():
    field, optimizer = fitted()
    before = picture(field)
    # By the whole of what its formula promises: one image of many copies, within what scales of a new shape change.
    assert control.grow(field, optimizer, generator(), most=10**6, factor=1.5) == 100
    assert len(field) == 300
    after = picture(field)
    assert (after.alphas - before.alphas).abs().mean() < 0.02
    assert (after.colors - before.colors).abs().mean() < 0.02
    naive, optimizer = fitted()
    control.edit(naive, optimizer, torch.arange(200), naive.gaussians()[torch.arange(100)].detach())
    assert (picture(naive).alphas - before.alphas).abs().mean() > 2 * (after.alphas - before.alphas).abs().mean()


def test_growth_and_moments():
    field, optimizer = fitted()
    means = field.means.detach().clone()
    control.grow(field, optimizer, generator(), most=230, factor=2.0)
    assert len(field) == 230
    named = moments(field, optimizer)
    copied = named[:200] == 0
    assert torch.equal(named[:200][~copied], (torch.arange(200.0) + 1)[~copied]), "who was not copied remembers"
    assert 10 < copied.sum() <= 30
    assert not named[200:].any(), "copies begin anew"
    assert torch.equal(field.means[:200], means)
    assert (field.means[200:, None] == means).all(-1).any(1).all()
    steps_on(field, optimizer)


@pytest.mark.parametrize("most", [0, 199, 200, 201, 205, 1000])
def test_growth_never_exceeds_the_most(most):
    field, optimizer = fitted()
    for seed in range(4):
        control.grow(field, optimizer, generator(seed), most=most)
        assert len(field) <= max(most, 200)
    assert len(field) == max(200, min(most, 242))


def test_relocation():
    field, optimizer = fitted()
    with torch.no_grad():
        field.logit_opacities[:20] = -9
    before = picture(field)
    means = field.means.detach().clone()
    assert control.relocate(field, optimizer, generator()) == 20
    assert len(field) == 200
    assert (field.gaussians().opacities > 0.005).sum() >= 199
    assert (field.means[:20, None] == means[20:]).all(-1).any(1).all(), "onto others that are not dead"
    assert torch.equal(field.means[20:], means[20:])
    after = picture(field)
    assert (after.alphas - before.alphas).abs().mean() < 0.01
    named = moments(field, optimizer)
    assert not named[:20].any()
    assert 1 <= (named[20:] == 0).sum() <= 20
    assert control.relocate(field, optimizer, generator()) == 0
    steps_on(field, optimizer)


def test_all_dead_stay_where_they_are():
    field, optimizer = fitted()
    with torch.no_grad():
        field.logit_opacities[:] = -9
    assert control.relocate(field, optimizer, generator()) == 0


def test_shaking_moves_the_faint_alone_and_along_their_shape():
    field, _ = fitted()
    with torch.no_grad():
        field.logit_opacities[:100] = math.log(0.002)
        field.logit_opacities[100:] = 2.0
        field.log_scales[:] = torch.tensor([0.1, 1e-3, 1e-3]).log()
        field.quats[:] = torch.tensor([1.0, 0, 0, 0])
    before = field.means.detach().clone()
    control.shake(field, generator(), 0.0)
    assert torch.equal(field.means, before)
    control.shake(field, generator(), 10.0)
    moved = field.means.detach() - before
    assert not moved[100:].any()
    expected = 10 * torch.sigmoid(torch.tensor(-100 * (0.002 - 0.005))) * 0.1**2
    assert moved[:100, 0].std() == pytest.approx(float(expected), rel=0.3)
    assert moved[:100, 1:].abs().max() < 1e-3 * float(expected)


def test_densify_clones_small_and_splits_large():
    field, optimizer = fitted(10)
    with torch.no_grad():
        field.log_scales[:] = math.log(0.01)
        field.log_scales[4] = math.log(0.5)
    statistics = torch.zeros(10, 4)
    statistics[:, 2] = 2
    statistics[[1, 4], 0] = 1.0
    statistics[7, 1] = 1.0
    before = field.gaussians().detach()
    means, scales = before.means.clone(), before.scales.clone()
    options = dict(threshold=0.3, large=0.1)
    assert control.densify(field, optimizer, statistics, generator(), most=100, **options) == 2
    assert len(field) == 12
    found = field.gaussians().detach()
    assert torch.equal(found.means[10], means[1]) and torch.equal(found.scales[10], found.scales[1])
    for half in (4, 11):
        torch.testing.assert_close(found.scales[half], scales[4] / 1.6)
        assert 0 < (found.means[half] - means[4]).norm() < 2.5
    assert not torch.equal(found.means[4], found.means[11])
    named = moments(field, optimizer)
    assert named.tolist() == [1, 2, 3, 4, 0, 6, 7, 8, 9, 10, 0, 0]
    steps_on(field, optimizer)
    field, optimizer = fitted(10)
    assert control.densify(field, optimizer, statistics, generator(), most=100, absolute=True, **options) == 1
    field, optimizer = fitted(10)
    statistics[:, 0] = torch.arange(10.0) + 1
    assert control.densify(field, optimizer, statistics, generator(), most=13, **options) == 3
    assert len(field) == 13
    torch.testing.assert_close(field.means[10:].detach(), field.means[[9, 8, 7]].detach(), atol=1.0, rtol=0)
    assert control.densify(field, optimizer, torch.ones(13, 4), generator(), most=13, **options) == 0


def test_pruning():
    field, optimizer = fitted()
    opacities = field.gaussians().opacities.detach()
    keep = control.prune(field, optimizer, min_opacity=0.5)
    assert torch.equal(keep, opacities > 0.5)
    assert len(field) == int(keep.sum())
    assert torch.equal(moments(field, optimizer), (torch.arange(200.0) + 1)[keep])
    steps_on(field, optimizer)
    with torch.no_grad():
        field.log_scales[:3] = 5
    assert control.prune(field, optimizer, min_opacity=0, max_scale=10.0).tolist()[:4] == [False] * 3 + [True]


def test_pruning_to_nothing():
    """No Gaussians are a scene like others: drawn, stepped, asked, grown and pruned again."""
    field, optimizer = fitted()
    control.prune(field, optimizer, min_opacity=1.0)
    assert len(field) == 0
    assert not picture(field).alphas.any()
    assert not field.query(torch.rand(4, 3)).values.any()
    steps_on(field, optimizer)
    assert control.relocate(field, optimizer, generator()) == 0
    assert control.grow(field, optimizer, generator(), most=10) == 0
    control.shake(field, generator(), 1.0)
    assert control.densify(field, optimizer, torch.zeros(0, 4), generator(), threshold=0, large=1, most=9) == 0
    control.prune(field, optimizer)
    control.reset_opacities(field, optimizer)


def test_opacities_begin_anew():
    field, optimizer = fitted()
    control.reset_opacities(field, optimizer, 0.01)
    assert (field.gaussians().opacities <= 0.0100001).all()
    state = optimizer.state[field.logit_opacities]
    assert not state["exp_avg"].any() and not state["exp_avg_sq"].any()
    assert optimizer.state[field.means]["exp_avg"].any()
