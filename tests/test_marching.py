import math

import pytest
import torch
from polyfield.cuda.marching import march_grid, march_grid_scalar
from polyfield.cuda.native import isa
from polyfield.cuda.occupancy import brick_states, pack_bits

from tests.reference import march_grid as reference

HALF = 1.0


def random_bits(cascades, resolution, share=0.1, seed=0, blocks=1):
    g = torch.Generator().manual_seed(seed)
    n = resolution // blocks
    occupied = torch.rand(cascades, n, n, n, generator=g) < share
    for axis in (1, 2, 3):
        occupied = occupied.repeat_interleave(blocks, axis)
    return occupied, pack_bits(occupied.reshape(cascades, -1), resolution)


def random_rays(n, seed=0, spread=3.0):
    g = torch.Generator().manual_seed(seed)
    origins = torch.randn(n, 3, generator=g) * spread
    target = torch.rand(n, 3, generator=g) * 2 - 1
    directions = torch.nn.functional.normalize(target - origins, dim=-1)
    return (
        origins,
        directions,
        torch.rand(n, generator=g) * 0.5,
        torch.rand(n, generator=g) * 8,
        torch.rand(n, generator=g),
    )


def test_bits_are_packed_by_brick():
    occupied, bits = random_bits(2, 16, 0.3)
    x, y, z = torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij")
    brick = ((x // 4) * 4 + y // 4) * 4 + z // 4
    read = (bits[:, brick] >> (16 * (x % 4) + 4 * (y % 4) + z % 4)) & 1
    assert torch.equal(read == 1, occupied)
    assert torch.equal(pack_bits(occupied.to(torch.uint8).reshape(2, -1), 16), bits)


def test_states_are_distances_between_bricks():
    _, bits = random_bits(1, 64, 0.002, blocks=4)
    bits[0, 7] = 5
    states = brick_states(bits, 64)[:-4].reshape(16, 16, 16).int()
    full = torch.nonzero((bits == -1).reshape(16, 16, 16))
    filled = torch.nonzero((bits != 0).reshape(16, 16, 16))
    every = torch.nonzero(torch.ones(16, 16, 16))
    distance = (every[:, None] - filled[None]).abs().amax(-1).amin(-1).reshape(16, 16, 16).clamp(max=15)
    assert (states[tuple(full.T)] == 0x81).all()
    distance[tuple(full.T)] = 0x81
    assert torch.equal(states, distance.int())


def test_states_do_not_reach_across_a_border_between_cascades():
    inner, outer = brick_states(torch.zeros(2, 16**3, dtype=torch.int64), 64)[:-4].reshape(2, 16, 16, 16)
    assert inner[0, 5, 5] == 1 and inner[3, 8, 8] == 4 and inner[7, 7, 7] == 8  # to its outside
    assert outer[0, 0, 0] == 4 and outer[3, 8, 8] == 1  # to the cube in the middle
    assert outer[4, 8, 8] == 1 and outer[7, 7, 7] == 4  # within it: to its border


def test_a_ray_along_an_axis_is_cut_into_the_intervals_of_its_cells():
    occupied = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    occupied[0, 2, 4, 4] = occupied[0, 6, 4, 4] = True  # x in [-0.5, -0.25) and [0.5, 0.75)
    bits = pack_bits(occupied.reshape(1, -1), 8)
    o, d = torch.tensor([[-3.0, 0.125, 0.125]]), torch.tensor([[1.0, 0.0, 0.0]])
    t0, t1, rays, offsets = march_grid(
        o, d, torch.zeros(1), torch.full((1,), 9.0), bits, resolution=8, half=HALF, step=0.125
    )
    torch.testing.assert_close(t0, torch.tensor([2.5, 2.625, 3.5, 3.625]))
    torch.testing.assert_close(t1, t0 + 0.125)
    assert rays.tolist() == [0, 0, 0, 0] and offsets.tolist() == [0, 4]
    # half an interval later, by jitter; the first of these begins within its cell
    t0, *_ = march_grid(
        o,
        d,
        torch.zeros(1),
        torch.full((1,), 9.0),
        bits,
        resolution=8,
        half=HALF,
        step=0.125,
        jitter=torch.tensor([0.25]),
    )
    torch.testing.assert_close(t0, torch.tensor([2.53125, 2.65625, 3.53125, 3.65625]))


CASES = [
    dict(cascades=1, resolution=64, step=0.011, cone_angle=0.0),
    dict(cascades=1, resolution=20, step=0.03, cone_angle=0.0),
    dict(cascades=1, resolution=4, step=0.2, cone_angle=0.0),
    dict(cascades=1, resolution=32, step=0.004, cone_angle=1 / 64),
    dict(cascades=3, resolution=32, step=0.012, cone_angle=0.0),
    dict(cascades=4, resolution=32, step=0.004, cone_angle=1 / 128),
    dict(cascades=5, resolution=16, step=0.05, cone_angle=0.2),
]


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c.values()))
def test_matches_the_reference(case, blocks):
    case = dict(case)
    cascades, resolution = case.pop("cascades"), case["resolution"]
    _, bits = random_bits(cascades, resolution, 0.1 if resolution > 4 else 0.7, blocks=blocks)
    o, d, near, far, jitter = random_rays(70, spread=1.5 * 2 ** (cascades - 1))
    far = far * 2 ** (cascades - 1)
    kw = dict(case, half=HALF, jitter=jitter)
    t0, t1, rays, offsets = march_grid(o, d, near, far, bits, **kw)
    r0, r1, r_rays, r_margins, (a_t, a_rays, a_margins) = reference.march_grid(o, d, near, far, bits, **kw)
    assert len(r0) > 30
    assert offsets.tolist() == [0, *torch.bincount(rays, minlength=70).cumsum(0).tolist()]
    # match by (ray, nearest start); what only one side has must be in doubt
    doubt = 2e-4
    key = lambda t, r: r.double() * 1000 + t  # noqa: E731
    ours, theirs, every = key(t0.double(), rays), key(r0, r_rays), key(a_t, a_rays)
    gap = lambda a, b: (a[:, None] - b[None]).abs().min(1)  # noqa: E731
    tolerance = 1e-3 * case["step"] + 2e-5 * 2 ** (cascades - 1)
    near_every = gap(ours, every)
    assert (near_every.values < tolerance).all()
    only_ours = gap(ours, theirs).values >= tolerance
    assert (a_margins[near_every.indices[only_ours]] < doubt).all()
    only_theirs = gap(theirs, ours).values >= tolerance
    ends = (r0 + (r1 - r0) / 2)[only_theirs]
    at_end = (ends - far[r_rays[only_theirs]]).abs() < 1e-4
    assert ((r_margins[only_theirs] < doubt) | at_end).all()
    assert only_ours.sum() + only_theirs.sum() < 0.01 * len(r0) + 3
    index = gap(ours, theirs)
    same = index.values < tolerance
    torch.testing.assert_close(t1.double()[same], r1[index.indices[same]], atol=2 * tolerance, rtol=0)


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c.values()))
def test_matches_one_ray_and_cell_at_a_time(case, blocks):
    case = dict(case)
    _, bits = random_bits(case.pop("cascades"), case["resolution"], 0.07, blocks=blocks)
    o, d, near, _, jitter = random_rays(3000, seed=1)
    far = torch.full((3000,), math.inf)
    a = march_grid(o, d, near, far, bits, half=HALF, jitter=jitter, **case)
    b = march_grid_scalar(o, d, near, far, bits, half=HALF, jitter=jitter, **case)
    if case["cone_angle"] == 0 and isa() != "portable":
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    else:  # exp2 and log are not the same to the last bit: a few samples beside walls differ
        assert abs(len(a[0]) - len(b[0])) <= 2 + 2e-4 * len(b[0])
        differing = (a[3].diff() != b[3].diff()).sum()
        assert differing <= 3 + 3e-3 * 3000
        keep_a, keep_b = [(a[3].diff() == b[3].diff())[x[2].long()] for x in (a, b)]
        torch.testing.assert_close(a[0][keep_a], b[0][keep_b], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(a[1][keep_a], b[1][keep_b], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("cascades, cone_angle", [(1, 0.0), (3, 0.0), (3, 0.01)])
def test_jumps_leave_nothing_out(cascades, cone_angle):
    # In a full grid every interval is a sample: those of any other grid are the ones whose middle is occupied.
    resolution = 32
    occupied, bits = random_bits(cascades, resolution, 0.03, seed=2, blocks=2)
    o, d, near, far, jitter = random_rays(2000, seed=3, spread=2)
    d[::3] = torch.eye(3)[torch.arange(len(d[::3])) % 3]  # along the axes
    o[::5] = (o[::5] * 8).round() / 8  # on the walls between cells
    kw = dict(resolution=resolution, half=HALF, step=0.013, cone_angle=cone_angle, jitter=jitter)
    every = march_grid(o, d, near, far + 5, torch.full_like(bits, -1), **kw)
    some = march_grid(o, d, near, far + 5, bits, **kw)
    key = lambda s: s[2].long() * 2**32 + s[0].view(torch.int32)  # noqa: E731
    chosen = torch.isin(key(every), key(some))
    assert chosen.sum() == len(some[0])  # the same sequence, to the last bit
    rays = every[2].long()
    middle = o[rays].double() + d[rays].double() * ((every[0].double() + every[1].double()) / 2)[:, None]
    reach, dt = (
        middle.abs().amax(-1),
        (every[0].double() * cone_angle).clamp(0.013, 2 * 2 ** (cascades - 1) / resolution),
    )
    cascade = torch.zeros(len(rays), dtype=torch.int64)
    for c in range(1, cascades):
        cascade += (reach >= 2 ** (c - 1)) | (dt > 2 * 2 ** (c - 1) / resolution)
    g = (middle / 2.0 ** cascade[:, None] + 1) * resolution / 2
    cell = g.floor().long().clamp(0, resolution - 1)
    wanted = occupied[cascade, cell[:, 0], cell[:, 1], cell[:, 2]]
    doubt = ((g - g.round()).abs().amin(-1) < 1e-4) | ((reach[:, None] - torch.tensor([1.0, 2.0])).abs() < 1e-5).any(-1)
    doubt |= ((dt[:, None] / torch.tensor([1.0, 2.0]) * resolution / 2 - 1).abs() < 1e-4).any(-1)
    assert torch.equal(chosen | doubt, wanted | doubt)


@pytest.mark.parametrize("march", [march_grid, march_grid_scalar])
def test_extreme_rays(march):
    _, bits = random_bits(1, 16, 1.0)
    inf, nan = math.inf, math.nan
    rows = [  # origin, direction, near, far, whether there are samples
        ([-3.0, 0, 0], [1.0, 0, 0], 0.0, inf, True),
        ([0.0, 0, 0], [0.0, 0, 1], 0.0, inf, True),  # from inside, along an axis
        ([0.0, 0, 0], [0.0, 0, -1], -inf, inf, True),
        ([0.0, 0, 2], [0.0, 0, 1], 0.0, inf, False),  # leaves
        ([2.0, 0, 0], [0.0, 0, 1], 0.0, inf, False),  # parallel, outside
        ([1.0, 0, 0], [0.0, 0, 1], 0.0, inf, False),  # on the upper face, which is outside
        ([-1.0, 0, -3], [0.0, 0, 1], 0.0, inf, True),  # on the lower face, which is inside
        ([-3.0, 0, 0], [1.0, 0, 0], 5.0, 1.0, False),  # near beyond far
        ([-3.0, 0, 0], [1.0, 0, 0], 3.0, 3.0, False),
        ([-3.0, 0, 0], [1.0, 0, 0], 4.5, inf, False),  # begins behind the grid
        ([-3.0, 0, 0], [0.0, 0, 0], 0.0, inf, False),
        ([0.0, 0, 0], [0.0, 0, 0], 0.0, inf, False),
        ([nan, 0, 0], [1.0, 0, 0], 0.0, inf, False),
        ([0.0, 0, 0], [nan, 0, 1], 0.0, inf, False),
        ([0.0, inf, 0], [0.0, 1, 0], 0.0, inf, False),
        ([0.0, 0, 0], [1.0, 0, 0], nan, inf, False),
        ([0.0, 0, 0], [1.0, 0, 0], 0.0, nan, False),
        ([-1e6, 0, 0], [1.0, 0, 0], 0.0, inf, True),
        ([-3.0, 0, 0], [1.0, 1e-30, -1e-30], 0.0, inf, True),
        ([-1e30, 0, 0], [1.0, 0, 0], 0.0, inf, False),
    ]
    o, d = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
    near, far = torch.tensor([r[2] for r in rows]), torch.tensor([r[3] for r in rows])
    for cone in (0.0, 0.01):
        t0, t1, _, offsets = march(o, d, near, far, bits, resolution=16, half=HALF, step=0.1, cone_angle=cone)
        assert torch.isfinite(t0).all() and torch.isfinite(t1).all() and (t1 >= t0).all()
        assert (offsets.diff() > 0).tolist() == [r[4] for r in rows], cone


@pytest.mark.parametrize("rays", [0, 1, 15, 17, 511, 513, 1500])
def test_any_number_of_rays(rays):
    _, bits = random_bits(1, 16, 0.3)
    o, d, near, far, jitter = random_rays(1500)
    kw = dict(resolution=16, half=HALF, step=0.05)
    every = march_grid(o, d, near, far, bits, jitter=jitter, **kw)
    some = march_grid(o[:rays], d[:rays], near[:rays], far[:rays], bits, jitter=jitter[:rays], **kw)
    n = int(every[3][rays])
    assert all(torch.equal(a, b[:n]) for a, b in zip(some[:3], every[:3], strict=True))
    assert torch.equal(some[3], every[3][: rays + 1])


def test_empty_grid_and_limit_per_ray():
    _, bits = random_bits(1, 16, 0.4)
    o, d, near, far, jitter = random_rays(600)
    kw = dict(resolution=16, half=HALF, step=0.02, jitter=jitter)
    assert len(march_grid(o, d, near, far, torch.zeros_like(bits), **kw)[0]) == 0
    every, scalar = (
        march_grid(o, d, near, far, bits, **kw),
        march_grid_scalar(o, d, near, far, bits, max_samples=7, **kw),
    )
    some = march_grid(o, d, near, far, bits, max_samples=7, **kw)
    assert torch.equal(some[3].diff(), every[3].diff().clamp(max=7)) and torch.equal(some[3], scalar[3])
    for r in range(0, 600, 13):
        n = int(some[3][r + 1] - some[3][r])
        assert torch.equal(some[0][some[3][r] : some[3][r] + n], every[0][every[3][r] : every[3][r] + n])


def test_deterministic_and_for_any_thread_count():
    _, bits = random_bits(1, 32, 0.05, blocks=4)
    o, d, near, far, jitter = random_rays(5000)
    kw = dict(resolution=32, half=HALF, step=0.01, jitter=jitter)
    first = march_grid(o, d, near, far, bits, **kw)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = march_grid(o, d, near, far, bits, states=brick_states(bits, 32), **kw)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_opcheck():
    _, bits = random_bits(1, 16, 0.3)
    o, d, near, far, jitter = random_rays(20)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (o, d, near, far, bits, brick_states(bits, 16), 16, 1.0, 0.05, 0.0, jitter, 0)
    torch.library.opcheck(torch.ops.polyfield.march_grid.default, arguments, test_utils=utils)


def test_errors():
    _, bits = random_bits(1, 16)
    o, d, near, far, jitter = random_rays(5)
    kw = dict(resolution=16, half=1.0, step=0.1)
    march = lambda *a, **k: march_grid(*(a or (o, d, near, far, bits)), **{**kw, **k})  # noqa: E731
    with pytest.raises(ValueError, match=r"march_grid: directions: expected shape \(5, 3\), got \(4, 3\)"):
        march(o, d[:4], near, far, bits)
    with pytest.raises(ValueError, match=r"march_grid: jitter: expected shape \(5\), got \(4\,\)"):
        march(jitter=jitter[:4])
    with pytest.raises(TypeError, match="march_grid: far: expected float32, got float64"):
        march(o, d, near, far.double(), bits)
    with pytest.raises(TypeError, match="march_grid: bits: expected int64, got int32"):
        march(o, d, near, far, bits.int())
    with pytest.raises(ValueError, match=r"march_grid: bits: expected shape \(\*, 512\), got \(1, 64\)"):
        march(resolution=32)
    with pytest.raises(ValueError, match="resolution: expected a multiple of 4 with 1 cascades, got 18"):
        march(resolution=18)
    with pytest.raises(ValueError, match="resolution: expected a multiple of 16 with 2 cascades, got 20"):
        march(o, d, near, far, torch.zeros(2, 125, dtype=torch.int64), resolution=20)
    with pytest.raises(ValueError, match=r"step: expected at least .* got 0.0; use a longer step"):
        march(step=0.0)
    with pytest.raises(ValueError, match="half: expected a positive number, got -1"):
        march(half=-1)
    with pytest.raises(ValueError, match=r"cone_angle: expected a number from 0 to 1, got -0\.1"):
        march(cone_angle=-0.1)
    with pytest.raises(ValueError, match=r"states: expected shape \(68\)"):
        march(states=torch.zeros(3, dtype=torch.uint8))
