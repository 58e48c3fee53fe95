"""How things are timed: pairs in one process, interleaved, so that a noisy machine hits both alike.

A row's ``ratio`` is reference time over ours (above 1: we are faster) unless its name says otherwise, and ``value`` is
the absolute figure in ``unit``. Quote ratios; absolute times are of this machine on this day.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from polyfield.cuda import native, nvrtc


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    ratio: float | None  # against the reference, or a fraction of a ceiling
    value: float | None  # None: could not be measured; ``reference`` says why
    unit: str
    reference: str
    aim: str = ""
    bytes: float | None = None  # that must be read and written at least, of one call
    operations: float | None = None  # multiplications and additions


def machine(device: torch.device) -> str:
    """Processor, threads, instruction set, versions; or the same of a GPU."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        versions = f"CUDA {torch.version.cuda}, NVRTC {nvrtc.version()}, torch {torch.__version__}"
        return f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB, {versions}"
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


def blocks(
    ours: Callable[[], object], reference: Callable[[], object], *, rounds: int = 3, budget: float = 2.0, least: int = 5
) -> tuple[float, float]:
    """Median wall times of two calls, each in blocks of its own that alternate: (ours, reference).

    For what runs again and again in a fit. A reference that takes hundreds of megabytes leaves the next call's memory
    cold and returned to the system, call by call: then that is what would be measured.
    """
    times = [[seconds(call, budget=budget, least=least) for call in (ours, reference)] for _ in range(rounds)]
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return mine, theirs


def fma_peak() -> float:
    """Float32 operations per second of this machine's multiply-add units, with the threads in use."""
    threads, rounds = torch.get_num_threads(), 2_000_000
    result = torch.zeros(threads)
    best = min(
        seconds(lambda: native.launch("fma_peak", None, result, threads, rounds), budget=0.3, least=5) for _ in range(3)
    )
    return 24 * native.module().lanes * rounds * threads / best


def gpu_seconds(calls: Sequence[Callable[[], object]], *, rounds: int = 15, warmup: int = 3) -> float:
    """Median time of one call on the GPU, by CUDA events. ``calls`` do the same work on different inputs, in turn, so
    that none finds its own in the L2 cache. The GPU sleeps before each: launches then do not count, only kernels do,
    unless the call itself waits for the GPU."""
    events = []
    for number in range(warmup + rounds):
        for call in calls:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(1_000_000)
            begin.record()
            call()
            end.record()
            if number >= warmup:
                events.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


@functools.cache
def copy_rate(megabytes: int = 2048) -> float:
    """Bytes per second, read and written, of torch's own copy. The default is far beyond the L2 cache."""
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / gpu_seconds([lambda: target.copy_(source)])


@functools.cache
def matrix_rate(dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> float:
    """Operations per second of torch's own matrix product."""
    a, b = torch.randn(2, size, size, device="cuda").to(dtype)
    return 2 * size**3 / gpu_seconds([lambda: a @ b])


def gpu_row(
    name: str, time: float, work: float, unit: str, *, bytes: float, operations: float = 0, aim: str = ""
) -> Row:
    """A kernel's time per piece of work (ns), and how much of the machine's measured rates it makes use of."""
    shares = {"copy bandwidth": bytes / time / copy_rate(), "matrix rate": operations / time / matrix_rate()}
    said = ", ".join(f"{share:.1%} of the {rate}" for rate, share in shares.items() if share)
    moved = f"{bytes / 1e6:.0f} MB in {time * 1e3:.3f} ms"
    return Row(name, None, time / work * 1e9, unit, f"{moved}: {said}", aim, bytes, operations or None)


def peer(name: str) -> ModuleType | None:
    """Another project's package, if it is installed."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


def absent(row: str, name: str, unit: str) -> Row:
    """The line of a peer that is not there: nothing is said about how fast it is."""
    return Row(f"{row}: {name}", None, None, unit, f"{name} is not installed: not measured")


def peak_memory_bytes() -> int:
    """The most memory that this process has held; Linux's other count begins with that of whoever started it."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
