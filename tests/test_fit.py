"""The main job on the built-in scene: it learns, repeats itself to the bit, resumes, survives what users do to it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.api import fit_scene
from polyfield.apps.errors import UserError
from polyfield.apps.exposures import ExposureKind
from polyfield.apps.fit import Budget, NotFiniteError, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.fit_run import Options
from polyfield.apps.recipes import ngp
from polyfield.apps.run import open_run
from polyfield.datasets.scene import open_scene
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.radiance_grid import RadianceGridConfig

SMALL = replace(
    ngp.Config(),
    field=RadianceGridConfig(grid=HashGridConfig(levels=8, features=4, log2_size=14, finest_resolution=512)),
    occupancy=ngp.OccupancyConfig(resolution=64),
    samples_per_step=8192,
    optimizer=ngp.OptimizerConfig(),  # a third of the rate, for networks, is for longer fits
)


@pytest.fixture(scope="module")
def scene():
    return open_scene("demo", downscale=4)


@pytest.fixture(scope="module")
def run(demo_run):
    return demo_run


def parameters(job):
    return {name: p.detach().clone() for name, p in job.field.named_parameters()}


def test_a_run_is_complete(run):
    names = {p.name for p in run.iterdir()}
    assert {"config.json", "scene.safetensors", "checkpoints", "log.jsonl", "previews"} <= names
    assert list((run / "previews").glob("step_*.png"))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["psnr"] > rows[0]["psnr"]
    assert not list(run.rglob("*.part"))


def test_a_run_in_a_folder_of_the_built_in_scenes_name(tmp_path, monkeypatch):
    """The name keeps meaning the built-in scene; the run's own folder is no data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polyfield.datasets.demo.VIEWS", 10)
    monkeypatch.setattr("polyfield.datasets.demo.SIZE", 24)
    options = ["fit", "ngp", "demo", "--run", "demo", "--preview-every", "0", "--samples-per-step", "1024"]
    assert main([*options, "--steps", "2"]) == 0
    assert main([*options, "--steps", "3", "--resume"]) == 0
    assert open_run("demo").step == 3
    assert len(open_run("demo").scene().frames) == 10
    assert main([*options, "--steps", "2", "--overwrite"]) == 0
    folder = tmp_path / "elsewhere" / "demo"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(open_run(tmp_path / "demo").scene().frames) == 10, "nor does another folder hide it from a run"
    with pytest.raises(ValueError, match="expected a data set, found an empty folder"):
        fit_scene("demo", run=tmp_path / "x")


def test_a_run_folder_that_exists_is_left_alone(run, capsys):
    before = (run / "config.json").read_bytes()
    assert main(["fit", "ngp", "demo", "--run", str(run)]) == 2
    assert "exists; go on with --resume, replace it with --overwrite" in capsys.readouterr().err
    assert main(["fit", "ngp", "/nowhere", "--run", str(run), "--overwrite"]) == 2
    assert (run / "config.json").read_bytes() == before
    assert (run / "scene.safetensors").is_file()


