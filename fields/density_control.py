"""How many Gaussians, and where: functions on a field and its optimizer, called between steps.

``relocate``, ``grow`` and ``shake`` are those of 3DGS as Markov chain Monte Carlo (Kheradmand et al. 2024): N copies of
a Gaussian of opacity o look like it if each has opacity 1 - (1 - o)^(1/N) and scales by eq. 9 there.
``densify`` and ``prune`` are the original ones (Kerbl et al. 2023, section 5.2), with AbsGS's gradient as an option.
None of them makes more Gaussians than it is told to.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry.gaussians import Gaussians
from ..geometry.morton import morton_order
from ..geometry.transforms import quaternion_to_matrix
from .gaussians import NAMES, GaussianField
from .optimizer import Adam

MOST_COPIES = 51  # of one Gaussian at a time
NOISE_LIMIT = 0.06  # opacities above it are shaken by less than a hundredth


class Statistics:
    """What is summed up between two rounds of density control: ``sums`` (G, 4) of ``render_gaussians``."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.sums = torch.zeros(count, 4, device=device)
        self.resets = self.reset_at = 0  # how many of the opacities were due, and the last one's step

    def clear(self, count: int) -> None:
        """Begin anew, for this many Gaussians."""
        self.sums = self.sums.new_zeros(count, 4)

    def state_dict(self) -> dict[str, Tensor]:
        numbers = {"resets": self.resets, "reset_at": self.reset_at}
        return {"sums": self.sums, **{k: torch.tensor(v, device="cpu") for k, v in numbers.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums = state_dict["sums"].to(self.sums.device)
        self.resets, self.reset_at = int(state_dict["resets"]), int(state_dict["reset_at"])


@torch.no_grad()
def edit(field: GaussianField, optimizer: Adam, keep: Tensor, added: Gaussians | None = None) -> None:
    """Keep rows ``keep`` (indices or mask) of every parameter and its moments; append ``added``, with moments 0."""
    for name in NAMES:
        old, extra = getattr(field, name), None if added is None else getattr(added, name)
        new = nn.Parameter(_joined(old[keep], extra))
        none = None if extra is None else torch.zeros_like(extra)

        def moved(rows: Tensor, none: Tensor | None = none) -> Tensor:
            return _joined(rows[keep], none)

        optimizer.replace(old, new, moved)
        setattr(field, name, new)


def _joined(rows: Tensor, new: Tensor | None) -> Tensor:
    return rows if new is None else torch.cat([rows, new.to(rows)])


def _forget(field: GaussianField, optimizer: Adam, rows: Tensor) -> None:
    """Clear the moments of rows."""
    for name in NAMES:
        state = optimizer.state.get(getattr(field, name), {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state:
                state[key][rows] = 0


def copies(opacities: Tensor, scales: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Opacities (N,) and scales (N, 3) of each of ``counts`` (N,) Gaussians that together look like one."""
    n = counts.clamp(1, MOST_COPIES).to(opacities)
    new = 1 - (1 - opacities).clamp(min=1e-12) ** (1 / n)
    total = torch.zeros_like(new)
    for i in range(1, MOST_COPIES + 1):  # sum_{i=1}^{N} sum_{k=0}^{i-1} binom(i-1, k) (-1)^k o^{k+1} / sqrt(k+1)
        if i > int(n.max()):
            break
        inner = sum(math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * new.double() ** (k + 1) for k in range(i))
        total += torch.where(n >= i, inner, 0).to(total)
    return new, scales * (opacities / total)[:, None]


@torch.no_grad()
def relocate(field: GaussianField, optimizer: Adam, generator: torch.Generator, *, min_opacity: float = 0.005) -> int:
    """Move what is fainter than ``min_opacity`` onto others, drawn by opacity; returns how many moved."""
    g = field.stored()
    opacities = g.opacities
    dead = opacities <= min_opacity
    moved = int(dead.sum())
    if moved in (0, len(field)):
        return 0
    to = torch.multinomial(opacities.masked_fill(dead, 0), moved, replacement=True, generator=generator)
    _share(field, to)
    source = dead.nonzero()[:, 0]
    for name in NAMES:
        parameter = getattr(field, name)
        parameter[source] = parameter[to]
    _forget(field, optimizer, torch.cat([to, source]))
    return moved


@torch.no_grad()
def grow(field: GaussianField, optimizer: Adam, generator: torch.Generator, *, most: int, factor: float = 1.05) -> int:
    """Copy Gaussians, drawn by opacity, until there are ``factor`` times as many or ``most``; returns how many more."""
    added = min(most, int(factor * len(field))) - len(field)
    if added <= 0 or not len(field):
        return 0
    drawn = torch.multinomial(field.stored().opacities, added, replacement=True, generator=generator)
    _share(field, drawn)
    _forget(field, optimizer, drawn)
    new = Gaussians(*(getattr(field, name)[drawn] for name in NAMES))
    edit(field, optimizer, torch.arange(len(field), device=drawn.device), new)
    return added


def _share(field: GaussianField, drawn: Tensor) -> None:
    """Give what was drawn (with repetition) the opacity and scale of one of as many copies, itself counted."""
    rows, counts = drawn.unique(return_counts=True)
    g = field.stored()
    opacities, scales = copies(g.opacities[rows], g.scales[rows], counts + 1)
    field.logit_opacities[rows] = torch.logit(opacities.clamp(0.005, 1 - 1e-6))
    field.log_scales[rows] = scales.clamp(min=1e-12).log()


@torch.no_grad()
def shake(field: GaussianField, generator: torch.Generator, amount: float) -> None:
    """Move faint Gaussians at random, along their own shape: they look for a place where they are needed.

    mean += amount * sigmoid(-100 (opacity - 0.005)) * C * noise, C the covariance.
    """
    faint = (field.logit_opacities < math.log(NOISE_LIMIT / (1 - NOISE_LIMIT))).nonzero()[:, 0]
    if not len(faint) or amount == 0:
        return
    opacities = torch.sigmoid(field.logit_opacities[faint])
    axes = quaternion_to_matrix(field.quats[faint]) * field.log_scales[faint].exp()[:, None]
    noise = torch.randn(len(faint), 3, 1, generator=generator, device=generator.device).to(axes)
    moved = (axes @ (axes.transpose(1, 2) @ noise))[..., 0]
    field.means[faint] += amount * torch.sigmoid(-100 * (opacities - 0.005))[:, None] * moved


@torch.no_grad()
def densify(
    field: GaussianField,
    optimizer: Adam,
    statistics: Tensor,
    generator: torch.Generator,
    *,
    threshold: float,
    large: float,
    most: int,
    absolute: bool = False,
) -> int:
    """Clone small and split large Gaussians whose image moved the loss much; returns how many more there are.

    Args:
        statistics: (G, 4) of ``render_gaussians``, summed since the last call.
        threshold: of the mean length of the gradient to ``means2d``, pixels^-1 of an image of width 2.
        large: scales above it split in two of 1/1.6 the size, others are cloned, scene units.
        most: Gaussians there may be afterwards; the ones with the largest gradients come first.
        absolute: take gradients' absolute values over the pixels (AbsGS).
    """
    mean = statistics[:, 1 if absolute else 0] / statistics[:, 2].clamp(min=1)
    chosen = (mean > threshold).nonzero()[:, 0]
    room = most - len(field)
    if room <= 0 or not len(chosen):
        return 0
    if len(chosen) > room:
        chosen = chosen[mean[chosen].argsort(descending=True, stable=True)[:room]]
    splits = field.log_scales[chosen].exp().amax(-1) > large
    split = chosen[splits]
    new = field.stored()[chosen].detach()
    axes = quaternion_to_matrix(field.quats[split]) * field.log_scales[split].exp()[:, None]
    noise = torch.randn(2, len(split), 3, 1, generator=generator, device=generator.device).to(axes)
    new.means[splits] += (axes @ noise[0])[..., 0]
    new.log_scales[splits] -= math.log(1.6)
    field.means[split] += (axes @ noise[1])[..., 0]
    field.log_scales[split] -= math.log(1.6)
    _forget(field, optimizer, split)
    edit(field, optimizer, torch.arange(len(field), device=chosen.device), new)
    return len(chosen)


@torch.no_grad()
def prune(field: GaussianField, optimizer: Adam, *, min_opacity: float = 0.005, max_scale: float = math.inf) -> Tensor:
    """Drop what is fainter than ``min_opacity`` or larger than ``max_scale``; returns the mask (G,) of what is kept."""
    g = field.stored()
    keep = (g.opacities > min_opacity) & (g.log_scales.amax(-1) < math.log(max_scale) if max_scale < math.inf else True)
    if not bool(keep.all()):
        edit(field, optimizer, keep)
    return keep


@torch.no_grad()
def reorder(field: GaussianField, optimizer: Adam, statistics: Statistics | None = None) -> None:
    """Make neighbours in space neighbours in memory: beyond the cache's size, a step is a tenth faster."""
    order = morton_order(field.means)
    edit(field, optimizer, order)
    if statistics is not None:
        statistics.sums = statistics.sums[order]


@torch.no_grad()
def reset_opacities(field: GaussianField, optimizer: Adam, opacity: float = 0.01) -> None:
    """Make nothing more opaque than ``opacity``: what is needed comes back, the rest can be pruned."""
    field.logit_opacities.clamp_(max=math.log(opacity / (1 - opacity)))
    state = optimizer.state.get(field.logit_opacities, {})
    for key in ("exp_avg", "exp_avg_sq"):
        if key in state:
            state[key].zero_()
