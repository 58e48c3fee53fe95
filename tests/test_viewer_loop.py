"""One thread paints for all windows, and takes turns with a fit."""

import threading
import time

import pytest
import torch
from polyfield.apps.commands.render import Channel
from polyfield.apps.viewer.loop import Loop, Window
from polyfield.apps.viewer.pace import Pace
from polyfield.apps.viewer.turns import Turns

from .viewer_fakes import Gate, look, soon, stage

# The loop.


@pytest.fixture
def painting_loop(request):
    """A loop whose renderer takes a hundredth of a second per call; closed when the test ends."""
    set_up = stage(seconds_per_call=getattr(request, "param", 0.0))
    loop = Loop(set_up, Turns(fitting=False), pace=Pace(1e-3))
    loop.start()
    yield loop
    set_up.renderer.during = lambda: None
    loop.turns.finish()
    loop.stop()


def test_sharpens_step_by_step(painting_loop):
    shown = []
    window = Window(shown.append)
    painting_loop.add(window)
    painting_loop.show(window, look(64, 48))
    soon(lambda: shown and shown[-1].sharpest)
    divisors = [s.divisor for s in shown]
    assert divisors[0] > 1
    assert divisors == sorted(divisors, reverse=True)
    assert divisors[-1] == 1
    assert shown[-1].pixels.colors.shape == (48, 64, 3)
    assert shown[0].pixels.colors.shape[1] == round(64 / divisors[0])
    calls = painting_loop.stage.renderer.calls
    time.sleep(0.1)
    assert painting_loop.stage.renderer.calls == calls, "nothing left to do"


def test_a_newer_view_aborts_the_sharpening(painting_loop):
    shown, renderer = [], painting_loop.stage.renderer
    rays = []  # painted so far, when each picture was shown: sharpening goes on meanwhile

    def show(frame):
        rays.append(renderer.rays)
        shown.append(frame)

    window = Window(show)
    painting_loop.pace.learn = lambda *_: None  # 64 pixels a piece
    painting_loop.add(window)
    painting_loop.show(window, look(64, 48))
    soon(lambda: shown and window.painting is not None and window.painting.total == 64 * 48)
    gate = Gate()
    renderer.during = gate
    gate.reached.wait(20)
    other = look(64, 48, channel=Channel.DEPTH)
    painting_loop.show(window, other)
    before, seen = renderer.rays, len(shown)
    renderer.during = lambda: None
    gate.open.set()
    soon(lambda: len(shown) > seen)
    assert shown[seen].look is other, "the old view was dropped, not finished"
    assert shown[seen].divisor > 1
    assert rays[seen] - before < 64 * 48 / 2
    soon(lambda: shown[-1].sharpest)
    assert all(s.look is other for s in shown[seen:])


def test_a_steady_motion_shows_pictures(painting_loop):
    shown = []
    window = Window(shown.append)
    painting_loop.add(window)
    painting_loop.pace.learn = lambda *_: None
    versions = set()
    for _ in range(400):
        painting_loop.show(window, look(64, 48))
        time.sleep(0.002)
        versions.add(window.shown_version)
        if len(versions) > 4:
            break
    assert len(versions) > 4
    assert shown[0].divisor > 1


def test_windows_and_saved_pictures_share(painting_loop):
    shown = {"a": [], "b": [], "saved": []}
    windows = {name: Window(pictures.append, once=name == "saved") for name, pictures in shown.items()}
    for name, window in windows.items():
        painting_loop.add(window)
        painting_loop.show(window, look(48, 36, channel=Channel.NORMAL if name == "saved" else Channel.COLOR))
    soon(lambda: shown["saved"] and all(shown[n] and shown[n][-1].sharpest for n in "ab"))
    (saved,) = shown["saved"]
    assert saved.pixels.normals.shape == (36, 48, 3)
    assert windows["saved"] not in painting_loop._windows


def test_removed_and_empty_windows_are_left_alone(painting_loop):
    window, blank = Window(lambda _: pytest.fail("removed")), Window(lambda _: pytest.fail("blank"))
    painting_loop.add(blank)
    painting_loop.add(window)
    painting_loop.remove(window)
    painting_loop.remove(window)
    painting_loop.show(window, look())
    painting_loop.show(blank, None)
    time.sleep(0.1)
    assert painting_loop.stage.renderer.calls == 0


