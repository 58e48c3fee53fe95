"""Gaussians in the viewer: whole pictures, selections, deletion, the browser's own drawing, and what is saved."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from polyfield.apps.viewer.loop import Look
from polyfield.apps.viewer.painting import Stage
from polyfield.apps.viewer.panel import Panel
from polyfield.apps.viewer.splat_painting import Selection, SplatPainting, draws_images
from polyfield.apps.viewer.splat_panel import for_browser
from polyfield.apps.viewer.turns import Turns
from polyfield.fields.gaussian_init import from_points
from polyfield.fields.gaussians import GaussianField
from polyfield.geometry import Aabb
from polyfield.geometry.splat_io import load_gaussians
from polyfield.geometry.transforms import transform_points
from polyfield.renderers.splat import SplatRenderer

from .viewer_fakes import SCENE_TO_WORLD, Client, camera, settled, soon, viewer
from .viewer_fakes import stage as ball


def splat_stage():
    """A row of eight balls along x, from faint to opaque and small to large."""
    x = torch.linspace(-0.7, 0.7, 8)
    points = torch.stack([x, 0 * x, 0 * x], 1)
    gaussians = from_points(points, torch.rand(8, 3, generator=torch.Generator().manual_seed(0)), degree=1)
    gaussians.log_scales[:] = torch.linspace(0.01, 0.08, 8).log()[:, None]
    gaussians.logit_opacities[:] = torch.logit(torch.linspace(0.15, 0.95, 8))
    return Stage(GaussianField(gaussians, Aabb.cube(1.0)), SplatRenderer((0.0, 0.0, 0.0)))


def painted(stage, **options):
    painting = SplatPainting(stage, camera(64, 48), **options)
    assert not painting.done
    painting.advance(1)
    assert painting.done and painting.seconds > 0
    return painting


def test_who_draws_images():
    assert draws_images(splat_stage())
    assert not draws_images(ball())
    assert isinstance(Look(camera()).painting(splat_stage(), (32, 24)), SplatPainting)
    assert not isinstance(Look(camera()).painting(ball(), (32, 24)), SplatPainting)


def test_a_picture_is_the_renderers_own():
    stage = splat_stage()
    stage.renderer.train()
    pixels = painted(stage, normals=True).pixels()
    assert stage.renderer.training, "a fit goes on as it was"
    wanted = stage.renderer.eval().render(stage.field, camera(64, 48), normals=True).pixels
    for name in ("colors", "alphas", "depths", "normals"):
        assert torch.equal(getattr(pixels, name), getattr(wanted, name)), name
    assert not pixels.colors.requires_grad


def test_z_depths():
    stage = splat_stage()
    painting = painted(stage)
    pixels = painting.pixels()
    z = painting.z_depths(pixels)
    seen = pixels.alphas > 0.5
    assert seen.any()
    assert z[~seen].isinf().all()
    rays = camera(64, 48).rays()
    along = (rays.directions @ camera().forward).view(48, 64)
    torch.testing.assert_close(z[seen], (pixels.depths * along)[seen])


def test_selections():
    stage = splat_stage()
    box = Aabb(torch.tensor([0.0, -1, -1]), torch.tensor([1.0, 1, 1]))
    assert len(Selection().of(stage, None)) == 8
    assert Selection().mask(stage, box).tolist() == [False] * 4 + [True] * 4
    assert Selection(min_opacity=0.5).mask(stage, None).tolist() == [False] * 4 + [True] * 4
    assert Selection(max_scale=0.045).mask(stage, None).tolist() == [True] * 4 + [False] * 4
    assert Selection(0.5, 0.065).mask(stage, box).tolist() == [False] * 4 + [True] * 2 + [False] * 2
    assert len(Selection(1.0).of(stage, None)) == 0
    assert not painted(stage, selection=Selection(1.0)).pixels().alphas.any(), "none at all is an empty picture"
    stage.deleted = torch.arange(8) < 6
    assert len(Selection().of(stage, None)) == 2
    stage.deleted = torch.ones(7, dtype=torch.bool)
    assert len(Selection().of(stage, None)) == 8, "of a field that has changed since"


def test_for_the_browser():
    stage = splat_stage()
    with torch.no_grad():
        stage.field.quats.copy_(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
        stage.field.log_scales[:, 0] -= 1
    given = for_browser(Selection().of(stage, None))
    assert given["centers"].shape == (8, 3) and given["opacities"].shape == (8, 1) and given["rgbs"].shape == (8, 3)
    eigen = np.linalg.eigvalsh(given["covariances"])
    np.testing.assert_allclose(np.sqrt(eigen[:, 0]), stage.field.log_scales.detach().exp().amin(1), rtol=1e-3)
    assert given["rgbs"].min() >= 0 and given["rgbs"].max() <= 1


@pytest.fixture
def window(tmp_path):
    with viewer(run=tmp_path, stage=splat_stage()) as page:
        client = Client(page.server)
        panel = Panel(page, client)
        page._panels[client.client_id] = panel
        yield SimpleNamespace(page=page, client=client, panel=panel, splats=panel.splats)
        panel.close()


def shown(window):
    soon(lambda: settled(window.panel))
    return window.client.pictures[-1][0].astype(float)


def change(window, act):
    act()
    return shown(window)


def test_filters_change_the_picture(window):
    assert "**8** in the scene" in window.splats._count.content
    full = shown(window)
    fewer = change(window, lambda: setattr(window.splats._opacity, "value", 0.9))
    assert 0 < fewer.sum() < full.sum()
    change(window, lambda: setattr(window.splats._opacity, "value", 0.0))
    smaller = change(window, lambda: setattr(window.splats._size, "value", -1.4))
    assert smaller.sum() < full.sum()
    assert window.splats.selection.max_scale == pytest.approx(10**-1.4)
    again = change(window, lambda: setattr(window.splats._size, "value", 2.0))
    assert window.splats.selection.max_scale == math.inf
    np.testing.assert_allclose(again, full, atol=40)  # JPEG is not in between: only sizes of the picture may differ


def crop(window):
    window.panel._axes[0].value = (0.0, 1.0)
    window.panel._crop.value = True


def test_deleting_what_is_in_the_box(window):
    full = shown(window)
    window.splats.delete()
    assert window.client.notes[-1][0] == "Nothing was deleted"
    assert window.page.stage.deleted is None
    change(window, lambda: crop(window))
    window.splats.delete()
    assert "4 Gaussians" in window.client.notes[-1][1]
    assert "**4** of them deleted" in window.splats._count.content
    left = change(window, lambda: setattr(window.panel._crop, "value", False))
    assert 0 < left.sum() < full.sum()
    back = change(window, window.splats.restore)
    assert back.sum() == pytest.approx(full.sum())


def test_nothing_is_deleted_while_a_fit_moves_it(window):
    crop(window)
    window.page.turns._fitting = True
    window.splats.delete()
    window.page.turns._fitting = False
    assert "still moves" in window.client.notes[-1][1]
    assert window.page.stage.deleted is None


def test_saving_what_is_shown(window, tmp_path):
    window.splats.save()
    crop(window)
    window.splats.save()
    counts = []
    for name, content in window.client.downloads:
        assert name == "ball.ply"
        (tmp_path / name).write_bytes(content)
        counts.append(len(load_gaussians(tmp_path / name)))
    assert counts == [8, 4]
    saved = load_gaussians(tmp_path / "ball.ply")
    field = window.page.stage.field
    torch.testing.assert_close(saved.means, transform_points(SCENE_TO_WORLD, field.means.detach().double()).float()[4:])
    torch.testing.assert_close(saved.scales, 2 * field.gaussians().scales.detach()[4:])
    window.splats._opacity.value = 1.0
    window.splats.save()
    assert window.client.notes[-1][0] == "Nothing to save"


def test_the_browser_draws(window):
    shown(window)
    window.splats._browser.value = True
    soon(lambda: window.client.pictures[-1][0] is None)
    assert window.splats._drawn is not None
    first = window.splats._drawn
    crop(window)
    assert window.splats._drawn is not first, "cropped, it is drawn anew"
    change(window, lambda: setattr(window.splats._browser, "value", False))
    assert window.splats._drawn is None


def test_two_viewers_may_wait_at_once():
    """A turn that another viewer ends does not end one's claim."""
    import threading

    turns = Turns(fitting=True)
    done = []

    def take():
        with turns.viewer():
            done.append(True)

    threads = [threading.Thread(target=take, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        if len(done) == 2:
            break
        turns.after_step()
    for thread in threads:
        thread.join(10)
    assert len(done) == 2
