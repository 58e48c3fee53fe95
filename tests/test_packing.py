import pytest
import torch
from polyfield.cuda.packing import append_packed


def reference(first, first_offsets, second, second_offsets, rays):
    parts, indices, counts = [[] for _ in first], [], []
    place = {int(r): i for i, r in enumerate(rays)}
    for r in range(len(first_offsets) - 1):
        pieces = [(first, first_offsets, r), *([(second, second_offsets, place[r])] if r in place else [])]
        count = 0
        for pack, offsets, row in pieces:
            for part, values in zip(parts, pack, strict=True):
                part.append(values[offsets[row] : offsets[row + 1]])
            count += int(offsets[row + 1] - offsets[row])
        indices += [r] * count
        counts.append(count)
    offsets = torch.tensor([0, *counts]).cumsum(0).int()
    return [torch.cat([*p, torch.empty(0)]) for p in parts], torch.tensor(indices).int(), offsets


def packs(counts, tensors, seed):
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *counts]).cumsum(0).int()
    return [torch.rand(int(offsets[-1]), generator=g) for _ in range(tensors)], offsets


@pytest.mark.parametrize(
    ("first", "second", "rays"),
    [
        ([3, 0, 2, 5], [4, 1], [2, 0]),
        ([3, 0, 2], [], []),
        ([0, 0], [0, 7], [1, 0]),
        ([], [], []),
        ([i % 7 for i in range(300)], [i % 5 for i in range(100)], list(range(299, -1, -3))),
    ],
)
def test_each_ray_goes_on_with_the_second_pack(first, second, rays):
    (a, a_offsets), (b, b_offsets) = packs(first, 3, 0), packs(second, 3, 1)
    rays = torch.tensor(rays, dtype=torch.long)
    got = append_packed(a, a_offsets, b, b_offsets, rays)
    wanted = reference(a, a_offsets, b, b_offsets, rays)
    for x, y in zip([*got[0], *got[1:]], [*wanted[0], *wanted[1:]], strict=True):
        assert torch.equal(x, y) and x.dtype == y.dtype


def test_errors():
    (a, offsets), rays = packs([2, 1], 1, 0), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="append_packed: second: expected 1 tensors as in first, got 2"):
        append_packed(a, offsets, a * 2, offsets, rays)
    with pytest.raises(ValueError, match=r"append_packed: rays: expected shape \(2\), got \(1,\)"):
        append_packed(a, offsets, a, offsets, rays[:1])
    with pytest.raises(TypeError, match="append_packed: first_offsets: expected int32, got int64"):
        append_packed(a, offsets.long(), a, offsets, rays)
