"""A plain background is found and cut out; what is as dark within the scene stays."""

import torch
from polyfield.datasets.cut_out import cut_out, plain_background
from polyfield.datasets.scene import Frame, Split
from polyfield.geometry import Camera


def frame(colors):
    height, width = colors.shape[:2]
    camera = Camera(torch.tensor([[20.0, 0, width / 2], [0, 20.0, height / 2], [0, 0, 1]]), torch.eye(4), width, height)
    return Frame("x", camera, colors, split=Split.TRAIN)


def ring(background, noise=0):
    """A thick ring with a hole, on 40 x 50 pixels; a slit in its right side opens the hole if asked for."""
    y, x = torch.meshgrid(torch.arange(40.0) - 20, torch.arange(50.0) - 25, indexing="ij")
    radius = (x**2 + y**2).sqrt()
    colors = torch.tensor(background).expand(40, 50, 3).clone()
    colors += torch.randint(-noise, noise + 1, colors.shape, generator=torch.Generator().manual_seed(0))
    colors[(radius > 6) & (radius < 14)] = torch.tensor([200, 30, 40])
    return colors.clamp(0, 255).to(torch.uint8), radius


def test_the_scene_is_cut_out_and_what_it_encloses_stays():
    for background in ([0, 0, 0], [255, 255, 255], [17, 180, 90]):
        colors, radius = ring(background, noise=2)
        found = plain_background([frame(colors)] * 3)
        torch.testing.assert_close(found * 255, torch.tensor(background).float(), atol=2, rtol=0)
        alphas = cut_out(frame(colors), torch.tensor(background) / 255).alphas
        assert torch.equal(alphas == 255, radius < 14) and set(alphas.unique().tolist()) == {0, 255}


def test_a_gap_that_reaches_the_rim_is_cut_out_too():
    colors, _ = ring([0, 0, 0])
    colors[19:21, 25:] = 0
    alphas = cut_out(frame(colors), torch.zeros(3)).alphas
    assert alphas[20, 25] == 0 and alphas[20, 37] == 0 and alphas[10, 25] == 255


def test_a_scene_that_reaches_the_rim_has_no_plain_background():
    colors, _ = ring([0, 0, 0])
    colors[30:] = torch.tensor([90, 80, 70], dtype=torch.uint8)
    assert plain_background([frame(colors)] * 3) is None
    varied = [frame(ring([v, v, v])[0]) for v in (0, 40, 80)]
    assert plain_background(varied) is None, "each is plain, but not all alike"


def test_nothing_but_background_is_all_cut_out():
    colors = torch.full((8, 9, 3), 77, dtype=torch.uint8)
    assert not cut_out(frame(colors), torch.full((3,), 77 / 255)).alphas.any()
