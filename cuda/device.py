"""Kernels on an NVIDIA GPU: compiled on first use for the device at hand, launched on torch's stream and memory.

A kernel says itself what its parameters are and how many threads work on an item (``include/op.h``); a launch is
therefore a name and arguments. Code is loaded once per architecture and serves all devices that have it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from . import nvrtc

_LOCK = threading.Lock()
_events: list | None = None  # of launches, while they are timed
_CODES = {("p", 8): "Q", ("i", 4): "i4x", ("i", 8): "q", ("f", 4): "f4x", ("f", 8): "d"}
_SHARES = {"T": 1, "W": 32, "B": 0}  # threads that work on one item; 0 = a block


class Packing:
    """How arguments become the block of bytes that a kernel reads, and the grid that its number of items needs."""

    def __init__(self, name: str, parameters: Sequence[tuple[str, int]]):
        self.name, self.parameters = name, parameters
        codes = []
        for index, (kind, size) in enumerate(parameters):
            if kind in _SHARES:
                self.index, self.share, self.block = index, _SHARES[kind], size
                codes.append("q")
            else:
                codes.append(f"{size}s{-size % 8}x" if kind == "h" else _CODES[kind, size])
        self._struct = struct.Struct("<" + "".join(codes))
        self._inline = [index for index, (kind, _) in enumerate(parameters) if kind == "h"]

    def grid(self, arguments: Sequence[Any]) -> int:
        """The number of blocks; 0 where there is nothing to do."""
        items = arguments[self.index]
        blocks = -(-items * self.share // self.block) if self.share else items
        if blocks >= 2**31:
            raise ValueError(f"{self.name}: argument {self.index}: expected fewer items, got {items}; cut them up")
        return blocks

    def pack(self, arguments: Sequence[Any]) -> bytes:
        """Raises TypeError for another number or kind of arguments than the kernel has."""
        if self._inline:
            arguments = [bytes(a) if i in self._inline else a for i, a in enumerate(arguments)]
        try:
            return self._struct.pack(*arguments)
        except struct.error as error:
            kinds = "".join(kind for kind, _ in self.parameters)
            wanted = f"{len(kinds)} arguments ({kinds})"
            raise TypeError(f"{self.name}: expected {wanted}, got {arguments}: {error}") from error


@functools.cache
def architecture(index: int) -> str:
    """Of a CUDA device, as NVRTC calls it: ``sm_90``."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def problem(index: int = 0) -> str | None:
    """Why torch and our kernels cannot use this GPU, and what to do about it; None if they can."""
    built = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{built} is built for the CPU only; install one that is built for CUDA (see pytorch.org)"
    if not torch.cuda.is_available():
        return f"{built} finds no NVIDIA GPU ({_why_none()}); check the driver with nvidia-smi"
    if index >= (count := torch.cuda.device_count()):
        return (
            f"there is no cuda:{index}, for {built} finds {count} GPU{'s' if count > 1 else ''}; choose a lower number"
        )
    try:
        torch.ones(1, device=torch.device("cuda", index)).add_(1)  # an architecture that torch has no code for
        _kernel("packed_indices", architecture(index))
    except RuntimeError as error:
        return str(error)
    return None


def _why_none() -> str:
    """torch's own words: no driver, an old driver, no device."""
    try:
        torch.cuda.init()
    except Exception as error:
        return str(error).strip().split("\n")[0].rstrip(".")
    return "it does not say why"


def launch(name: str, device: torch.device, arguments: Sequence[Any], constants: nvrtc.Constants = ()) -> None:
    """Run a kernel on ``device``'s current stream. Arguments are addresses, numbers and ctypes objects, in order.

    Raises RuntimeError where cuda-core, a fitting driver or an architecture is missing, or the launch is refused.
    """
    index = device.index if device.index is not None else torch.cuda.current_device()
    packing, handle = _kernel(name, architecture(index), constants)
    grid = packing.grid(arguments)
    if grid == 0:
        return
    content = packing.pack(arguments)
    driver = _driver()
    buffer = ctypes.create_string_buffer(content, len(content))
    addresses = (ctypes.c_void_p * 1)(ctypes.addressof(buffer))
    with torch.cuda.device(index):
        stream = torch.cuda.current_stream(index).cuda_stream
        block = packing.block
        events = None if _events is None else [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        if events:
            events[0].record()
        (error,) = driver.cuLaunchKernel(handle, grid, 1, 1, block, 1, 1, 0, stream, ctypes.addressof(addresses), 0)
        _check(f"{name}: launch", error)
        if events and _events is not None:
            events[1].record()
            _events.append((name, *events))


@functools.cache
def _driver():
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise RuntimeError(f"cuda: expected the package cuda-core, got none; {nvrtc.REMEDY}") from error
    return driver


_LOADED: dict[tuple[str, str, nvrtc.Constants], tuple[Packing, Any]] = {}


def _kernel(name: str, architecture: str, constants: nvrtc.Constants = ()) -> tuple[Packing, Any]:
    key = (name, architecture, constants)
    found = _LOADED.get(key)
    if found is None:
        with _LOCK:
            if key not in _LOADED:
                _load(*key)
            found = _LOADED[key]
    return found


def _load(name: str, architecture: str, constants: nvrtc.Constants) -> None:
    """Load the file that has this kernel, with all that are in it."""
    path = nvrtc.sources().get(name)
    if path is None or path.stem in nvrtc.WITHOUT_TWIN:
        raise ValueError(f"{name}: expected a CPU tensor, for this kernel has no CUDA twin; move it with .cpu()")
    compiled = nvrtc.compile_kernels(path, architecture, constants=constants)
    if name not in compiled.parameters:
        raise ValueError(f"{name}: expected a CPU tensor, for this kernel has no CUDA twin; move it with .cpu()")
    driver = _driver()
    torch.cuda.init()
    error, library = driver.cuLibraryLoadData(compiled.code, [], [], 0, [], [], 0)
    if error != driver.CUresult.CUDA_SUCCESS:
        _, version = driver.cuDriverGetVersion()
        compiler = nvrtc.version()
        if version // 1000 < int(compiler.split(".")[0]):
            raise RuntimeError(
                f"cuda: expected a driver for CUDA {compiler.split('.')[0]} or newer, as NVRTC {compiler} is, "
                f"got one for {version // 1000}.{version % 1000 // 10}; update the driver, or "
                f"pip install 'cuda-core[cu{version // 1000}]'"
            )
        _check(f"{name}: loading", error)
    for entry, parameters in compiled.parameters.items():
        error, kernel = driver.cuLibraryGetKernel(library, entry.encode())
        _check(f"{entry}: loading", error)
        handle = driver.CUfunction(int(kernel))  # the driver takes either, and finds the current device's code
        _LOADED[entry, architecture, constants] = Packing(entry, parameters), handle


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Here launches are timed, one after the other: name -> milliseconds of its last launch, once this is left."""
    global _events  # noqa: PLW0603
    times: dict[str, float] = {}
    _events = []
    try:
        yield times
    finally:
        torch.cuda.synchronize()
        times.update((name, begin.elapsed_time(end)) for name, begin, end in _events)
        _events = None


def _check(what: str, error: Any) -> None:
    driver = _driver()
    if error == driver.CUresult.CUDA_SUCCESS:
        return
    _, text = driver.cuGetErrorString(error)
    remedy = ""
    if error == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        free, total = torch.cuda.mem_get_info()
        remedy = f"; {free / 2**30:.2f} of {total / 2**30:.1f} GB are free: close other programs"
    raise RuntimeError(f"{what}: expected success, got {error.name}: {(text or b'').decode()}{remedy}")
