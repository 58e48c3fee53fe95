"""Gaussian splatting: forward, backward and whole steps, against the torch reference.

Gaussians of seeded sizes on screen and SH degree 3, in Morton order as a fit keeps them. "Radius" is three standard
deviations of the larger axis.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch
from polyfield.cuda import splatting
from polyfield.cuda.gaussians import render_gaussians
from polyfield.cuda.ssim import ssim_l1
from polyfield.cuda.surfels import render_surfels
from polyfield.fields.optimizer import Adam
from polyfield.fields.sh_factors import ShFactors

from tests.reference import gaussians as reference
from tests.reference import surfels as surfel_reference

from ..measure import Row, blocks, peak_memory_bytes, seconds
from ..scenes import generator, splats

HEAVY = (8.0, 31.0)  # radii whose mean standard deviation, geometric over both axes, is 4.4 pixels
RATES = {"means": 1e-5, "quats": 1e-3, "log_scales": 1e-3, "logit_opacities": 1e-2, "sh": 1e-3}


class Step:
    """A fit's step on one image, optimizer included."""

    def __init__(self, count: int, size: int, low: float = 2.0, high: float = 8.0):
        self.gaussians, self.K, self.pose = splats(count, size, size, low, high)
        self.size = size
        first = torch.cat([torch.ones(3), torch.full((45,), 0.05)])
        self.colors = ShFactors()
        groups = [
            {"params": [x.requires_grad_()], "lr": lr} for x, lr in zip(self.gaussians, RATES.values(), strict=True)
        ]
        groups[-1] |= {"column_rates": first, "factors": [self.colors]}
        self.adam = Adam(groups, betas=(0.9, 0.999), sparse=True)
        self.upstream = torch.randn(size, size, 3, generator=generator()) / size**2
        self.target = torch.rand(size, size, 3, generator=generator())

    def draw(self):
        """The image; gradients go to the optimizer's buffers."""
        buffers = (*(x.grad for x in self.gaussians[:4]), self.colors.open(self.gaussians[4], 3))
        return render_gaussians(*self.gaussians, self.K, self.pose, self.size, self.size, grad_buffers=buffers).colors

    def intersections(self) -> int:
        """Pairs of a Gaussian and a tile of the image that it meets."""
        view = splatting.View(self.size, self.size, -1, 0.01, 0.3, False, splatting.Lens.PINHOLE)
        with torch.no_grad():
            rows, counts = splatting.project(tuple(self.gaussians), self.K, self.pose, view)
        return int(splatting.sort(rows, counts, self.size, self.size).tile_offsets[-1])

    def forward(self):
        with torch.no_grad():
            self.draw()

    def backward(self):
        self.draw().backward(self.upstream)
        self.adam.zero_grad()

    def with_adam(self):
        self.draw().backward(self.upstream)
        self.adam.step()

    def surfels(self):
        """Colours alone, as before the losses on geometry begin."""
        buffers = tuple(x.grad for x in self.gaussians)
        drawn = render_surfels(*self.gaussians, self.K, self.pose, self.size, self.size, grad_buffers=buffers)
        drawn.colors.backward(self.upstream)

    def surfels_with_geometry(self):
        """With depths, distortions and normals."""
        buffers = tuple(x.grad for x in self.gaussians)
        drawn = render_surfels(
            *self.gaussians, self.K, self.pose, self.size, self.size, features=self.gaussians[0].detach(), depths=True,
            grad_buffers=buffers,
        )  # fmt: skip
        loss = (drawn.colors * self.upstream).sum() + drawn.distortions.mean() + drawn.median_depths.mean()
        (loss + (drawn.features * self.upstream).sum()).backward()

    def their_surfels(self):
        surfels = [x.detach().requires_grad_() for x in self.gaussians]
        with torch.no_grad():
            extents = render_surfels(*surfels, self.K, self.pose, self.size, self.size).extents
        drawn = surfel_reference.tiled(surfels, self.K, self.pose, self.size, self.size, extents)
        drawn.backward(self.upstream)

    def whole(self):
        ssim_l1(self.draw(), self.target).backward()
        self.adam.step()

    def theirs(self):
        gaussians = [x.detach().requires_grad_() for x in self.gaussians]
        reference.render(gaussians, self.K, self.pose, self.size, self.size)[0].backward(self.upstream)


def growth(few: Step, many: Step) -> float:
    """How much longer a tile intersection takes in a whole step, Adam included, with ``many`` Gaussians than with few.

    They alternate: times of one minute and the next differ more than this does.
    """
    many_time, few_time = blocks(many.with_adam, few.with_adam, rounds=9, budget=0.3, least=3)
    return many_time / many.intersections() / (few_time / few.intersections())


def peak_of(count: int, size: int) -> float:
    """Bytes that a process of its own takes at most for ``count`` Gaussians and a few of their steps."""
    step = Step(count, size)
    for _ in range(3):
        step.with_adam()
    return peak_memory_bytes()


def memory_per_gaussian(few: int, many: int, size: int) -> float:
    """Bytes by which that grows with each further Gaussian: images and libraries, the same for all, drop out."""
    peaks = []
    for count in (few, many):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
            peaks.append(apart.submit(peak_of, count, size).result())
    return (peaks[1] - peaks[0]) / (many - few)


def run(device: str) -> Iterator[Row]:
    step = Step(50_000, 400)
    theirs = seconds(step.theirs, budget=1, least=3, warmup=1)
    ours = seconds(step.backward)
    name = "Gaussians, 50k at 400x400, forward + backward"
    yield Row(name, theirs / ours, ours * 1e3, "ms", "torch reference, tiled", "12 ms, 100x")
    theirs = seconds(step.their_surfels, budget=1, least=3, warmup=1)
    ours, geometry = seconds(step.surfels), seconds(step.surfels_with_geometry)
    name = "Surfels, 50k at 400x400, forward + backward"
    yield Row(name, theirs / ours, ours * 1e3, "ms", "torch reference, tiled", "20 ms")
    yield Row(f"{name}, with depths, distortion and normals", None, geometry * 1e3, "ms", "", "50 ms")
    step = Step(200_000, 800)
    yield Row("Gaussians, 200k at 800x800, forward", None, seconds(step.forward) * 1e3, "ms", "", "20 ms")
    both = seconds(step.with_adam) * 1e3
    yield Row("Gaussians, 200k at 800x800, forward + backward + Adam", None, both, "ms", "", "45 ms")
    step = Step(50_000, 400, *HEAVY)
    yield Row(
        "Gaussians, 50k of sigma 4.4 px at 400x400, whole step", None, seconds(step.whole) * 1e3, "ms", "", "25 ms"
    )
    step = Step(50_000, 800)
    for times in (4, 8):
        grown = growth(step, Step(50_000 * times**2, 800 * times))
        yield Row(
            f"Gaussians, time of a step per tile intersection, {50 * times**2}k / 50k", None, grown, "x", "", "1x"
        )
    taken = memory_per_gaussian(100_000, 800_000, 1600)
    name = "Gaussians, memory of each while fitting, 100k to 800k at 1600x1600"
    yield Row(name, None, taken, "bytes", "", "1024 bytes")
