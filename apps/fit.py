"""The fit loop: draw rays, render, add up the losses, step. What else a fit does is a list of plain callables.

``Job`` holds all that a checkpoint must hold; ``fit`` runs it until a ``Budget`` of steps or seconds is spent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..fields.average import Average
from ..fields.optimizer import Adam
from ..renderers.exposure import Exposure
from ..renderers.protocols import Loss, Step
from ..renderers.volume import VolumeRenderer
from .batches import PixelBatches
from .devices import CPU, default_generator, read_later
from .errors import UserError

MIN_RAYS, MAX_RAYS = 256, 65536
MAX_COARSENESS, COARSE_UNTIL = 8.0, 0.25  # times the intervals' length; share of the budget


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


@dataclass
class Job:
    """A fit under way."""

    field: nn.Module
    renderer: VolumeRenderer
    batches: PixelBatches
    losses: Mapping[str, Loss]
    optimizer: Adam
    learning_rate: Callable[[float], float]  # share of the budget spent -> factor on the groups' rates
    samples_per_step: int
    exposure: Exposure | None = None
    average: Average | None = None
    reached: Tensor | None = None  # (bricks,) bool, while a survey of the occupancy grid is under way
    least_rays: int = 1024
    rays_per_step: int = 1024
    step: int = 0
    elapsed: float = 0.0
    idle: float = 0.0  # seconds that a callable after a step waited for the user: not counted in ``elapsed``
    generator: torch.Generator = field(default_factory=torch.Generator)  # occupancy updates; on the fit's device

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.renderer.device

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes while fitting, by name; ``restore`` takes it back."""
        found = {f"field.{k}": v for k, v in self.field.state_dict().items()}
        found |= {f"renderer.{k}": v for k, v in self.renderer.state_dict().items()}
        if self.exposure is not None:
            found |= {f"exposure.{k}": v for k, v in self.exposure.state_dict().items()}
        if self.average is not None:
            found |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            found |= {
                f"optimizer.{index}.{k}": torch.as_tensor(v, device=getattr(v, "device", CPU)) for k, v in state.items()
            }
        found |= {f"random.{k}": g.get_state() for k, g in self._generators().items()}
        if self.reached is not None:
            found["reached"] = self.reached
        return found

    def scene_tensors(self) -> dict[str, Tensor]:
        """What is kept when the fit is over, by name: field and renderer; averaged, if there is an average."""
        found = {k: v for k, v in self.tensors().items() if k.startswith(("field.", "renderer.", "exposure."))}
        means = {} if self.average is None or not self.average.updates else self.average.means
        return found | {f"field.{k}": v for k, v in means.items()}

    def metadata(self) -> dict[str, float]:
        return {"elapsed": self.elapsed, "rays_per_step": self.rays_per_step, "coarseness": self.renderer.coarseness}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, float]) -> None:
        """Go on from what ``tensors`` and ``metadata`` described, whatever device it was on.

        A CPU's and a GPU's random numbers are not the same: across, they begin anew, from the step's number.
        """
        part = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
        self.field.load_state_dict(part("field."))
        self.renderer.load_state_dict(part("renderer."))
        if self.exposure is not None:
            self.exposure.load_state_dict(part("exposure."))
        if self.average is not None:
            self.average.load_state_dict(part("average."))
        state: dict[int, dict[str, Tensor | int]] = {}
        for name, value in part("optimizer.").items():
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
        reached = tensors.get("reached")
        self.reached = None if reached is None else reached.to(self.device)
        self.rays_per_step, self.renderer.coarseness = int(metadata["rays_per_step"]), float(metadata["coarseness"])

    def _generators(self) -> dict[str, torch.Generator]:
        found = {"batches": self.batches.generator, "march": self.renderer.generator, "occupancy": self.generator}
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
                group["lr"] = rate * job.learning_rate(spent)
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
    rays, target = job.batches.draw(job.rays_per_step)
    render = job.renderer.render(job.field, rays)  # type: ignore[arg-type]
    if job.exposure is not None:
        assert render.pixels.colors is not None
        render = replace(
            render, pixels=replace(render.pixels, colors=job.exposure(render.pixels.colors, rays.camera_indices))
        )
    step = Step(job.step, job.field, rays, render, target)
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
    _adapt(job, len(render.samples) if render.samples is not None else 0, spent)
    return Report(job, step, values, spent)


def _check_finite(values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        if not abs(value) < float("inf"):
            raise NotFiniteError(
                f"fit: loss {name!r}: expected a finite number at step {step}, got {value}; lower the learning rate"
            )


def _adapt(job: Job, samples: int, spent: float) -> None:
    """Steer the next step towards the wanted number of samples.

    While space is foggy a ray meets hundreds of intervals: early in a fit they are made longer then, rather than the
    rays too few. Later they have their own length, which is what pictures are rendered with, and the rays give way.
    """
    longest = max(1.0, MAX_COARSENESS * (1 - spent / COARSE_UNTIL))
    change = min(max(samples / job.samples_per_step, 0.5), 2.0)
    longer = job.renderer.coarseness
    few = job.rays_per_step <= job.least_rays
    if longer > 1 or few:
        job.renderer.coarseness = min(max(longer * change**0.5, 1.0), longest)
    if longer >= longest or (longer == 1 and not few) or change < 1:
        wanted = job.rays_per_step / change
        job.rays_per_step = (
            int(min(max(wanted, MIN_RAYS), MAX_RAYS if longer == 1 else max(job.least_rays, MIN_RAYS))) // 64 * 64
        )
