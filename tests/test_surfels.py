import pytest
import torch
from polyfield.cuda import splatting
from polyfield.cuda.surfels import render_surfels

from tests.reference import surfels as reference
from tests.test_gaussians import leaves, scene

NAMES = ["means", "quats", "scales", "logits", "sh", "pose", "features", "background"]


def images(drawn):
    return drawn.colors, drawn.alphas, drawn.z_depths, drawn.median_depths, drawn.distortions, drawn.features


@pytest.mark.parametrize("count, size, degree", [(60, (40, 33), 3), (25, (16, 16), 0), (40, (33, 7), 4)])
def test_matches_the_reference(count, size, degree):
    surfels, K, pose = scene(count, *size, degree=degree, low=2, high=14)
    g = torch.Generator().manual_seed(1)
    features = torch.randn(count, 5, generator=g, dtype=torch.float64)
    background = torch.rand(3, generator=g, dtype=torch.float64)
    ours_in, theirs_in = (leaves([*surfels, pose, features, background]) for _ in range(2))
    options = {"features": ours_in[6], "background": ours_in[7], "depths": True, "planes": (1.0, 9.0)}
    ours = images(render_surfels(*ours_in[:5], K, ours_in[5], *size, **options))
    theirs = reference.render(theirs_in[:5], K, theirs_in[5], *size, theirs_in[6], theirs_in[7], planes=(1.0, 9.0))
    assert ours[1].max() > 0.9 and (ours[3] > 0).any() and ours[4].max() > 1e-3
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    upstream = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in theirs]
    torch.autograd.backward(ours, upstream)
    torch.autograd.backward(theirs, upstream)
    for name, a, b in zip(NAMES, ours_in, theirs_in, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_tiled_reference_is_the_same():
    """The one that benchmarks go by."""
    surfels, K, pose = scene(60, 40, 33)
    drawn = render_surfels(*surfels, K, pose, 40, 33)
    tiled = reference.tiled(surfels, K, pose, 40, 33, drawn.extents + 8)
    torch.testing.assert_close(drawn.colors, tiled, atol=1e-9, rtol=0)


def test_gradcheck_with_a_smooth_cutoff(monkeypatch):
    monkeypatch.setattr(splatting, "SMOOTH_CUTOFF", True)
    surfels, K, pose = scene(7, 12, 9, degree=1, low=3, high=12)
    surfels[3].clamp_(max=2)
    features = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = [x.requires_grad_() for x in (*surfels, pose, features)]

    def draw(*inputs):
        return images(render_surfels(*inputs[:5], K, inputs[5], 12, 9, features=inputs[6], depths=True, planes=(1, 9)))

    assert torch.autograd.gradcheck(draw, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)


def one(scale, quat=(1.0, 0, 0, 0), mean=(0.0, 0, 3), logit=3.0, dtype=torch.float32):
    """A white surfel before a camera that looks along z."""
    log_scales = torch.tensor(scale, dtype=dtype).log().expand(1, 3)
    given = [torch.tensor([x], dtype=dtype) for x in (mean, quat)]
    sh = torch.full((1, 1, 3), 0.5 / 0.28209479177387814, dtype=dtype)
    return [*given, log_scales, torch.tensor([logit], dtype=dtype), sh]


CAMERA = torch.tensor([[50.0, 0, 20], [0, 50, 15], [0, 0, 1]]), torch.eye(4)


def test_depths_are_those_of_the_plane():
    """Of a large, slanted disc, at every pixel, in float32: expected and median alike, and no distortion."""
    quat = torch.tensor([0.9, 0.35, -0.2, 0.1])
    drawn = render_surfels(*one(0.6, tuple(quat)), *CAMERA, 40, 30, depths=True)
    normal = reference.rotations(quat[None])[0, :, 2]
    rows, columns = torch.meshgrid(torch.arange(30) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    rays = torch.stack([(columns - 20) / 50, (rows - 15) / 50, torch.ones(30, 40)], -1)
    wanted = 3 * normal[2] / (rays @ normal)
    seen = drawn.alphas > 1 / 255
    assert seen.float().mean() > 0.5 and (wanted[seen].max() - wanted[seen].min()) > 0.5
    torch.testing.assert_close((drawn.z_depths / drawn.alphas)[seen], wanted[seen], rtol=1e-5, atol=0)
    half = drawn.alphas > 0.5
    torch.testing.assert_close(drawn.median_depths[half], wanted[half], rtol=1e-5, atol=0)
    assert (drawn.median_depths[~half] == 0).all() and drawn.distortions.abs().max() < 1e-9


def test_distortion_of_two_and_its_precision():
    """Two discs one behind the other: w_1 w_2 (m_1 - m_2)^2, in float32 also where m differ by 2e-5."""
    for gap in (0.5, 1e-3):
        both = [torch.cat(x) for x in zip(one(1.0, logit=-0.5), one(1.0, mean=(0.0, 0, 3 + gap)), strict=True)]
        drawn = render_surfels(*both, *CAMERA, 40, 30, depths=True)
        exact = reference.render([x.double() for x in both], *(x.double() for x in CAMERA), 40, 30)[4]
        assert exact.min() > 0
        torch.testing.assert_close(drawn.distortions.double(), exact, rtol=5e-3, atol=0)


@pytest.mark.parametrize("turn", [0.0, 1e-4, 1e-2])
def test_a_disc_seen_from_its_edge_is_as_wide_as_a_pixel(turn):
    angle = torch.tensor(torch.pi / 4 + turn)  # half of a right angle, about y
    drawn = render_surfels(*one(0.3, (float(angle.cos()), 0.0, float(angle.sin()), 0.0)), *CAMERA, 40, 30, depths=True)
    seen = drawn.alphas > 1 / 255
    across = seen.any(0).nonzero()[:, 0]
    assert 2 <= len(across) <= 6 and seen.any()
    assert ((drawn.z_depths / drawn.alphas)[seen] - 3).abs().max() < 1.0


def test_the_third_scale_counts_nothing():
    surfels, K, pose = scene(40, dtype=torch.float32)
    other = list(surfels)
    other[2] = other[2] + torch.tensor([0.0, 0.0, 3.0])
    inputs = leaves(surfels)
    drawn = render_surfels(*inputs, K, pose, 40, 33)
    assert torch.equal(drawn.colors, render_surfels(*other, K, pose, 40, 33).colors)
    drawn.colors.sum().backward()
    assert (inputs[2].grad[:, 2] == 0).all() and inputs[2].grad[:, :2].any()


def finite_backward(surfels, K, pose, width, height, **options):
    """Draws and differentiates; all must be finite."""
    inputs = leaves([*surfels, pose])
    drawn = render_surfels(*inputs[:5], K, inputs[5], width, height, depths=True, **options)
    found = images(drawn)[:5]
    sum(x.sum() + x.square().sum() for x in found).backward()
    for x in (*found, *(x.grad for x in inputs)):
        assert torch.isfinite(x).all()
    return drawn, inputs


def test_zero_quaternions_and_surfels_around_the_camera():
    surfels, K, pose = scene(64, dtype=torch.float32)
    means, quats, log_scales = surfels[:3]
    quats[:4] = 0
    center = -pose[:3, :3].T @ pose[:3, 3]
    means[4] = center
    means[5] = center - pose[2, :3]  # behind
    means[6] = center + 0.02 * pose[2, :3]  # astride
    log_scales[6] = 0.0
    log_scales[7] = 6.0  # covers the screen, and reaches behind the camera
    log_scales[8] = -30.0
    log_scales[9] = torch.tensor([3.0, -20.0, 0.0])  # a needle
    means[10], means[11], log_scales[12] = float("nan"), float("inf"), 60.0
    drawn, inputs = finite_backward(surfels, K, pose, 40, 33)
    assert (drawn.extents[[4, 5, 10, 11, 12]] == 0).all() and (drawn.extents[[6, 7]] > 0).all()
    assert (inputs[0].grad[[10, 11, 12]] == 0).all()


def test_floors_that_reach_behind_the_camera_match_the_reference():
    surfels, K, pose = scene(12, 30, 20, low=60, high=400)
    ours = images(render_surfels(*surfels, K, pose, 30, 20, depths=True))
    theirs = reference.render(surfels, K, pose, 30, 20)
    for a, b in zip(ours[:4], theirs[:4], strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("size", [(1, 1), (17, 1), (1, 40)])
def test_small_images_match_the_reference(size):
    surfels, K, pose = scene(40, *size, high=20)
    ours, theirs = render_surfels(*surfels, K, pose, *size), reference.render(surfels, K, pose, *size)
    torch.testing.assert_close(ours.colors, theirs[0])
    torch.testing.assert_close(ours.alphas, theirs[1])


def test_none_in_sight():
    for count, shift in ((0, 0), (50, -50)):
        surfels, K, pose = scene(count, dtype=torch.float32)
        surfels[3] += shift
        drawn, _ = finite_backward(surfels, K, pose, 40, 33, background=torch.tensor([0.1, 0.2, 0.3]))
        assert (drawn.alphas == 0).all() and torch.allclose(drawn.colors[3, 4], torch.tensor([0.1, 0.2, 0.3]))
        assert (drawn.extents == 0).all() and (drawn.median_depths == 0).all()


def test_many_on_one_tile():
    surfels, K, pose = scene(200_000, 16, 16, dtype=torch.float32, degree=0, low=0.5, high=1.0)
    drawn, _ = finite_backward(surfels, K, pose, 16, 16)
    assert drawn.alphas.min() > 0.99


def test_float32_is_close_to_float64():
    surfels, K, pose = scene(1000, 100, 80)
    exact = render_surfels(*surfels, K, pose, 100, 80, depths=True)
    found = render_surfels(*(x.float() for x in surfels), K.float(), pose.float(), 100, 80, depths=True)
    for a, b in zip(images(found)[:3], images(exact)[:3], strict=True):
        assert (a - b).abs().mean() < 3e-5 * b.abs().max()


def test_same_for_any_thread_count():
    surfels, K, pose = scene(6000, 90, 70, dtype=torch.float32)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            drawn, inputs = finite_backward(surfels, K, pose, 90, 70)
            found.append([drawn.colors.detach(), *(x.grad for x in inputs)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_gradient_buffers_and_statistics():
    surfels, K, pose = scene(200, dtype=torch.float32)
    plain, inputs = leaves(surfels), leaves(surfels)
    render_surfels(*plain, K, pose, 40, 33).colors.square().sum().backward()
    buffers, statistics = tuple(torch.ones_like(x) for x in surfels), torch.zeros(200, 4)
    drawn = render_surfels(*inputs, K, pose, 40, 33, grad_buffers=buffers, statistics=statistics)
    drawn.colors.square().sum().backward()
    assert all(x.grad is None for x in inputs)
    for x, buffer in zip(plain, buffers, strict=True):
        torch.testing.assert_close(buffer - 1, x.grad, atol=1e-4, rtol=1e-4)
    seen = drawn.extents[:, 0] > 0
    assert torch.equal(statistics[:, 2], seen.float()) and torch.equal(statistics[:, 3], drawn.extents.amax(1))
    assert (statistics[:, 1] >= statistics[:, 0] * 0.999).all() and (statistics[~seen] == 0).all()
    assert statistics[:, 0].max() > 0.1


def test_errors():
    surfels, K, pose = scene(5, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"render_surfels: quats: expected shape \(5, 4\), got \(5, 3\)"):
        render_surfels(surfels[0], surfels[0], *surfels[2:], K, pose, 9, 9)
    with pytest.raises(ValueError, match=r"render_surfels: planes: expected 0 < near < far, got 2\.0 and 1\.0"):
        render_surfels(*surfels, K, pose, 9, 9, planes=(2.0, 1.0))
    with pytest.raises(ValueError, match="render_surfels: near: expected a number from 0"):
        render_surfels(*surfels, K, pose, 9, 9, near=-1.0)
    with pytest.raises(ValueError, match=r"features: expected shape \(5, \*\), got \(4, 2\)"):
        render_surfels(*surfels, K, pose, 9, 9, features=torch.zeros(4, 2))
