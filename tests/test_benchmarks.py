"""The benchmarks of a GPU, run through on the CPU at small sizes: that they run, not how fast anything is."""

import dataclasses
import importlib
import itertools
import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from polyfield.apps import devices, self_check
from polyfield.apps.errors import UserError
from polyfield.datasets.scene import open_scene

from benchmarks import gpu, measure
from benchmarks.__main__ import _check, line, main
from benchmarks.cases.marching_cubes import gyroid
from benchmarks.measure import Row
from tests.emulation import emulated

NAMES = sorted(m.name for m in pkgutil.iter_modules(gpu.__path__))
SMALL = {
    "POINTS": 1 << 10,
    "SAMPLES": 1 << 8,
    "RAYS": 1 << 6,
    "COUNT": 1 << 10,
    "PICTURE": (64, 48),
    "WARM": 2,
    "TIMED": 16,
    "LADDER": (0.2,),
    "SCENES": (("demo", 4),),
}


@pytest.fixture
def on_cpu(monkeypatch):
    seconds = itertools.count(10.0, -0.1)

    def once(calls, **_):
        for call in calls:
            call()
        return next(seconds)

    monkeypatch.setattr(measure, "copy_rate", lambda megabytes=0: 1e12)
    monkeypatch.setattr(measure, "matrix_rate", lambda dtype=None: 1e12)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("polyfield.datasets.demo.VIEWS", 10)
    monkeypatch.setattr("polyfield.datasets.demo.SIZE", 32)

    def prepared(name):
        module = importlib.import_module(f"benchmarks.gpu.{name}")
        patches = {**SMALL, "gpu_seconds": once, "copy_rate": measure.copy_rate, "matrix_rate": measure.matrix_rate}
        if name == "marching_cubes":
            patches["gyroid"] = lambda size, periods: gyroid(16, periods)
        if name == "fit_step":
            patches["data_root"] = lambda: None
        if name == "fit_quality":
            patches["open_scene"] = lambda path, downscale: open_scene("demo", downscale=downscale)
            patches["data_root"] = Path
        for key, value in patches.items():
            if hasattr(module, key):
                monkeypatch.setattr(module, key, value)
        return module

    return prepared


@pytest.mark.parametrize("name", NAMES)
def test_a_case_runs(name, on_cpu):
    rows = list(on_cpu(name).run("cpu"))
    assert rows and all(isinstance(row, Row) and line(row) for row in rows)
    for row in rows:
        missing = row.value is None
        assert missing == ("not installed" in row.reference or "not reached" in row.reference), row
        assert missing or row.value > 0


@pytest.mark.parametrize("name", ["adam", "gaussians", "mlp", "radiance"])
def test_a_case_runs_on_cuda_kernels(name, on_cpu, monkeypatch):
    """In the emulator: what a case asks of the kernels is what they take."""
    module = on_cpu(name)
    for key, value in {"SAMPLES": 64, "POINTS": 64, "SETS": 1}.items():
        if hasattr(module, key):
            monkeypatch.setattr(module, key, value)
    with emulated(orders=1):
        assert list(module.run("cpu"))


class FakeEvent:
    """Three milliseconds lie between a begin and its end."""

    def __init__(self, enable_timing):
        assert enable_timing
        self.recorded = False

    def record(self):
        self.recorded = True

    def elapsed_time(self, end):
        assert self.recorded and end.recorded
        return 3.0


def test_times_are_medians_of_events(monkeypatch):
    slept, called = [], []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    calls = [lambda: called.append(0), lambda: called.append(1)]
    assert measure.gpu_seconds(calls, rounds=4, warmup=2) == pytest.approx(3e-3)
    assert called == [0, 1] * 6 and len(slept) == 12


def test_a_row_is_held_against_the_machine(monkeypatch):
    monkeypatch.setattr(measure, "copy_rate", lambda: 2e12)
    monkeypatch.setattr(measure, "matrix_rate", lambda: 5e14)
    row = measure.gpu_row("x", 1e-3, 1e6, "ns/sample", bytes=1e9, operations=1e11, aim="y")
    assert row.value == pytest.approx(1.0) and (row.bytes, row.operations) == (1e9, 1e11)
    assert "1000 MB in 1.000 ms: 50.0% of the copy bandwidth, 20.0% of the matrix rate" in row.reference


def test_the_whole_run_keeps_its_rows(on_cpu, monkeypatch, tmp_path, capsys):
    """As on a machine with a GPU: kernels are checked, a case that fails is said and the others go on."""
    on_cpu("adam")
    monkeypatch.setattr(on_cpu("mlp"), "run", lambda device: iter([1 / 0]))
    monkeypatch.setattr(devices, "choose_device", lambda asked: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    target = tmp_path / "new" / "rows.json"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--device=cuda", "--only", "mlp", "adam", "--json", str(target)])
    assert main() == 1
    rows = json.loads(target.read_text())
    assert [set(row) for row in rows] == [{f.name for f in dataclasses.fields(Row)} | {"machine", "date"}] * 2
    assert rows[0]["name"].startswith("sparse Adam") and rows[0]["bytes"] > 0
    assert "mlp: failed" in capsys.readouterr().err


def test_kernels_are_checked_before_they_are_timed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    _check(torch.device("cpu"))
    assert "radiance" in capsys.readouterr().out
    monkeypatch.setattr(self_check, "CHECKS", {"wrong": lambda: 1.0, "nan": lambda: float("nan")})
    with pytest.raises(UserError, match=r"expected kernels that are right, got errors in wrong, nan"):
        _check(torch.device("cpu"))


def test_a_peer_that_is_missing_is_named():
    assert measure.peer("a_package_that_nobody_has") is None
    row = measure.absent("mlp", "tinycudann", "ns/sample")
    assert row.value is None and "tinycudann is not installed: not measured" in line(row)


BARE = """
import importlib, pkgutil, sys
sys.meta_path[:] = [f for f in sys.meta_path if "ditable" not in repr(f)]  # an installation is not looked at
for name in ("tyro", "rich", "viser", "trimesh", "safetensors"):
    sys.modules[name] = None
from benchmarks import gpu
from benchmarks.checkout import make_importable
make_importable()
import polyfield
assert polyfield.__file__.startswith(sys.argv[1]), polyfield.__file__
import benchmarks.measure
from polyfield.apps.self_check import CHECKS
from polyfield.cuda import nvrtc
for module in pkgutil.iter_modules(gpu.__path__):
    importlib.import_module(f"benchmarks.gpu.{module.name}")
assert not any("_cpu_" in name for name in sys.modules)
"""


def test_a_checkout_that_is_not_installed_suffices(tmp_path):
    """On a machine with torch, numpy and cuda-core alone, where nothing is built."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.cu", "*.h"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs git, to list the checkout's files")
    for name in listed.stdout.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    command = [sys.executable, "-c", BARE, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_it_says_so(capsys, monkeypatch, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    target = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--device", "cuda", "--json", str(target)])
    assert main() == 2
    assert capsys.readouterr().err.startswith("Not measured. --device cuda: expected a GPU that can be used, got none")
    assert not target.exists()
