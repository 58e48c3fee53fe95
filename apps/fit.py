"""The fit loop: draw rays, render, add up the losses, step. What else a fit does is a list of plain callables.

``Job`` holds all that a checkpoint must hold; ``fit`` runs it until a ``Budget`` of steps or seconds is spent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..fields.average import Average
from ..geometry import Camera, Pixels, Points, Rays
from ..renderers.intrinsics import Intrinsics
from ..renderers.pose_deltas import PoseDeltas
from ..renderers.protocols import Loss, Step
from ..renderers.robust import RobustMasks
from .devices import CPU, default_generator, read_later
from .errors import UserError

PARTS = ("field", "renderer", "exposure", "poses", "intrinsics", "robust", "average")  # of a job, if it has them


class NotFiniteError(UserError):
    """A loss became NaN or infinite: which term, at which step."""


@dataclass(frozen=True)
class Budget:
    """How long to fit: a number of steps, or of seconds. Learning rates follow the share that is spent."""

    steps: int | None = None
    seconds: float | None = None

    def spent(self, step: int, elapsed: float) -> float:
        """0 at the start, 1 at the end."""
        if self.seconds is not None:
            return min(elapsed / self.seconds, 1.0)
        assert self.steps is not None
        return min(step / self.steps, 1.0) if self.steps else 1.0

    def part(self, share: float, seconds: float, steps: int) -> Budget:
        """A share of it, at most so many seconds, or so many steps; at least one step."""
        if self.seconds is not None:
            return Budget(seconds=min(self.seconds * share, seconds))
        return Budget(steps=max(1, min(steps, round((self.steps or 0) * share))))


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint keeps: modules, optimizers' helpers, whatever changes from step to step."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Batches(Protocol):
    """Draws what a step renders, what it should look like, and of which frames it is (a number, or one per ray).

    Points of a shape carry what is known of them, and are of no frame.
    """

    generator: torch.Generator
    storage: torch.device  # where photographs or points are

    def draw(self) -> tuple[Rays | Camera | Points, Pixels, Tensor | None]: ...


@dataclass
class Job:
    """A fit under way. An optimizer's group may say by ``final_fraction`` what of its rate is left at the end."""

    field: nn.Module
    renderer: Any  # draws the field: a nn.Module with ``device`` and ``generator``
    batches: Batches
    losses: Mapping[str, Loss]
    optimizer: torch.optim.Optimizer
    exposure: nn.Module | None = None  # (colours, frames, view) -> colours as photographed
    poses: PoseDeltas | None = None
    intrinsics: Intrinsics | None = None
    robust: RobustMasks | None = None  # takes pixels of what moved out of every loss
    average: Average | None = None
    drawn: frozenset[str] = frozenset()  # what the renderer is asked for beside colours: "depths", "normals"
    parts: Mapping[str, Stateful] = field(default_factory=dict)  # what else changes, by name
    known: Points | None = None  # places that the data knows to lie on surfaces, for losses that ask for them
    step: int = 0
    elapsed: float = 0.0
    idle: float = 0.0  # seconds that a callable after a step waited for the user: not counted in ``elapsed``
    generator: torch.Generator = field(default_factory=torch.Generator)  # for callables; on the fit's device

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.renderer.device

    def _parts(self) -> dict[str, Stateful]:
        known = {name: getattr(self, name) for name in PARTS}
        return {name: part for name, part in (known | dict(self.parts)).items() if part is not None}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes while fitting, by name; ``restore`` takes it back."""
        found = {f"{name}.{k}": v for name, part in self._parts().items() for k, v in part.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            found |= {
                f"optimizer.{index}.{k}": torch.as_tensor(v, device=getattr(v, "device", CPU)) for k, v in state.items()
            }
        return found | {f"random.{k}": g.get_state() for k, g in self._generators().items()}

    def scene_tensors(self) -> dict[str, Tensor]:
        """What is kept when the fit is over, by name; averaged, if there is an average."""
        kept = ("field.", "renderer.", "exposure.", "poses.", "intrinsics.")
        found = {k: v for k, v in self.tensors().items() if k.startswith(kept)}
        means = {} if self.average is None or not self.average.updates else self.average.means
        return found | {f"field.{k}": v for k, v in means.items()}

    def metadata(self) -> dict[str, float]:
        return {"elapsed": self.elapsed}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, float]) -> None:
        """Go on from what ``tensors`` and ``metadata`` described, whatever device it was on.

        A CPU's and a GPU's random numbers are not the same: across, they begin anew, from the step's number.
        """
        of = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
        for name, part in self._parts().items():
            part.load_state_dict(of(f"{name}."))
        state: dict[int, dict[str, Tensor | int]] = {}
        for name, value in of("optimizer.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = int(value) if key == "step" else value
        if state:
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.step, self.elapsed = int(metadata["step"]), float(metadata["elapsed"])
        for number, (name, generator) in enumerate(self._generators().items()):
            kept = tensors[f"random.{name}"]
            if kept.shape == generator.get_state().shape:
                generator.set_state(kept)
            else:
                generator.manual_seed(4 * self.step + number)

    def _generators(self) -> dict[str, torch.Generator]:
        found = {"batches": self.batches.generator, "render": self.renderer.generator, "fit": self.generator}
        return found | {"torch": default_generator(self.device)}


@dataclass(frozen=True)
class Report:
    """What a callable after a step is told."""

    job: Job
    step: Step
    terms: Mapping[str, float]  # each loss, weight included
    spent: float  # share of the budget


def fit(
    job: Job,
    budget: Budget,
    after_step: Sequence[Callable[[Report], None]] = (),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run ``job`` until ``budget`` is spent or ``stop()`` says so.

    Raises NotFiniteError, before anything is updated, when a loss is not finite. However it ends, the optimizer's
    groups get their learning rates back, and the renderer is left ready for pictures (``eval``).
    """
    rates = [group["lr"] for group in job.optimizer.param_groups]
    job.renderer.train()
    clock = time.perf_counter() - job.elapsed - job.idle
    try:
        while (spent := budget.spent(job.step, job.elapsed)) < 1 and not stop():
            for group, rate in zip(job.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * group.get("final_fraction", 1.0) ** spent
            report = _one_step(job, spent)
            job.elapsed = time.perf_counter() - clock - job.idle
            for call in after_step:
                call(report)
            job.elapsed = time.perf_counter() - clock - job.idle
    finally:
        for group, rate in zip(job.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        job.renderer.eval()


def _one_step(job: Job, spent: float) -> Report:
    view, target, frames = job.batches.draw()
    view = view if job.intrinsics is None else job.intrinsics(view, frames, spent)
    view = view if job.poses is None else job.poses(view, frames, spent)
    render = job.renderer.render(job.field, view, **dict.fromkeys(job.drawn, True))
    if job.exposure is not None:
        assert render.pixels.colors is not None
        exposed = job.exposure(render.pixels.colors, frames, view)
        render = replace(render, pixels=replace(render.pixels, colors=exposed))
    step = Step(job.step, job.field, view, render, target, frames, spent, job.known)
    step = step if job.robust is None else job.robust(step)
    terms = {name: loss(step) for name, loss in job.losses.items()}
    total = sum(terms.values(), start=torch.zeros((), device=job.device))
    numbers = read_later(torch.stack([term.detach() for term in (total, *terms.values())]))
    job.optimizer.zero_grad()
    if total.requires_grad:
        total.backward()
    values = dict(zip(terms, numbers()[1:], strict=True))
    _check_finite(values, job.step)
    if total.requires_grad:
        job.optimizer.step()
    job.step += 1
    return Report(job, step, values, spent)


def _check_finite(values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        if not abs(value) < float("inf"):
            raise NotFiniteError(
                f"fit: loss {name!r}: expected a finite number at step {step}, got {value}; lower the learning rate"
            )
