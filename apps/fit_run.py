"""From data to a finished run folder: what ``polyfield fit`` does, and ``polyfield.fit_scene`` in Python."""

from __future__ import annotations

import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..datasets import demo, photos
from ..datasets.scene import MaskUse, Scene, find_format
from .devices import choose_device, describe, enough_memory
from .errors import UserError
from .fit import Budget, Job, fit
from .fit_reports import Checkpoints, Log, Previews, Progress, peak_memory_bytes
from .interrupt import StopOnInterrupt
from .run import Asked, Run, SceneFacts, open_data, open_run, save_scene
from .tracing import ShapePreviews

if TYPE_CHECKING:
    from .viewer import FitView


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
    masks: MaskUse = MaskUse.IGNORE
    """What masks mean: black pixels do not count (ignore), are empty (alpha), white ones do not count, or nothing."""
    seed: int = 0
    """Two runs with the same seed, steps and threads are identical."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    device: str = "auto"
    """Where to fit: auto (the GPU if it can be used), cpu, cuda or cuda:N."""
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


def fit_run(data: str | Path, config: Any, options: Options = Options()) -> Run:
    """Fit ``data`` (a folder, or the name of a built-in scene) with a recipe's ``Config``; returns the finished run.

    Raises UserError for a run folder that exists, data that cannot be read, options that contradict each other, a
    device that cannot be used, and too little memory.
    """
    _check(options)
    device = choose_device(options.device)
    remedy = f"lower {config.less_memory}, or shrink the photographs with --downscale"
    with enough_memory("fit", device, remedy):
        return _fit_run(data, config, options, device)


def _fit_run(data: str | Path, config: Any, options: Options, device: torch.device) -> Run:
    name = type(config).__module__.rpartition(".")[2]
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    stem = Path(data).stem if Path(data).is_file() else Path(data).name
    folder = Path(options.run) if options.run else Path("runs") / f"{stem}-{name}"
    asked, scene, fresh = _open(str(data), name, config, folder, options)
    for note in scene.notes:
        print(f"note: {note}", file=sys.stderr)
    if not scene.frames:
        _check_for_shape(scene, options)
    scene = asked.config.prepare(scene)
    budget = Budget(asked.steps, asked.seconds)
    checkpoints = Checkpoints(folder, options.checkpoint_every)
    found = checkpoints.load() if options.resume else None
    job = asked.config.build(scene, asked.seed, device, budget if found is None else None)
    if found is not None:
        job.restore(*found)
    if fresh:
        _claim(folder, asked, options.overwrite)
    progress = Progress(scene, budget, _place(job), quiet=not sys.stdout.isatty())
    after = [*asked.config.after_step(), progress, Log(folder)]
    if options.preview_every > 0 and scene.test:
        after.append(Previews(folder, scene.test[0], options.preview_every))
    shape = None
    if not scene.frames:
        shape = ShapePreviews(folder, job.field, job.renderer, tuple(scene.up.tolist()), options.preview_every)
        after += [shape] if options.preview_every > 0 else []
    after.append(checkpoints)
    watch = _watch(job, scene, folder, options.port) if options.view else None
    if watch is not None:
        after.append(watch)
    with watch or nullcontext():
        with StopOnInterrupt() as stopped, progress:
            if watch is not None:
                watch.stop = stopped
            fit(job, budget, after, stop=stopped)
        checkpoints.save(job)
        save_scene(folder, job.scene_tensors(), {**job.metadata(), "step": job.step})
        if shape is not None and options.preview_every > 0:
            shape.write(folder / "preview.png")
        if watch is not None and not stopped():
            watch.stay()
    if stopped():
        print(f"Stopped at step {job.step}; go on with: polyfield fit {name} {data} --run {folder} --resume")
    print(
        f"Fitted {scene.name} in {job.elapsed:.1f} s ({job.step} steps, "
        f"peak memory {peak_memory_bytes() / 2**30:.2f} GB{_gpu_memory(device)}): {folder}"
    )
    print(
        f"  polyfield evaluate {folder}\n  polyfield extract {folder} --output {folder}/mesh.glb"
        + f"\n  polyfield view {folder}"
    )
    return open_run(folder, device)


def _place(job: Job) -> str:
    """Where the fit is, and where its photographs are, for people."""
    away = ", drawn from in the computer's memory" if job.batches.storage != job.device else ""
    return f"fitted on {describe(job.device)}{away}"


def _gpu_memory(device: torch.device) -> str:
    if device.type == "cpu":
        return ""
    return f" and {torch.cuda.max_memory_reserved(device) / 2**30:.2f} GB on the GPU"


def _watch(job: Job, scene: Scene, folder: Path, port: int) -> FitView:
    from .viewer import FitView

    watch = FitView(job, scene, folder, port=port)
    print(f"Watch it at {watch.viewer.url}", flush=True)
    return watch


def _check(options: Options) -> None:
    if options.steps is not None and options.seconds is not None:
        raise UserError("fit: --steps and --seconds: expected one of them, got both")
    if options.resume and options.overwrite:
        raise UserError("fit: --resume and --overwrite: expected one of them, got both")
    positive = ("steps", "seconds", "downscale", "threads", "checkpoint_every")
    for option in positive:
        value = getattr(options, option)
        if value is not None and value <= 0:
            raise UserError(f"fit: --{option.replace('_', '-')}: expected a positive number, got {value}")
    if options.view:
        from .viewer import check_address

        check_address("127.0.0.1", options.port)


def _check_for_shape(scene: Scene, options: Options) -> None:
    """Raises UserError for options that speak of photographs."""
    plain = Options()
    for option in ("downscale", "masks"):
        if getattr(options, option) != getattr(plain, option):
            raise UserError(f"fit: --{option}: expected photographs, got the shape {scene.name}; drop the option")


def _open(data: str, name: str, config: Any, folder: Path, options: Options) -> tuple[Asked, Scene, bool]:
    """What to fit, its scene, and whether it is a new run: nothing is written before all of it has been understood."""
    source = _source(data)
    if options.resume and (folder / "config.json").is_file():
        asked = Asked.load(folder)
        for what, was, now in (("recipe", asked.recipe, name), ("data", asked.data, source)):
            if was != now:
                raise UserError(f"fit: --resume: {folder} has {what} {was}, not {now}; choose another --run")
        if options.steps is not None or options.seconds is not None:
            asked = replace(asked, steps=options.steps, seconds=options.seconds)
        return asked, open_data(asked.config, source, asked.downscale, asked.masks), False
    _check_free(folder, options.overwrite)
    _pose(config, source)
    scene = open_data(config, source, options.downscale, options.masks)
    steps = options.steps or (None if options.seconds else config.default_steps)
    facts = SceneFacts.of(scene)
    asked = Asked(name, config, source, options.downscale, options.seed, steps, options.seconds, facts, options.masks)
    return asked, scene, True


def _pose(config: Any, source: str) -> None:
    """Find poses of photographs that have none, after saying so."""
    root = Path(source)
    if hasattr(config, "open_data") or source in demo.NAMES or find_format(root) is not photos or photos.is_posed(root):
        return
    from .find_poses import find_poses

    print(f"{root}: photographs without poses; finding those first, as polyfield process {root} does", flush=True)
    find_poses(root)


def _claim(folder: Path, asked: Asked, overwrite: bool) -> None:
    """Make the run's folder, in the place of a run that may be replaced; looks again, since preparing takes a while."""
    _check_free(folder, overwrite)
    try:
        if overwrite and folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"fit: --run: {folder} cannot be made ({error}); choose another folder") from error
    asked.save(folder)


def _source(data: str) -> str:
    """The absolute path of data; or a built-in scene's name, unless a folder of that name holds something else."""
    path = Path(data)
    is_run = (path / "config.json").is_file()  # as after `polyfield fit ngp demo --run demo`
    return data if data in demo.NAMES and (is_run or not path.exists()) else str(path.resolve())


def _check_free(folder: Path, overwrite: bool) -> None:
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise UserError(f"fit: --run: expected a folder, got the file {part}; choose another name")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(
                f"fit: --run: {folder} exists; go on with --resume, replace it with --overwrite, "
                "or choose another --run"
            )
        if not (folder / "config.json").is_file():
            raise UserError(
                f"fit: --overwrite: {folder} is no run folder (it has no config.json); choose another --run"
            )
