"""What all tests share: ``--device`` and ``--dtype``, where the research scenes are, and a finished run.

Tests marked ``data`` are skipped, here and nowhere else, where the scenes are absent; those marked ``cuda`` without
``--device cuda``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


def _data_folder() -> Path:
    stated = os.environ.get("POLYFIELD_DATA")
    return Path(stated) if stated else REPOSITORY.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that the tests run on: cpu, cuda, cuda:1")
    parser.addoption("--dtype", default="float32", choices=("float32", "float64"), help="dtype of the `dtype` fixture")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not str(config.getoption("--device")).startswith("cuda"):
        elsewhere = pytest.mark.skip(reason="needs an NVIDIA GPU; run with --device cuda")
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(elsewhere)
    folder = _data_folder()
    if (folder / "fox" / "transforms.json").is_file():
        return
    absent = pytest.mark.skip(reason=f"the research scenes are not at {folder}; set POLYFIELD_DATA")
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(absent)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device asked for with --device."""
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device: expected a device that this torch can use, got cuda; run without --device")
    return device


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The floating-point type asked for with --dtype."""
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of research scenes; only for tests marked ``data``."""
    return _data_folder()


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished fit to the built-in scene, made once through the command line."""
    from polyfield.apps.__main__ import main

    folder = tmp_path_factory.mktemp("runs") / "demo"
    options = ["--steps", "400", "--downscale", "2", "--preview-every", "1", "--checkpoint-every", "2"]
    assert main(["fit", "ngp", "demo", "--run", str(folder), *options]) == 0
    return folder
