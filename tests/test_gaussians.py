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
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(a, b, strict=True))


def test_float32_is_close_to_float64():
    gaussians, K, pose = scene(2000, 100, 80)
    exact = render_gaussians(*gaussians, K, pose, 100, 80).colors
    found = render_gaussians(*(x.float() for x in gaussians), K.float(), pose.float(), 100, 80).colors
    assert (found - exact).abs().mean() < 1e-5 and (found - exact).abs().max() < 0.02  # one cutoff either way: 1/255
