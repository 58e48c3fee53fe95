"""The viewer on real runs: it does not change a fit, opens without photographs; the command starts and stops."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.api import fit_scene
from polyfield.apps.camera_path import load_camera_path
from polyfield.apps.fit import Budget, fit
from polyfield.apps.recipes import ngp
from polyfield.apps.run import home_view, open_run
from polyfield.apps.viewer import FitView, view_run
from polyfield.apps.viewer.panel import Panel
from polyfield.datasets.scene import open_scene
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.radiance_grid import RadianceGridConfig

from .viewer_fakes import Client, settled, soon

SMALL = replace(
    ngp.Config(),
    field=RadianceGridConfig(grid=HashGridConfig(levels=4, features=4, log2_size=12, finest_resolution=64)),
    occupancy=ngp.OccupancyConfig(resolution=16),
    march=replace(ngp.Config().march, steps_per_diagonal=64),
    samples_per_step=2048,
)
DOWNSCALE = 8


@pytest.fixture(scope="module")
def scene():
    return open_scene("demo", downscale=DOWNSCALE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    fit_scene("demo", SMALL, run=folder, steps=20, downscale=DOWNSCALE, preview_every=0.0)
    return folder


def fitted(scene, folder, steps, watched):
    """All tensors after a fit, and the pictures that a window got meanwhile."""
    job = SMALL.build(scene, seed=3)
    after = list(SMALL.after_step())
    if not watched:
        fit(job, Budget(steps=steps), after)
        return job.tensors(), []
    with FitView(job, scene, folder, port=0) as watch:
        client = Client(watch.viewer.server, 64, 48)
        panel = Panel(watch.viewer, client)

        def move(_):
            client.camera.position = client.camera.position * 0.99
            client.moved()
            time.sleep(0.02)

        fit(job, Budget(steps=steps), [*after, watch, move])
        watch.finish()
        soon(lambda: len(client.pictures) > 3)
        panel.close()
    return job.tensors(), client.pictures


def test_watching_does_not_change_a_fit(scene, tmp_path):
    alone, _ = fitted(scene, tmp_path, 25, watched=False)
    watched, pictures = fitted(scene, tmp_path, 25, watched=True)
    assert len(pictures) > 3
    assert alone.keys() == watched.keys()
    for name, tensor in alone.items():
        assert torch.equal(tensor, watched[name]), name


def test_a_pause_is_not_counted(scene, tmp_path):
    job = SMALL.build(scene, seed=3)
    with FitView(job, scene, tmp_path, port=0) as watch:
        watch.turns.pause(True)
        threading.Timer(1.0, lambda: watch.turns.pause(False)).start()
        started = time.perf_counter()
        fit(job, Budget(steps=3), [watch])
        wall = time.perf_counter() - started
    assert job.idle > 0.7
    assert 0 < job.elapsed <= wall - job.idle


def test_a_run_opens_at_a_photograph(run, scene):
    opened = open_run(run)
    torch.testing.assert_close(torch.tensor(opened.asked.facts.home), home_view(scene).float())
    assert opened.asked.facts.up == pytest.approx(scene.up.tolist(), abs=1e-6)
    with view_run(opened, port=0) as page:
        client = Client(page.server, 64, 48)
        panel = Panel(page, client)
        soon(lambda: panel.photos._go.visible, 60)
        assert len(page.photos.photos) == len(scene.frames)
        soon(lambda: settled(panel), 60)
        panel._channel.value = "Normals"
        soon(lambda: settled(panel), 60)
        panel.close()


def test_runs_from_before_up_and_home_were_kept(run, tmp_path):
    content = json.loads((run / "config.json").read_text())
    for name in ("up", "home"):
        del content["facts"][name]
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "scene.safetensors").write_bytes((run / "scene.safetensors").read_bytes())
    with view_run(open_run(tmp_path), port=0) as page:
        assert page.up == (0, 0, 1)
        assert page.server.initial_camera.position[2] > 0.5


def test_a_run_whose_photographs_are_gone(run, tmp_path):
    content = json.loads((run / "config.json").read_text())
    content["data"] = str(tmp_path / "gone")
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "scene.safetensors").write_bytes((run / "scene.safetensors").read_bytes())
    with view_run(open_run(tmp_path), port=0) as page:
        client = Client(page.server, 64, 48)
        panel = Panel(page, client)
        soon(lambda: "No photographs" in panel.photos._note.content)
        assert str(tmp_path / "gone") in panel.photos._note.content
        soon(lambda: client.pictures, 60)
        panel.close()


def test_render_follows_a_recorded_path(run, tmp_path):
    with view_run(open_run(run), port=0) as page:
        client = Client(page.server, 64, 48)
        panel = Panel(page, client)
        page.recorder.add(panel.pose, 64, 48)
        client.camera.position = client.camera.position * 0.8
        page.recorder.add(panel.pose, 64, 48)
        file = page.recorder.save()
        panel.close()
    assert file == run / "camera_path.json"
    assert main(["render", str(run), "--path", str(file), "--frames", "3", "--output", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    in_scene = load_camera_path(file, 3, open_run(run).asked.facts.matrix)
    assert in_scene[-1].position.tolist() == pytest.approx(client.camera.position.tolist(), abs=1e-5)


def test_command_starts_answers_and_stops(run):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "polyfield.apps", "view", str(run), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as page:
        try:
            line = page.stdout.readline()
            assert re.match(rf"demo: http://127\.0\.0\.1:{port} ", line), line
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=30) as answer:
                assert answer.status == 200
            second = subprocess.run(command, capture_output=True, text=True, check=False)
            assert second.returncode == 2
            assert second.stderr == (
                f"error: view: port: expected a free port, got {port} (in use); choose another with --port\n"
            )
        finally:
            page.send_signal(signal.SIGINT)
        _, errors = page.communicate(timeout=30)
        assert page.returncode == 0
        assert errors == ""


def test_fit_with_a_port_in_use_touches_nothing(run, tmp_path, capsys):
    before = sorted((p.name, p.stat().st_mtime_ns) for p in run.iterdir())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for folder, more in ((tmp_path / "new", []), (run, ["--overwrite"])):
            assert main(["fit", "ngp", "demo", "--run", str(folder), "--view", "--port", port, *more]) == 2
            assert f"view: port: expected a free port, got {port} (in use)" in capsys.readouterr().err
    assert not Path(tmp_path / "new").exists()
    assert sorted((p.name, p.stat().st_mtime_ns) for p in run.iterdir()) == before


def test_page_stays_after_a_fit(tmp_path, capsys):
    """``fit --view`` ends by itself with the fit's work done; the page is there until Ctrl-C."""
    waited = []

    def wait(self, stop=lambda: False):
        waited.append((tmp_path / "run" / "scene.safetensors").is_file())
        assert not self.turns.fitting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyfield.apps.viewer.server.Viewer.wait", wait)
        options = {"steps": 5, "downscale": DOWNSCALE, "preview_every": 0.0, "view": True, "port": 0}
        fit_scene("demo", SMALL, run=tmp_path / "run", **options)
    assert waited == [True]
    out = capsys.readouterr().out
    assert "Watch it at http://127.0.0.1:" in out
    assert "the page stays open at http://127.0.0.1:" in out
