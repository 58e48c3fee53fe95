"""Which device a verb works on, decided here alone; and what else differs between a CPU and a GPU.

``--device auto`` is the first GPU if torch and the kernels' compiler can use it, else the CPU; where a GPU seems to be
there and cannot be used, the reason is said once. ``cuda`` or ``cuda:1`` is that GPU or an error, never the CPU.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..cuda import device as gpu
from ..cuda.native import CPU
from .errors import UserError

DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
_said: set[str] = set()


def choose_device(asked: str | torch.device = "auto") -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` -> the device, with its index if it is a GPU.

    Raises UserError for any other word, and for a GPU that cannot be used: which says why, and what to do.
    """
    if isinstance(asked, torch.device):
        asked = str(asked)
    if asked == "auto":
        problem = gpu.problem()
        if problem is not None and gpu_seems_present() and problem not in _said:
            _said.add(problem)
            print(f"Working on the CPU, not on the GPU: {problem}", file=sys.stderr)
        return CPU if problem is not None else torch.device("cuda", 0)
    if asked == "cpu":
        return CPU
    found = re.fullmatch(r"cuda(?::(\d+))?", asked)
    if found is None:
        raise UserError(f"--device: expected auto, cpu, cuda or cuda:N, got {asked!r}")
    index = int(found[1] or 0)
    if (problem := gpu.problem(index)) is not None:
        raise UserError(f"--device {asked}: expected a GPU that can be used, got none: {problem}; or use --device cpu")
    return torch.device("cuda", index)


def gpu_seems_present() -> bool:
    """Whether this machine has an NVIDIA driver, or torch is built for one: then a user may wonder why it idles."""
    driver = any(Path(file).exists() for file in DRIVER_FILES) or shutil.which("nvidia-smi") is not None
    return driver or torch.cuda.is_available()


def describe(device: torch.device) -> str:
    """For people: ``the CPU``, or ``cuda:0 (NVIDIA H200)``."""
    return "the CPU" if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"


def default_generator(device: torch.device) -> torch.Generator:
    """The generator of a device that torch draws from where none is named."""
    if device.type == "cpu":
        return torch.default_generator
    torch.cuda.init()
    return torch.cuda.default_generators[device.index or 0]


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cpu":
        return _available()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for later
    return torch.cuda.mem_get_info(device)[0] + kept


def _available() -> int:
    """Bytes of the CPU's memory, with what the system would give back of its file cache."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def read_later(values: Tensor) -> Callable[[], list[float]]:
    """The numbers of a tensor (N,): call the result when they are needed. A GPU goes on meanwhile with what follows."""
    if values.is_cpu:
        return values.tolist
    landed = torch.empty(values.shape, dtype=values.dtype, device=CPU, pin_memory=True)
    landed.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values.device))

    def read() -> list[float]:
        arrived.synchronize()
        return landed.tolist()

    return read


def wait(device: torch.device) -> None:
    """Until a GPU has done all that it was given; for those who look at a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def enough_memory(what: str, device: torch.device, remedy: str) -> Iterator[None]:
    """Here, running out of memory is a UserError: what was asked for, what is free, and ``remedy``: what lowers it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_lack_of_memory(error):
            raise
        place = device if isinstance(error, torch.OutOfMemoryError) else CPU
        place = device if "CUDA" in str(error) else place
        raise UserError(
            f"{what}: expected enough memory on {describe(place)}, got too little: {_asked(str(error))}, "
            f"{free_memory(place) / 2**30:.2f} GB are free; {remedy}"
        ) from error


def _is_lack_of_memory(error: Exception) -> bool:
    known = ("can't allocate memory", "not enough memory", "CUDA_ERROR_OUT_OF_MEMORY", "CUDA out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in known)


def _asked(message: str) -> str:
    """What torch says that it tried to allocate."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+) (\w+)", message)
    if found is None:
        return "it did not say how much it asked for"
    units = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    return f"asked for {float(found[1]) * units.get(found[2], 1) / 2**30:.2f} GB"
