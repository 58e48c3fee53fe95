import pytest
import torch
from polyfield.cuda import splatting
from polyfield.cuda.gaussians import Lens, project_gaussians, rasterize_gaussians, render_gaussians

from tests.reference import gaussians as reference

LENSES = (Lens.PINHOLE, Lens.ORTHOGRAPHIC, Lens.FISHEYE)


def scene(G, width=40, height=33, *, seed=0, degree=3, dtype=torch.float64, lens=Lens.PINHOLE, low=1.0, high=6.0):
    """Gaussians in and around a turned camera's view, their radii in pixels between low and high; K; pose."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.rand(*s, generator=g, dtype=torch.float64)  # noqa: E731
    focal = width if lens != Lens.ORTHOGRAPHIC else width / 4
    z = 2 + 3 * rand(G)
    per_pixel = torch.ones(G).double() / focal if lens == Lens.ORTHOGRAPHIC else z / focal
    xy = (rand(G, 2) - 0.5) * 1.1 * torch.tensor([width, height]) * per_pixel[:, None]
    scales = (low + (high - low) * rand(G))[:, None] / 2 * per_pixel[:, None] * (0.2 + rand(G, 3))
    quats = torch.randn(G, 4, generator=g, dtype=torch.float64)
    R = reference.rotations(torch.tensor([[0.9, 0.2, -0.3, 0.1]], dtype=torch.float64))[0]
    t = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = R, t
    means = (torch.cat([xy, z[:, None]], 1) - t) @ R
    sh = 0.4 * torch.randn(G, (degree + 1) ** 2, 3, generator=g, dtype=torch.float64)
    K = torch.tensor([[focal, 0, width / 2 + 0.3], [0, focal * 1.1, height / 2], [0, 0, 1]], dtype=torch.float64)
    logits = 2 * torch.randn(G, generator=g, dtype=torch.float64)
    return [x.to(dtype) for x in (means, quats, scales.log(), logits, sh)], K.to(dtype), pose.to(dtype)


def leaves(tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def images(splats):
    return splats.colors, splats.alphas, splats.z_depths, splats.median_depths, splats.features


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("antialias, degree", [(False, 3), (True, 4), (False, 0)])
def test_matches_the_reference(lens, antialias, degree):
    width, height = 40, 33
    gaussians, K, pose = scene(150, width, height, lens=lens, degree=degree)
    g = torch.Generator().manual_seed(1)
    features = torch.randn(150, 6, generator=g, dtype=torch.float64)
    background = torch.rand(3, generator=g, dtype=torch.float64)
    ours_in = leaves([*gaussians, pose, features, background])
    theirs_in = leaves([*gaussians, pose, features, background])
    ours = images(
        render_gaussians(
            *ours_in[:5], K, ours_in[5], width, height, features=ours_in[6], background=ours_in[7], depths=True,
            median_depths=True, antialias=antialias, lens=lens,
        )
    )  # fmt: skip
    theirs = reference.render(
        theirs_in[:5], K, theirs_in[5], width, height, theirs_in[6], theirs_in[7], antialias=antialias, lens=lens
    )
    upstream = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in theirs]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    pick = [0, 1, 2, 4]
    torch.autograd.backward([ours[i] for i in pick], [upstream[i] for i in pick])
    torch.autograd.backward([theirs[i] for i in pick], [upstream[i] for i in pick])
    for name, a, b in zip(
        ["means", "quats", "scales", "logits", "sh", "pose", "features", "background"], ours_in, theirs_in, strict=True
    ):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("lens", LENSES)
def test_gradcheck_with_a_smooth_cutoff(lens, monkeypatch):
    monkeypatch.setattr(splatting, "SMOOTH_CUTOFF", True)
    gaussians, K, pose = scene(7, 12, 9, lens=lens, degree=1, low=3, high=8)
    gaussians[3].clamp_(max=2)
    inputs = [x.requires_grad_() for x in (*gaussians, pose)]

    def draw(*inputs):
        splats = render_gaussians(*inputs[:5], K, inputs[5], 12, 9, depths=True, antialias=True, lens=lens)
        return splats.colors, splats.alphas, splats.z_depths

    assert torch.autograd.gradcheck(draw, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_the_parts_agree_with_the_whole():
    gaussians, K, pose = scene(300, dtype=torch.float32)
    a, b = leaves([*gaussians, pose]), leaves([*gaussians, pose])
    whole = render_gaussians(*a[:5], K, a[5], 40, 33)
    parts = rasterize_gaussians(project_gaussians(*b[:5], K, b[5], 40, 33))
    assert torch.equal(whole.colors, parts.colors) and torch.equal(whole.extents, parts.extents)
    for splats in (whole, parts):
        splats.colors.square().sum().backward()
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)


def test_float32_is_close_to_float64():
    gaussians, K, pose = scene(2000, 100, 80)
    exact = render_gaussians(*gaussians, K, pose, 100, 80).colors
    found = render_gaussians(*(x.float() for x in gaussians), K.float(), pose.float(), 100, 80).colors
    assert (found - exact).abs().mean() < 1e-5 and (found - exact).abs().max() < 0.02  # one cutoff either way: 1/255


def finite_backward(gaussians, K, pose, width, height, **options):
    """Draws and differentiates; all must be finite."""
    inputs = leaves([*gaussians, pose])
    splats = render_gaussians(*inputs[:5], K, inputs[5], width, height, depths=True, **options)
    (splats.colors.sum() + splats.alphas.square().sum() + splats.z_depths.sum()).backward()
    for x in (splats.colors, splats.alphas, splats.z_depths, *(x.grad for x in inputs)):
        assert torch.isfinite(x).all()
    return splats, inputs


@pytest.mark.parametrize("lens", LENSES)
def test_zero_quaternions_and_gaussians_around_the_camera(lens):
    gaussians, K, pose = scene(64, dtype=torch.float32, lens=lens)
    means, quats, log_scales = gaussians[:3]
    quats[:4] = 0
    center = -pose[:3, :3].T @ pose[:3, 3]
    means[4] = center  # inside
    means[5] = center - pose[2, :3]  # behind
    means[6] = center + 0.02 * pose[2, :3]  # astride
    log_scales[6] = 0.0
    log_scales[7] = 6.0  # covers the screen
    log_scales[8] = -30.0
    log_scales[9] = torch.tensor([3.0, -20.0, -20.0])  # a needle
    means[10], means[11], log_scales[12] = float("nan"), float("inf"), 60.0
    splats, inputs = finite_backward(gaussians, K, pose, 40, 33, lens=lens, antialias=True)
    assert (splats.extents[[4, 5, 10, 11, 12]] == 0).all() or lens == Lens.ORTHOGRAPHIC
    assert (inputs[0].grad[[10, 11, 12]] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (17, 1), (16, 16), (1, 40)])
def test_small_images_match_the_reference(size):
    gaussians, K, pose = scene(40, *size, high=20)
    ours = render_gaussians(*gaussians, K, pose, *size)
    theirs = reference.render(gaussians, K, pose, *size)
    torch.testing.assert_close(ours.colors, theirs[0])
    torch.testing.assert_close(ours.alphas, theirs[1])


def test_no_gaussians_and_none_in_sight():
    gaussians, K, pose = scene(0, dtype=torch.float32)
    splats, _ = finite_backward(gaussians, K, pose, 40, 33, background=torch.tensor([0.1, 0.2, 0.3]))
    assert (splats.alphas == 0).all() and torch.allclose(splats.colors[3, 4], torch.tensor([0.1, 0.2, 0.3]))
    gaussians, K, pose = scene(50, dtype=torch.float32)
    gaussians[3][:] = -50
    splats, _ = finite_backward(gaussians, K, pose, 40, 33)
    assert (splats.extents == 0).all() and (splats.colors == 0).all()


def test_a_large_image_and_a_million_on_one_tile():
    gaussians, K, pose = scene(100, 8000, 6000, dtype=torch.float32)
    with torch.no_grad():
        assert render_gaussians(*gaussians, K, pose, 8000, 6000).colors.shape == (6000, 8000, 3)
    gaussians, K, pose = scene(1_000_000, 16, 16, dtype=torch.float32, degree=0, low=0.5, high=1.0)
    splats, _ = finite_backward(gaussians, K, pose, 16, 16)
    assert splats.alphas.min() > 0.99


def test_same_for_any_thread_count():
    gaussians, K, pose = scene(6000, 90, 70, dtype=torch.float32)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            splats, inputs = finite_backward(gaussians, K, pose, 90, 70)
            found.append([splats.colors.detach(), *(x.grad for x in inputs)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_gradient_buffers_and_statistics():
    gaussians, K, pose = scene(200, dtype=torch.float32)
    plain, inputs = leaves(gaussians), leaves(gaussians)
    render_gaussians(*plain, K, pose, 40, 33).colors.square().sum().backward()
    buffers, statistics = tuple(torch.ones_like(x) for x in gaussians), torch.zeros(200, 4)
    splats = render_gaussians(*inputs, K, pose, 40, 33, grad_buffers=buffers, statistics=statistics)
    splats.colors.square().sum().backward()
    assert all(x.grad is None for x in inputs)
    for x, buffer in zip(plain, buffers, strict=True):
        torch.testing.assert_close(buffer - 1, x.grad, atol=1e-4, rtol=1e-4)
    seen = splats.extents[:, 0] > 0
    assert torch.equal(statistics[:, 2], seen.float()) and torch.equal(statistics[:, 3], splats.extents.amax(1))
    assert (statistics[:, 1] >= statistics[:, 0] * 0.999).all() and (statistics[~seen] == 0).all()
    projected = project_gaussians(*gaussians, K, pose, 40, 33)
    rows = projected.rows.detach().requires_grad_()
    drawn = rasterize_gaussians(type(projected)(rows, projected.counts, 40, 33))
    drawn.colors.square().sum().backward()
    torch.testing.assert_close(statistics[:, 0], rows.grad[:, :2].norm(dim=1))
    torch.testing.assert_close(statistics[:, 1], rows.grad[:, 6:8].norm(dim=1))


def test_what_backward_adds_to_is_as_large_as_the_gaussians():
    gaussians, K, pose = scene(20, dtype=torch.float32)
    draw = lambda **options: render_gaussians(*gaussians, K, pose, 8, 8, **options)  # noqa: E731
    with pytest.raises(ValueError, match=r"statistics: expected shape \(20, 4\), got \(0, 4\)"):
        draw(statistics=torch.zeros(0, 4))
    with pytest.raises(TypeError, match=r"statistics: expected float32, got float64"):
        draw(statistics=torch.zeros(20, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="grad_buffers: expected 5 tensors, got 2"):
        draw(grad_buffers=gaussians[:2])
    with pytest.raises(ValueError, match=r"grad_buffers: quats: expected shape \(20, 4\), got \(19, 4\)"):
        draw(grad_buffers=(gaussians[0], gaussians[1][:19], *gaussians[2:]))


@pytest.mark.filterwarnings("ignore")
def test_torch_compile_leaves_it_as_it_is():
    """Sizes depend on data, so the graph breaks here; what comes out does not change."""
    gaussians, K, pose = scene(50, degree=1, dtype=torch.float32)

    def loss(*inputs):
        colors = render_gaussians(*(2 * x / 2 for x in inputs), K, pose, 40, 33).colors
        return colors.sin().sum()

    found = []
    for call in (loss, torch.compile(loss, backend="eager")):
        inputs = leaves(gaussians)
        found.append(torch.autograd.grad(call(*inputs), inputs))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_lower_degree_and_no_colors():
    gaussians, K, pose = scene(80, degree=2)
    low = [*gaussians[:4], gaussians[4][:, :4]]
    ours = render_gaussians(*gaussians, K, pose, 40, 33, degree=1).colors
    torch.testing.assert_close(ours, render_gaussians(*low, K, pose, 40, 33).colors)
    without = render_gaussians(*gaussians[:4], None, K, pose, 40, 33, features=torch.ones(80, 1).double())
    assert (without.colors == 0).all()
    torch.testing.assert_close(without.features[..., 0], without.alphas)


def test_errors():
    gaussians, K, pose = scene(5, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"render_gaussians: quats: expected shape \(5, 4\), got \(5, 3\)"):
        render_gaussians(gaussians[0], gaussians[0], *gaussians[2:], K, pose, 9, 9)
    with pytest.raises(TypeError, match="project_gaussians: sh: expected float32, got float64"):
        project_gaussians(*gaussians[:4], gaussians[4].double(), K, pose, 9, 9)
    with pytest.raises(ValueError, match="sh: expected 1, 4, 9, 16 or 25 bases, got 7; cut or pad it"):
        render_gaussians(*gaussians[:4], gaussians[4][:, :7], K, pose, 9, 9)
    with pytest.raises(ValueError, match="degree: expected a number from 0 to 3, got 4"):
        render_gaussians(*gaussians, K, pose, 9, 9, degree=4)
    with pytest.raises(ValueError, match="width: expected a number from 1 to 65536, got 0"):
        render_gaussians(*gaussians, K, pose, 0, 9)
    with pytest.raises(ValueError, match=r"features: expected shape \(5, \*\), got \(4, 2\)"):
        render_gaussians(*gaussians, K, pose, 9, 9, features=torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"background: expected shape \(3\)"):
        rasterize_gaussians(project_gaussians(*gaussians, K, pose, 9, 9), background=torch.zeros(4))
    with pytest.raises(ValueError, match=r"expected to meet fewer than 2\^31 tiles of the image, got 2147483648; draw"):
        splatting.sort(torch.zeros(1, 16), torch.tensor([[1, 2**31, 1]]), 9, 9)
