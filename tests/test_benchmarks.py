"""The benchmarks of a GPU, run through on the CPU at small sizes: that they run, not how fast anything is."""

import importlib
import itertools
import pkgutil
from pathlib import Path

import pytest
import torch
from polyfield.datasets.scene import open_scene

from benchmarks import gpu, measure
from benchmarks.__main__ import line, main
from benchmarks.cases.marching_cubes import gyroid
from benchmarks.measure import Row

NAMES = sorted(m.name for m in pkgutil.iter_modules(gpu.__path__))
SMALL = {
    "POINTS": 1 << 10,
    "SAMPLES": 1 << 8,
    "RAYS": 1 << 6,
    "COUNT": 1 << 10,
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


def test_without_a_gpu_it_says_so(capsys, monkeypatch, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    target = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--device", "cuda", "--json", str(target)])
    assert main() == 2
    assert capsys.readouterr().err.startswith("Not measured. --device cuda: expected a GPU that can be used, got none")
    assert not target.exists()
