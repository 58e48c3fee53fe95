"""How things are timed: pairs in one process, interleaved, so that a noisy machine hits both alike.

A row's ``ratio`` is reference time over ours (above 1: we are faster) unless its name says otherwise, and ``value`` is
the absolute figure in ``unit``. Quote ratios; absolute times are of this machine on this day.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from polyfield.cuda import native


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    ratio: float | None  # against the reference, or a fraction of a ceiling
    value: float
    unit: str
    reference: str
    aim: str = ""


def machine() -> str:
    """Processor, threads, instruction set, versions."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {torch.get_num_threads()} threads, {native.isa()}, {memory:.0f} GiB, torch {torch.__version__}"


def seconds(call: Callable[[], object], *, budget: float = 2.0, least: int = 5, warmup: int = 2) -> float:
    """Median wall time of one call, over as many as fit into ``budget`` seconds but at least ``least``."""
    return pair(call, None, budget=budget, least=least, warmup=warmup)[0]


def pair(
    ours: Callable[[], object],
    reference: Callable[[], object] | None,
    *,
    budget: float = 4.0,
    least: int = 5,
    warmup: int = 2,
) -> tuple[float, float]:
    """Median wall times of two calls that alternate: (ours, reference)."""
    calls = [ours] if reference is None else [ours, reference]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(warmup):
        for call in calls:
            call()
    end = time.perf_counter() + budget
    while len(times[0]) < least or time.perf_counter() < end:
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        if len(times[0]) >= 1000:
            break
    medians = [statistics.median(found) for found in times]
    return medians[0], medians[-1]


def fma_peak() -> float:
    """Float32 operations per second of this machine's multiply-add units, with the threads in use."""
    threads, rounds = torch.get_num_threads(), 2_000_000
    result = torch.zeros(threads)
    best = min(
        seconds(lambda: native.launch("fma_peak", None, result, threads, rounds), budget=0.3, least=5) for _ in range(3)
    )
    return 24 * native.module().lanes * rounds * threads / best


def peak_memory_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
