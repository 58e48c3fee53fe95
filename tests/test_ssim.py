import pytest
import torch
from polyfield.cuda.ssim import ssim, ssim_l1

from tests.reference import ssim as reference


def pair(height, width, channels=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(height)
    x, y = (torch.rand(height, width, channels, generator=g, dtype=torch.float64) for _ in range(2))
    return (0.7 * y + 0.3 * x).to(dtype), y.to(dtype)


@pytest.mark.parametrize("size", [(1, 1, 3), (3, 50, 1), (40, 7, 3), (70, 33, 3), (33, 64, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_reference(size, masked):
    x, y = pair(*size)
    mask = torch.rand(size[:2], generator=torch.Generator().manual_seed(1)) > 0.4 if masked else None
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = ssim_l1(a, y, weight=0.3, mask=mask), reference.ssim_l1(b, y, 0.3, mask)
    torch.testing.assert_close(ours, theirs)
    (2 * ours).backward()
    (2 * theirs).backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-10, rtol=1e-7)
    torch.testing.assert_close(ssim(x, y), reference.ssim_map(x, y).mean())


def test_float32():
    x, y = pair(61, 83)
    a, b = x.float().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = ssim_l1(a, y.float()), reference.ssim_l1(b, y)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.grad.double(), b.grad, atol=1e-7, rtol=1e-3)


def test_gradcheck():
    x, y = pair(13, 9)
    assert torch.autograd.gradcheck(lambda x: ssim_l1(x, y, weight=0.5), (x.requires_grad_(),))


def test_equal_black_and_masked_images():
    x, y = pair(20, 20, dtype=torch.float32)
    assert ssim(x, x).item() == pytest.approx(1, abs=1e-6) and ssim_l1(y, y).item() == pytest.approx(0, abs=1e-6)
    black = torch.zeros_like(x).requires_grad_()
    ssim_l1(black, torch.zeros_like(x)).backward()
    assert torch.isfinite(black.grad).all()
    nothing = ssim_l1(x.requires_grad_(), y, mask=torch.zeros(20, 20, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == pytest.approx(0, abs=1e-4) and (x.grad == 0).all()


def test_errors():
    x, y = pair(5, 6)
    with pytest.raises(ValueError, match=r"ssim_l1: target: expected shape \(5, 6, 3\), got \(5, 5, 3\)"):
        ssim_l1(x, y[:, :5])
    with pytest.raises(TypeError, match="ssim: target: expected float64, got float32"):
        ssim(x, y.float())
    with pytest.raises(ValueError, match="ssim_l1: weight: expected a number from 0 to 1, got 2"):
        ssim_l1(x, y, weight=2)
    with pytest.raises(TypeError, match="ssim_l1: mask: expected bool"):
        ssim_l1(x, y, mask=torch.ones(5, 6))