def test_an_error_is_reported_and_survived(painting_loop, capsys):
    shown, failures, renderer = [], [], painting_loop.stage.renderer
    window, saved = Window(shown.append, failures.append), Window(shown.append, failures.append, once=True)
    renderer.error = RuntimeError("a fault in the field")
    for w in (window, saved):
        painting_loop.add(w)
        painting_loop.show(w, look())
    soon(lambda: len(failures) == 2)
    calls = renderer.calls
    time.sleep(0.1)
    assert renderer.calls == calls, "not tried again and again"
    assert capsys.readouterr().err.count("a fault in the field") == 1
    assert painting_loop._windows == [window]
    renderer.error = None
    painting_loop.show(window, look())
    soon(lambda: shown and shown[-1].sharpest)


def test_thread_count_is_the_starters():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        set_up, seen = stage(), []
        set_up.renderer.during = lambda: seen.append(torch.get_num_threads())
        loop = Loop(set_up, Turns(fitting=False))
    finally:
        torch.set_num_threads(threads)
    window = Window(lambda _: None)
    loop.start()
    loop.add(window)
    loop.show(window, look())
    soon(lambda: seen)
    loop.stop()
    assert set(seen) == {1}
    torch.set_num_threads(threads)


# Turns.


class Fit:
    """A fit that takes a few thousandths of a second a step, in its own thread."""

    def __init__(self, turns, watch=None):
        self.turns, self.watch = turns, watch or (lambda: None)
        self.steps, self.running, self.paused_seconds = 0, True, 0.0
        self.stepping = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while self.running:
            self.stepping = True
            time.sleep(0.004)
            self.stepping = False
            self.steps += 1
            self.watch()
            self.paused_seconds += self.turns.after_step(lambda: not self.running)
        self.turns.finish()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.running = False
        self.thread.join(10)
        assert not self.thread.is_alive()


def take(turns, fit, seconds, share):
    """Take every turn there is; returns the seconds spent in them and the number of steps meanwhile."""
    spent, steps, end = 0.0, fit.steps, time.perf_counter() + seconds
    while time.perf_counter() < end:
        with turns.viewer(share):
            started = time.perf_counter()
            assert not fit.stepping, "never both at once"
            time.sleep(0.004)
            assert not fit.stepping
            spent += time.perf_counter() - started
    return spent, fit.steps - steps


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_viewer_has_its_share_and_no_more(share):
    turns = Turns(fitting=True)
    with Fit(turns) as fit:
        take(turns, fit, 0.3, share)
        spent, steps = take(turns, fit, 1.5, share)
    assert steps > 0
    assert 0.4 * share < spent / 1.5 < share + 0.15


def test_pause_stops_the_fit_and_frees_the_viewer():
    turns = Turns(fitting=True)
    with Fit(turns) as fit:
        soon(lambda: fit.steps > 3)
        turns.pause(True)
        assert turns.paused
        assert not turns.fitting
        soon(lambda: not fit.stepping)
        time.sleep(0.05)
        spent, steps = take(turns, fit, 0.4, 0.2)
        assert steps == 0
        assert spent > 0.2
        turns.pause(False)
        before = fit.steps
        soon(lambda: fit.steps > before + 3)
        assert 0.3 < fit.paused_seconds < 5


def test_a_paused_fit_can_be_stopped():
    turns = Turns(fitting=True)
    with Fit(turns) as fit:
        turns.pause(True)
        time.sleep(0.05)
    assert not fit.thread.is_alive()


def test_a_fit_without_a_viewer_is_not_slowed():
    turns = Turns(fitting=True)
    started = time.perf_counter()
    for _ in range(1000):
        turns.after_step()
    assert time.perf_counter() - started < 1.0


def test_a_waiting_viewer_is_freed_when_the_fit_ends():
    turns, entered = Turns(fitting=True), threading.Event()

    def wait():
        with turns.viewer():
            entered.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not entered.wait(0.1), "the fit owns the first step"
    turns.finish()
    assert entered.wait(10)
    thread.join(10)


def test_live_pictures_follow_the_fit():
    turns, set_up, shown = Turns(fitting=True), stage(), []
    fit = Fit(turns)
    loop = Loop(set_up, turns, step=lambda: fit.steps)
    window = Window(lambda s: shown.append((fit.steps, s)))
    with fit:
        loop.start()
        loop.add(window)
        loop.show(window, look(64, 48))
        soon(lambda: len({step for step, _ in shown}) > 3)
        assert not any(s.sharpest for _, s in shown), "what still changes is not called sharp"
        turns.pause(True)
        loop.wake()
        soon(lambda: shown[-1][1].sharpest)
        turns.pause(False)
        loop.stop()
