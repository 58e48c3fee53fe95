# ruff: noqa: F401 (tests, imported to be run)
"""The CUDA kernels of Gaussian splatting and its loss: the tests of the ops again, in the emulator or on a GPU, and
against the CPU's lanes."""

import pytest
import torch
from polyfield.cuda import splatting
from polyfield.cuda.gaussians import Lens, project_gaussians, render_gaussians
from polyfield.cuda.native import on_gpu as is_on_gpu
from polyfield.cuda.ssim import ssim, ssim_l1

from tests.emulation import on_both, on_gpu
from tests.test_gaussians import LENSES, leaves, scene
from tests.test_gaussians import test_a_lower_degree_and_no_colors as test_lower_degrees
from tests.test_gaussians import test_gradient_buffers_and_statistics as test_buffers
from tests.test_gaussians import test_matches_the_reference as test_splats
from tests.test_gaussians import test_no_gaussians_and_none_in_sight as test_nothing_to_see
from tests.test_gaussians import test_small_images_match_the_reference as test_small_images
from tests.test_gaussians import test_the_parts_agree_with_the_whole as test_parts
from tests.test_gaussians import test_zero_quaternions_and_gaussians_around_the_camera as test_extreme_gaussians
from tests.test_sh_adam import test_a_render_leaves_the_factors_of_its_gradient as test_factors
from tests.test_sh_adam import test_matches_the_reference as test_sh_adam
from tests.test_ssim import pair
from tests.test_ssim import test_equal_black_and_masked_images as test_ssim_extremes
from tests.test_ssim import test_matches_the_reference as test_ssim


@pytest.fixture(autouse=True)
def _on_gpu(device):
    with on_gpu(device):
        yield


def close(found, wanted, **kw):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, **kw)


@pytest.mark.parametrize("lens", LENSES)
def test_gradients_are_those_of_a_smooth_cutoff(lens, monkeypatch):
    """Along one direction: a gradcheck of every input would take minutes in the emulator."""
    monkeypatch.setattr(splatting, "SMOOTH_CUTOFF", True)
    gaussians, K, pose = scene(7, 12, 9, lens=lens, degree=1, low=3, high=8)
    gaussians[3].clamp_(max=2)
    g = torch.Generator().manual_seed(0)
    inputs = [*gaussians, pose]
    along = [torch.randn(x.shape, generator=g, dtype=x.dtype) for x in inputs]

    def loss(inputs):
        splats = render_gaussians(*inputs[:5], K, inputs[5], 12, 9, depths=True, antialias=True, lens=lens)
        return splats.colors.square().sum() + splats.alphas.sum() + splats.z_depths.square().sum()

    found = leaves(inputs)
    slope = sum((x * y).sum() for x, y in zip(torch.autograd.grad(loss(found), found), along, strict=True))
    step = lambda h: loss([x + h * y for x, y in zip(inputs, along, strict=True)])  # noqa: E731
    torch.testing.assert_close(slope, (step(1e-6) - step(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-6)


def entries_by_tile(rows, counts, width, height):
    """(tile, Gaussian, cells) of every entry in order, and whether each slot is named once."""
    lists = splatting.sort(rows, counts, width, height)
    offsets = lists.tile_offsets
    entries = lists.entries[: int(offsets[-1])]
    tiles = torch.arange(len(offsets) - 1, device=rows.device).repeat_interleave(offsets.diff())
    slots = entries & 0xFFFFFFFF
    if is_on_gpu(rows):  # a slot per entry, a Gaussian's side by side
        assert torch.equal(slots.sort().values, torch.arange(len(entries), device=rows.device))
        assert torch.equal(lists.slot_gaussian.sort().values, lists.slot_gaussian)
    return tiles, lists.slot_gaussian[slots], entries >> 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("G, size", [(0, (40, 33)), (1, (16, 16)), (700, (75, 50)), (60, (300, 9))])
def test_lists_are_those_of_the_cpu(G, size, dtype):
    gaussians, K, pose = scene(G, *size, dtype=dtype, low=1, high=30)
    gaussians[0][1::3] = gaussians[0][::3][: len(gaussians[0][1::3])]  # equal depths: in the order of their numbers

    def project(*gaussians):
        projected = project_gaussians(*gaussians, K.to(gaussians[0].device), pose.to(gaussians[0].device), *size)
        return projected.rows, projected.counts.sum(0)

    (rows, counts), (wanted, cpu_counts) = on_both(project, *gaussians)
    torch.testing.assert_close(rows.cpu(), wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(counts.cpu(), cpu_counts)
    found, wanted = on_both(lambda rows, counts: entries_by_tile(rows, counts[None], *size), rows, counts)
    close(found, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("features", [0, 1, 6])
def test_splats_are_those_of_the_cpu(features):
    """float32, more than a batch of entries on a tile, and pixels that are done before its end."""
    gaussians, K, pose = scene(900, 40, 20, dtype=torch.float32, low=2, high=12, degree=1)
    gaussians[3] += 1
    g = torch.Generator().manual_seed(0)
    inputs = [*gaussians, pose, torch.rand(3, generator=g)]
    if features:
        inputs.append(torch.randn(900, features, generator=g))
    weights = torch.rand(20, 40, generator=g)

    def run(K, weights, *inputs):
        inputs = leaves(inputs)
        more = inputs[7] if features else None
        splats = render_gaussians(
            *inputs[:5], K, inputs[5], 40, 20, background=inputs[6], features=more, depths=True, median_depths=True
        )
        loss = (weights[..., None] * splats.colors).square().sum() + (weights * splats.alphas).sum()
        loss = loss + (weights * splats.z_depths).sum()
        if features:
            loss = loss + (weights[..., None] * splats.features).sum()
        grads = torch.autograd.grad(loss, inputs)
        return splats.colors.detach(), splats.alphas.detach(), splats.z_depths.detach(), *grads

    for a, b in zip(*on_both(run, K, weights, *inputs), strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a.cpu(), b, atol=2e-4 * scale, rtol=2e-3)


def test_too_many_pairs_are_refused(monkeypatch):
    monkeypatch.setattr(splatting, "_starts", lambda counts: torch.tensor([0, 2**31], device=counts.device))
    with pytest.raises(ValueError, match=r"expected to meet fewer than 2\^31 tiles of the image, got 2147483648; draw"):
        splatting.sort(torch.zeros(1, 16), torch.zeros(1, 3), 9, 9)


@pytest.mark.parametrize("size", [(0, 5, 3), (17, 33, 3), (16, 16, 1)])
def test_ssim_is_that_of_the_cpu(size):
    def run(x, y):
        x = x.clone().requires_grad_()
        loss = ssim_l1(x, y)
        return loss.detach(), *torch.autograd.grad(loss, x), ssim(x, y)

    close(*on_both(run, *pair(*size, dtype=torch.float32)), atol=1e-6, rtol=1e-4)
