"""Fit a field to images: polyfield fit RECIPE DATA --run DIR."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, make_dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from .. import discover
from ..errors import UserError

USAGE = """usage: polyfield fit RECIPE DATA [options]    (polyfield fit RECIPE --help for all options)

DATA is a folder with a posed capture, or `demo` for the built-in scene. Recipes:"""


@dataclass(frozen=True)
class Options:
    """What every recipe's fit takes."""

    run: Path | None = None
    """Folder for everything the fit writes; by default runs/DATA-RECIPE."""
    steps: int | None = None
    """Optimisation steps; by default the recipe's own number."""
    seconds: float | None = None
    """Fit for this long instead of a number of steps."""
    downscale: int = 1
    """Shrink the photographs by this factor."""
    seed: int = 0
    """Two runs with the same seed, steps and threads are identical."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    resume: bool = False
    """Go on from the run's newest checkpoint."""
    overwrite: bool = False
    """Replace the run folder if it exists."""
    checkpoint_every: float = 30.0
    """Seconds between checkpoints."""
    preview_every: float = 15.0
    """Seconds between preview pictures; 0 for none."""
    view: bool = False
    """Open the viewer on the scene while it is being fitted."""
    port: int = 8080
    """The viewer's port."""


def main(arguments: list[str]) -> None:
    from ..run import RECIPES

    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        for name in discover.names(RECIPES):
            print(f"  {name:<10} {discover.summary(RECIPES, name)}")
        if not arguments:
            raise UserError("fit: recipe: expected one of the above, got nothing; e.g. polyfield fit ngp demo")
        return
    import tyro

    name = arguments[0]
    config = discover.load(RECIPES, name, "fit: recipe").Config
    parsed = tyro.cli(
        make_dataclass(
            "Fit",
            [
                ("data", tyro.conf.Positional[str]),
                ("options", tyro.conf.OmitArgPrefixes[Options], dataclass_field(default_factory=Options)),
                ("recipe", tyro.conf.OmitArgPrefixes[config], dataclass_field(default_factory=config)),
            ],
            namespace={"__doc__": config.__doc__},
        ),
        prog=f"polyfield fit {name}",
        args=arguments[1:],
    )
    run(name, parsed.recipe, parsed.data, parsed.options)


def run(name: str, config: Any, data: str, options: Options) -> Path:
    """Fit ``data`` with a recipe's configuration; returns the run folder."""
    import torch

    from ...datasets.scene import open_scene
    from ..fit import Budget, fit
    from ..fit_reports import Checkpoints, Log, Previews, Progress
    from ..interrupt import StopOnInterrupt
    from ..run import Asked, SceneFacts, save_scene

    if options.steps is not None and options.seconds is not None:
        raise UserError("fit: --steps and --seconds: expected one of them, got both")
    for option, value in (("steps", options.steps), ("seconds", options.seconds)):
        if value is not None and value <= 0:
            raise UserError(f"fit: --{option}: expected a positive number, got {value}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = options.run or Path("runs") / f"{Path(data).name}-{name}"
    built_in = data in discover.names("polyfield.datasets") and not Path(data).exists()
    source = data if built_in else str(Path(data).resolve())
    asked = _resumed(folder, name) if options.resume and (folder / "config.json").is_file() else None
    if asked is not None and asked.data != source:
        raise UserError(f"fit: --resume: {folder} was fitted to {asked.data}, not to {source}; choose another --run")
    if asked is None:
        _prepare(folder, options.overwrite)
    scene = open_scene(source, downscale=asked.downscale if asked else options.downscale)
    if asked is None:
        asked = Asked(name, config, source, options.downscale, options.seed, SceneFacts.of(scene))
        folder.mkdir(parents=True, exist_ok=True)
        asked.save(folder)
    job = asked.config.build(scene, asked.seed)
    checkpoints = Checkpoints(folder, options.checkpoint_every)
    if options.resume:
        checkpoints.restore(job)
    budget = Budget(options.steps if options.seconds is None else None, options.seconds)
    if options.steps is None and options.seconds is None:
        budget = Budget(steps=asked.config.default_steps)

    progress = Progress(scene, budget, quiet=not sys.stdout.isatty())
    after = [*asked.config.after_step(), progress, Log(folder)]
    if options.preview_every > 0 and scene.test:
        after.append(Previews(folder, scene.test[0], options.preview_every))
    after.append(checkpoints)
    viewing: AbstractContextManager = nullcontext()
    if options.view:
        from ..viewer import view_fit

        viewing, watch = view_fit(job, scene, asked, options.port, budget)
        after.append(watch)
    with StopOnInterrupt() as stopped, progress, viewing:
        fit(job, budget, after, stop=stopped)
    checkpoints.save(job)
    save_scene(folder, job.tensors(), {**job.metadata(), "step": job.step})
    if stopped():
        print(f"Stopped at step {job.step}; go on with: polyfield fit {name} {data} --run {folder} --resume")
    print(f"Fitted {scene.name} in {job.elapsed:.1f} s ({job.step} steps): {folder}")
    print(f"  polyfield evaluate {folder}\n  polyfield extract {folder} --output {folder}/mesh.glb\n  polyfield view {folder}")
    return folder


def _resumed(folder: Path, name: str):
    from ..run import Asked

    asked = Asked.load(folder)
    if asked.recipe != name:
        raise UserError(f"fit: --resume: {folder} is a run of recipe {asked.recipe}, not {name}")
    return asked


def _prepare(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"fit: --run: expected a folder, got the file {folder}; choose another name")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(f"fit: --run: {folder} exists; go on with --resume, replace it with --overwrite, or choose another --run")
        if not (folder / "config.json").is_file():
            raise UserError(f"fit: --overwrite: {folder} is no run folder (it has no config.json); choose another --run")
        import shutil

        shutil.rmtree(folder)
