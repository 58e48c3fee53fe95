"""Pictures of several rays per pixel."""

import math
from types import SimpleNamespace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.geometry import Camera, CameraModel, Pixels
from polyfield.renderers.oversampling import oversampled

POSE = torch.eye(4)


class Stripes:
    """Draws what rays point at: colours and depths of their directions, nothing to the left of a line."""

    oversampling = 2

    def render(self, field, camera, normals=False):
        directions = camera.rays().directions.view(camera.height, camera.width, 3)
        alphas = (directions[..., 0] > field).float()
        shown = torch.where(alphas[..., None] > 0, torch.nn.functional.normalize(directions + 1, dim=-1), math.nan)
        depths = torch.where(alphas > 0, 2 + directions[..., 1], math.inf)
        pixels = Pixels(colors=directions * alphas[..., None], alphas=alphas, depths=depths)
        return SimpleNamespace(pixels=pixels if not normals else Pixels(alphas=alphas, normals=shown))


def cameras():
    perspective = Camera.perspective(6, 4, math.radians(70), POSE)
    yield perspective
    lens = torch.tensor([0.1, -0.02, 0.0, 0.0])
    yield Camera(perspective.K, POSE, 6, 4, CameraModel.FISHEYE, lens)
    yield Camera.equirectangular(6, 4, POSE)


@pytest.mark.parametrize("camera", list(cameras()), ids=lambda camera: camera.model.value)
def test_a_pixel_is_the_mean_of_a_finer_picture(camera):
    fine = Stripes().render(0.13, camera.resized(18, 12)).pixels
    squares = lambda x: x.unfold(0, 3, 3).unfold(1, 3, 3).flatten(-2)  # noqa: E731
    found = oversampled(Stripes(), 0.13, camera, side=3)
    alphas = squares(fine.alphas)
    torch.testing.assert_close(found.colors, squares(fine.colors).mean(-1))
    torch.testing.assert_close(found.alphas, alphas.mean(-1))
    met = alphas.sum(-1)
    assert bool(((met > 0) & (met < 9)).any()), "some pixels lie on the line"
    wanted = (squares(fine.depths).nan_to_num(posinf=0.0) * alphas).sum(-1) / met
    torch.testing.assert_close(found.depths[met > 0], wanted[met > 0])
    assert bool(found.depths.isfinite().all()), "no depth where nothing is met"


def test_normals_are_unit_and_count_where_something_is_met():
    camera = Camera.perspective(6, 4, math.radians(70), POSE)
    found = oversampled(Stripes(), 0.13, camera, normals=True)
    length = found.normals.norm(dim=-1)
    torch.testing.assert_close(length, (found.alphas > 0).float())


def test_one_ray_is_the_renderer_s_own_picture():
    camera = Camera.perspective(6, 4, math.radians(70), POSE)
    own = Stripes().render(0.1, camera).pixels
    for name in ("colors", "alphas", "depths"):
        assert torch.equal(getattr(oversampled(Stripes(), 0.1, camera, side=1), name), getattr(own, name))


@pytest.mark.parametrize("verb", ["render", "evaluate"])
def test_no_rays_are_refused(verb, tmp_path, capsys):
    with pytest.raises(ValueError, match="expected at least 1 ray along a pixel, got 0"):
        oversampled(Stripes(), 0.1, None, side=0)
    assert main([verb, str(tmp_path), "--oversampling", "0"]) == 2
    assert f"{verb}: --oversampling: expected at least 1, got 0" in capsys.readouterr().err