def test_a_folder_that_is_no_run_is_never_replaced(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["fit", "ngp", "demo", "--run", str(tmp_path), "--overwrite"]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_equal_seeds_give_equal_fits(scene):
    found = []
    for seed in (5, 5, 6):
        job = SMALL.build(scene, seed)
        fit(job, Budget(steps=40), SMALL.after_step())
        found.append(parameters(job))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_resuming_is_as_if_nothing_had_happened(scene, tmp_path):
    straight = SMALL.build(scene, 1)
    fit(straight, Budget(steps=60), SMALL.after_step())
    second = SMALL.build(scene, 2)
    first = SMALL.build(scene, 1)
    fit(first, Budget(steps=60), SMALL.after_step(), stop=lambda: first.step >= 37)
    Checkpoints(tmp_path, 1.0).save(first)
    second.restore(*Checkpoints(tmp_path, 1.0).load())
    assert second.step == 37
    fit(second, Budget(steps=60), SMALL.after_step())
    a, b = parameters(straight), parameters(second)
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("delay", [0.0, 1.0, 4.0])
def test_killed_at_any_moment_it_resumes(tmp_path, delay):
    folder = tmp_path / "run"
    options = [
        "demo",
        "--run",
        str(folder),
        "--downscale",
        "4",
        "--checkpoint-every",
        "0.3",
        "--samples-per-step",
        "4096",
    ]
    command = [sys.executable, "-m", "polyfield.apps", "fit", "ngp", *options]
    process = subprocess.Popen([*command, "--steps", "100000"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not (folder / "config.json").is_file() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = sorted((folder / "checkpoints").glob("step_*")) if (folder / "checkpoints").is_dir() else []
    reached = int(saved[-1].stem.split("_")[1]) if saved else 0
    assert main(["fit", "ngp", *options, "--steps", str(reached + 5), "--resume"]) == 0
    assert open_run(folder).step == reached + 5


def test_an_interrupt_leaves_a_checkpoint(tmp_path):
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "polyfield.apps",
        "fit",
        "ngp",
        "demo",
        "--run",
        str(folder),
        "--downscale",
        "4",
        "--steps",
        "100000",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 120
    while not (folder / "log.jsonl").is_file() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "--resume" in said
    assert "Traceback" not in said
    assert open_run(folder).step > 0


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(scene, tmp_path):
    job = SMALL.build(scene, 0)
    checkpoints = Checkpoints(tmp_path, 1e9)
    fit(job, Budget(steps=5), SMALL.after_step())
    checkpoints.save(job)
    job.losses = {
        **job.losses,
        "broken": lambda step: step.render.pixels.colors.sum() * (float("nan") if step.index >= 7 else 0.0),
    }
    before_nan = []
    with pytest.raises(NotFiniteError, match=r"fit: loss 'broken': expected a finite number at step 7, got nan"):
        fit(job, Budget(steps=20), [*SMALL.after_step(), lambda report: before_nan.append(parameters(job))])
    after = parameters(job)
    assert all(torch.equal(before_nan[-1][name], after[name]) for name in after), "the bad step changes nothing"
    with torch.no_grad():
        next(iter(job.field.parameters())).fill_(float("nan"))
    checkpoints.save(job)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000005.safetensors"]


def test_rates_and_modes_are_put_back_however_a_fit_ends(scene):
    job = SMALL.build(scene, 0)
    rates = [group["lr"] for group in job.optimizer.param_groups]

    def full_disk(report):
        assert [group["lr"] for group in job.optimizer.param_groups] != rates or report.spent == 0
        assert job.renderer.training
        if job.step == 4:
            raise UserError("the disk is full")

    broken = {"broken": lambda step: step.render.pixels.colors.sum() * float("nan")}
    endings = [(job.losses, full_disk, UserError), (broken, lambda report: None, NotFiniteError)]
    for losses, call, error in endings:
        job.losses = losses
        with pytest.raises(error):
            fit(job, Budget(steps=8), [call])
        assert [group["lr"] for group in job.optimizer.param_groups] == rates
        assert not job.renderer.training
        assert job.step == 4


def test_every_background_and_the_exposure_fit(scene):
    for background in ngp.Background:
        config = replace(
            SMALL, background=background, exposure=ExposureKind.GAIN, distortion=replace(SMALL.distortion, weight=0.01)
        )
        job = config.build(scene)
        fit(job, Budget(steps=3), config.after_step())
        assert job.step == 3
        assert job.exposure.log_gains.abs().max() > 0


def test_exposure_finds_a_photograph_that_is_too_dark(scene):
    dark = replace(scene.train[0], colors=(scene.train[0].colors.float() * 0.3).to(torch.uint8))
    config = replace(SMALL, exposure=ExposureKind.GAIN, background=ngp.Background.BLACK)
    gains = []
    with_dark = tuple(dark if frame is scene.train[0] else frame for frame in scene.frames)
    for photographs in (scene, scene.with_frames(with_dark)):
        job = config.build(photographs)
        fit(job, Budget(steps=600), config.after_step())
        gains.append((job.exposure.log_gains - job.exposure.log_gains.mean(0)).exp().mean(-1).detach())
    assert gains[1][0] < 0.95 * gains[0][0]
    assert (gains[1][1:] / gains[0][1:]).median() > 0.95


def test_options_are_checked(tmp_path):
    with pytest.raises(UserError, match="--threads: expected a positive number, got 0"):
        fit_scene("demo", run=tmp_path / "x", threads=0)
    assert not (tmp_path / "x").exists()
    assert Options().run is None


def test_a_scene_without_training_views(scene):
    with pytest.raises(ValueError, match="expected at least one training view"):
        SMALL.build(scene.with_frames(scene.test))


@pytest.mark.parametrize(
    ("name", "data", "folder"),
    [
        ("00_fit_and_mesh", "demo", "example"),
        ("01_open_surface", "demo_bowl", "open-surface"),
        ("02_shape", "washer", "shape"),
        ("03_textured_mesh", "demo", "textured"),
    ],
)
def test_the_examples_run(tmp_path, name, data, folder):
    from pathlib import Path

    script = Path(__file__).resolve().parents[1] / "examples" / f"{name}.py"
    assert len(script.read_text().splitlines()) <= 60
    subprocess.run([sys.executable, str(script), data, "15"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / f"runs/{folder}/mesh.glb").stat().st_size > 10_000
