"""The viewer during a fit: curves, progress, and what it shows."""

import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from polyfield.apps.viewer.history import History
from polyfield.apps.viewer.panel import Panel
from polyfield.apps.viewer.progress import FitProgress, clock
from polyfield.apps.viewer.turns import Owner, Turns
from polyfield.geometry import Pixels

from .viewer_fakes import Client, photographs, settled, soon, stage, viewer


def report(job, spent=0.5):
    colors = torch.full((4, 3), 0.5)
    step = SimpleNamespace(
        render=SimpleNamespace(pixels=Pixels(colors=colors)), target_colors=colors + 0.1, target=Pixels(masks=None)
    )
    return SimpleNamespace(job=job, step=step, spent=spent, terms={"photometric": 0.01})


def test_history_of_a_fit(monkeypatch):
    """A curve for each number; a point per second, and half as many when there are too many."""
    monkeypatch.setattr("polyfield.apps.viewer.history.POINTS", 8)
    with viewer() as page:
        history = History(page.server)
        job = SimpleNamespace(elapsed=0.0, field=[None] * 2000)
        for tick in range(30):
            job.elapsed, job.field = tick / 2, [None] * (2000 + 100 * tick)
            history.add(report(job), 20 + tick)
        seconds = [row[0] for row in history.rows]
        assert len(seconds) <= 8 and seconds[0] == 0 and seconds == sorted(seconds)
        assert min(b - a for a, b in itertools.pairwise(seconds)) >= 2
        psnr, memory, gaussians = history._charts
        assert [chart.title for chart in history._charts] == ["PSNR, dB", "memory, GB", "Gaussians, thousands"]
        np.testing.assert_allclose(gaussians.data[0], seconds)
        np.testing.assert_allclose(gaussians.data[1], [2 + 0.2 * s for s in seconds])
        np.testing.assert_allclose(psnr.data[1], [20 + 2 * s for s in seconds])
        assert (memory.data[1] > 0.05).all()
        alone = History(page.server)
        for job.elapsed, job.field in ((0.0, object()), (2.0, object())):
            alone.add(report(job), 30.0)
        assert len(alone._charts) == 2


def test_progress_of_a_fit():
    turns, job = Turns(fitting=True), SimpleNamespace(step=40, elapsed=30.0, field=None)
    with viewer(turns=turns) as page:
        progress = FitProgress(page.server, turns)
        progress(report(job))
        text = progress._text.content
        assert "step **40**" in text
        assert "PSNR **20.00 dB**" in text
        assert "**0:30 left**" in text
        assert progress._bar.value == 50
        progress.pause(True)
        assert turns.paused
        assert progress._pause.label == "Resume"
        progress.pause(False)
        assert progress._pause.label == "Pause"
        progress.finish("Fitted")
        assert progress._text.content.startswith("Fitted at step **40**")
        assert progress._pause.disabled


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65, "1:05"), (3665, "1:01:05")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_view_during_a_fit(tmp_path):
    from polyfield.apps.viewer import FitView

    set_up = stage()
    job = SimpleNamespace(field=set_up.field, renderer=set_up.renderer, step=0, elapsed=0.0, idle=0.0)
    watch = FitView(job, photographs(), tmp_path, port=0)
    running = threading.Event()

    def step():
        job.step += 1
        job.renderer.train()
        time.sleep(0.003)
        assert job.renderer.training, "the viewer does not touch the renderer during a step"
        watch(report(job))

    def run():
        while not running.is_set():
            step()

    thread = threading.Thread(target=run, daemon=True)
    with watch:
        client = Client(watch.viewer.server)
        panel = Panel(watch.viewer, client)
        thread.start()
        soon(lambda: len(client.pictures) > 4)
        assert "step **" in watch.progress._text.content
        watch.progress.pause(True)
        watch.viewer.loop.wake()
        soon(lambda: settled(panel) and watch.turns._owner is not Owner.FIT)
        at = job.step
        time.sleep(0.1)
        assert job.step == at
        watch.progress.pause(False)
        soon(lambda: job.step > at + 3)
        assert job.idle > 0.05
        running.set()
        thread.join(20)
        assert not thread.is_alive()
        panel.close()
