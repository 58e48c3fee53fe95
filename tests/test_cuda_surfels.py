# ruff: noqa: F401 (tests, imported to be run)
"""The CUDA kernels of surfels: the tests of the op again, in the emulator or on a GPU, and against the CPU's lanes."""

import pytest
import torch
from polyfield.cuda import splatting
from polyfield.cuda.surfels import render_surfels

from tests.emulation import on_both, on_gpu
from tests.test_gaussians import leaves, scene
from tests.test_surfels import images
from tests.test_surfels import test_depths_are_those_of_the_plane as test_plane
from tests.test_surfels import test_distortion_of_two_and_its_precision as test_distortion
from tests.test_surfels import test_floors_that_reach_behind_the_camera_match_the_reference as test_floors
from tests.test_surfels import test_gradient_buffers_and_statistics as test_buffers
from tests.test_surfels import test_matches_the_reference as test_surfels
from tests.test_surfels import test_none_in_sight as test_nothing_to_see
from tests.test_surfels import test_small_images_match_the_reference as test_small_images
from tests.test_surfels import test_zero_quaternions_and_surfels_around_the_camera as test_extreme_surfels


@pytest.fixture(autouse=True)
def _on_gpu(device):
    with on_gpu(device):
        yield


def test_gradients_are_those_of_a_smooth_cutoff(monkeypatch):
    """Along one direction: a gradcheck of every input would take minutes in the emulator."""
    monkeypatch.setattr(splatting, "SMOOTH_CUTOFF", True)
    surfels, K, pose = scene(7, 12, 9, degree=1, low=3, high=12)
    surfels[3].clamp_(max=2)
    g = torch.Generator().manual_seed(0)
    inputs = [*surfels, pose, torch.randn(7, 2, generator=g, dtype=torch.float64)]
    along = [torch.randn(x.shape, generator=g, dtype=x.dtype) for x in inputs]

    def loss(inputs):
        drawn = render_surfels(*inputs[:5], K, inputs[5], 12, 9, features=inputs[6], depths=True, planes=(1, 9))
        return sum(x.square().sum() for x in images(drawn))

    found = leaves(inputs)
    slope = sum((x * y).sum() for x, y in zip(torch.autograd.grad(loss(found), found), along, strict=True))
    step = lambda h: loss([x + h * y for x, y in zip(inputs, along, strict=True)])  # noqa: E731
    torch.testing.assert_close(slope, (step(1e-7) - step(-1e-7)) / 2e-7, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [0, 1, 4])
def test_surfels_are_those_of_the_cpu(features):
    """float32, more than a batch of entries on a tile, and pixels that are done before its end."""
    surfels, K, pose = scene(900, 40, 20, dtype=torch.float32, low=2, high=12, degree=1)
    surfels[3] += 1
    g = torch.Generator().manual_seed(0)
    inputs = [*surfels, pose, torch.rand(3, generator=g)]
    if features:
        inputs.append(torch.randn(900, features, generator=g))
    weights = torch.rand(20, 40, generator=g)

    def run(K, weights, *inputs):
        inputs = leaves(inputs)
        more = inputs[7] if features else None
        drawn = render_surfels(*inputs[:5], K, inputs[5], 40, 20, background=inputs[6], features=more, depths=True)
        found = [x for i, x in enumerate(images(drawn)) if x is not None and i != 3]  # medians jump as rounding goes
        loss = sum((weights * (x.sum(-1) if x.ndim == 3 else x).square()).sum() for x in found)
        return *(x.detach() for x in found), *torch.autograd.grad(loss, inputs)

    for a, b in zip(*on_both(run, K, weights, *inputs), strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a.cpu(), b, atol=5e-4 * scale, rtol=2e-3)
