import pytest
import torch
from polyfield.cuda.distortion import distortion

from tests.reference import distortion as reference

COUNTS = [0, 1, 3, 16, 17, 0, 100, 33]


def packed(counts, dtype=torch.float64, seed=0, offset=0.0):
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    n = int(offsets[-1])
    gaps, lengths = torch.rand(n, generator=g).double(), torch.rand(n, generator=g).double() * 0.1
    t_starts = (gaps + lengths).cumsum(0) - gaps + offset
    weights = torch.rand(n, generator=g).double()
    return [x.to(dtype) for x in (weights, t_starts, t_starts + lengths)] + [offsets]


def test_by_hand():
    w, t0, t1 = torch.tensor([0.5, 0.25]), torch.tensor([1.0, 3.0]), torch.tensor([2.0, 5.0])
    got = distortion(w, t0, t1, torch.tensor([0, 2, 2], dtype=torch.int32))
    torch.testing.assert_close(got, torch.tensor([2 * 0.5 * 0.25 * 2.5 + (0.25 * 1 + 0.0625 * 2) / 3, 0.0]))


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_matches_the_reference(dtype, rtol):
    w, t0, t1, offsets = packed(COUNTS)
    ours, theirs = w.to(dtype, copy=True).requires_grad_(), w.clone().requires_grad_()
    a = distortion(ours, t0.to(dtype), t1.to(dtype), offsets)
    b = reference.distortion(theirs, t0, t1, offsets)
    torch.testing.assert_close(a.double(), b, rtol=rtol, atol=rtol)
    grad = torch.linspace(-1, 2, len(COUNTS), dtype=torch.float64)
    a.backward(grad.to(dtype))
    b.backward(grad)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=rtol, atol=rtol * 500)


def test_far_from_the_origin():
    w, t0, t1, offsets = packed([50], torch.float32, offset=1000.0)
    torch.testing.assert_close(
        distortion(w, t0, t1, offsets), reference.distortion(*[x.double() for x in (w, t0, t1)], offsets).float()
    )


def test_gradcheck():
    w, t0, t1, offsets = packed([0, 1, 20, 5])
    assert torch.autograd.gradcheck(lambda w: distortion(w, t0, t1, offsets), w.requires_grad_())


def test_opcheck_and_extremes():
    w, t0, t1, offsets = packed([0, 4, 20], torch.float32)
    torch.library.opcheck(torch.ops.polyfield.distortion.default, (w.requires_grad_(), t0, t1, offsets))
    empty = torch.zeros(0)
    assert distortion(empty, empty, empty, torch.zeros(1, dtype=torch.int32)).shape == (0,)
    assert distortion(empty, empty, empty, torch.zeros(4, dtype=torch.int32)).tolist() == [0, 0, 0]


def test_errors():
    w, t0, t1, offsets = packed([3], torch.float32)
    with pytest.raises(ValueError, match=r"distortion: t_ends: expected shape \(3\), got \(2,\)"):
        distortion(w, t0, t1[:2], offsets)
    with pytest.raises(TypeError, match="distortion: t_starts: expected float32, got float64"):
        distortion(w, t0.double(), t1, offsets)
    with pytest.raises(TypeError, match="distortion: ray_offsets: expected int32, got int64"):
        distortion(w, t0, t1, offsets.long())
    with pytest.raises(ValueError, match="expected to end at the number of samples, 3, got 0"):
        distortion(w, t0, t1, offsets[:1])
