"""The viewer on shapes: nothing but sphere tracing draws them, while they are fitted and afterwards."""

import pytest
import torch
import trimesh
from polyfield.apps.api import fit_scene
from polyfield.apps.errors import UserError
from polyfield.apps.fit import Budget, fit
from polyfield.apps.tracing import drawn
from polyfield.apps.viewer import FitView, view_run
from polyfield.apps.viewer.panel import Panel
from polyfield.datasets.scene import LoadOptions
from polyfield.renderers.sphere_tracing import SphereTracer

from .test_shape import SMALL
from .viewer_fakes import Client, settled, soon


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "ball.ply"
    trimesh.creation.icosphere(3, 2.0).export(path)
    return path


def fitted(ball, folder, watched):
    """All tensors after a few steps, and the pictures of a window."""
    scene = SMALL.open_data(str(ball), LoadOptions())
    job = SMALL.build(scene, 3, torch.device("cpu"), Budget(30))
    if not watched:
        fit(job, Budget(30))
        return job.tensors(), []
    with FitView(job, scene, folder, port=0) as watch:
        client = Client(watch.viewer.server, 64, 48)
        panel = Panel(watch.viewer, client)
        fit(job, Budget(30), [watch])
        watch.finish()
        soon(lambda: settled(panel), 60)
        assert "step **30**" in watch.progress._text.content and "PSNR" not in watch.progress._text.content
        panel.close()
    return job.tensors(), client.pictures


def test_a_fit_to_a_shape_can_be_watched(ball, tmp_path):
    alone, _ = fitted(ball, tmp_path, watched=False)
    watched, pictures = fitted(ball, tmp_path, watched=True)
    assert len(pictures) > 0
    for name, tensor in alone.items():
        assert torch.equal(tensor, watched[name]), name


def test_a_run_of_a_shape_is_shown(ball, tmp_path):
    run = fit_scene(ball, SMALL, run=tmp_path / "run", steps=30, threads=1, device="cpu", preview_every=0.0)
    assert not (tmp_path / "run" / "preview.png").exists()
    with view_run(run, port=0) as page:
        assert isinstance(page.stage.renderer, SphereTracer)
        client = Client(page.server, 64, 48)
        panel = Panel(page, client)
        soon(lambda: settled(panel), 60)
        panel._channel.value = "Shaded"
        before = len(client.pictures)
        soon(lambda: len(client.pictures) > before and settled(panel), 60)
        panel.close()


def test_only_distances_are_traced(tmp_path):
    from types import SimpleNamespace

    run = SimpleNamespace(
        of_shape=False, field=torch.nn.Linear(1, 1), renderer=None, asked=SimpleNamespace(recipe="ngp")
    )
    with pytest.raises(UserError, match=r"--renderer trace: expected a run of a distance .*, got ngp; drop it"):
        drawn(run, trace=True)
    assert drawn(run) is run
