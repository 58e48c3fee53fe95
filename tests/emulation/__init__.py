"""Runs CUDA kernels without a GPU: compiles a kernel file with g++ behind ``cuda_emulator.h``, and launches it on
tensors of the CPU.

Every launch runs several times, threads and blocks in other orders, shared memory full of other rubbish; results must
be equal. The emulator itself reports races, accesses outside tensors and shared arrays, and shared memory that is read
before it is written.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from polyfield.cuda import native, nvrtc
from polyfield.cuda.device import Packing
from torch import Tensor
from torch.overrides import TorchFunctionMode

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "emulation"
COMPILER = shutil.which("g++")
ADDS_ATOMICALLY = {f"hash_encode_backward_{way}_{dtype}" for way in ("table", "along") for dtype in ("f32", "f64")}
FLAGS = ["-std=c++17", "-O1", "-g", "-fPIC", "-Wall", "-Wno-unknown-pragmas"]


class _Region(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("begin", ctypes.c_void_p), ("bytes", ctypes.c_int64))


class EmulationError(AssertionError):
    """What a kernel did wrong."""


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")


def _object(name: str, source: Path, flags: Sequence[str | Path], texts: Sequence[str]) -> Path:
    """A compiled source, made once for these texts."""
    key = hashlib.sha256("\0".join([*texts, *map(str, flags)]).encode()).hexdigest()[:16]
    path = BUILD / f"{name}-{key}.o"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        _finish(path, COMPILER, *FLAGS, *flags, "-c", source)
    return path


def _finish(path: Path, *command: str | Path) -> None:
    """Run a compiler, aside, so that another process never sees half a file."""
    aside = path.with_suffix(f".{os.getpid()}")
    _run(*command, "-o", aside)
    aside.rename(path)


@functools.cache
def build(kernel: Path, constants: nvrtc.Constants = ()) -> Path:
    """The shared library of a kernel file."""
    header, runtime = HERE / "cuda_emulator.h", HERE / "cuda_emulator.cpp"
    macros = [f"-D{name}={value}" for name, value in constants]
    flags = (*macros, "-fsanitize=thread", "-I", nvrtc.INCLUDE, "-include", header, "-x", "c++")
    texts = [header.read_text(), runtime.read_text()]
    objects = (
        _object(kernel.stem, kernel, flags, [*nvrtc.texts(kernel), *texts]),
        _object("runtime", runtime, ("-O2",), texts),
    )
    library = objects[0].with_suffix(".so")
    if not library.exists():
        _finish(library, COMPILER, "-shared", *objects)
    return library


class Kernel:
    """An entry point in a library of ``build``."""

    def __init__(self, name: str, source: Path, constants: nvrtc.Constants = ()):
        self.name, self.path = name, build(source, constants)
        self.library = ctypes.CDLL(str(self.path))
        self.library.emulator_launch.restype = ctypes.c_char_p
        try:
            self.function = ctypes.cast(getattr(self.library, name), ctypes.c_void_p)
        except AttributeError:
            raise EmulationError(f"{name}: expected a CUDA kernel, got one for the CPU only") from None
        table = (ctypes.c_int32 * (2 * self._parameter_count())).in_dll(self.library, f"{name}_parameters")
        pairs = zip(table[::2], table[1::2], strict=True)
        self.packing = Packing(name, tuple((chr(kind), size) for kind, size in pairs))

    def _parameter_count(self) -> int:
        symbols = subprocess.run(["nm", "-S", str(self.path)], capture_output=True, text=True, check=True).stdout
        return int(re.search(rf"^\w+ (\w+) \w {self.name}_parameters$", symbols, re.MULTILINE)[1], 16) // 8

    def run(self, slots: Sequence[Any], tensors: Sequence[tuple[str, Tensor]], seed: int) -> None:
        grid = self.packing.grid(slots)
        if grid == 0:
            return
        packed = self.packing.pack(slots)
        buffer = ctypes.create_string_buffer(packed, len(packed))
        regions = (_Region * len(tensors))(
            *(_Region(name.encode(), t.data_ptr(), t.numel() * t.element_size()) for name, t in tensors)
        )
        problem = self.library.emulator_launch(
            self.function,
            buffer,
            ctypes.c_int64(len(packed)),
            ctypes.c_int64(grid),
            ctypes.c_int64(self.packing.block),
            ctypes.c_uint64(seed),
            regions,
            ctypes.c_int64(len(tensors)),
        )
        if problem:
            raise EmulationError(f"{self.name}: {self._with_line(problem.decode())}")

    def _with_line(self, problem: str) -> str:
        """The same with file and line instead of an address."""
        if not (at := re.search(r" at \+(0x\w+)$", problem)):
            return problem
        command = ["addr2line", "-i", "-e", str(self.path), at[1]]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        names = [Path(line).name for line in lines if "cuda_emulator" not in line and "?" not in line]
        return problem[: at.start()] + (f" ({' from '.join(names)})" if names else "")


@functools.cache
def kernel(name: str, constants: nvrtc.Constants = ()) -> Kernel:
    """By name, from the package or from this folder."""
    return Kernel(name, nvrtc.sources().get(name) or nvrtc.entry_points(HERE)[name], constants)


@contextlib.contextmanager
def emulated(*, orders: int = 2) -> Iterator[None]:
    """Here CUDA kernels work on tensors of the CPU. Each launch is done in so many orders of threads.

    Results are equal to the bit, but for kernels that add floats atomically, which round differently each time.
    """

    def launch(name: str, arguments: Sequence[Any], slots: list[Any], constants: nvrtc.Constants) -> None:
        run = kernel(name, constants).run
        tensors = native.tensors_of(arguments)
        before = [t.clone() for _, t in tensors]
        results = []
        for order in range(orders):
            for (_, tensor), old in zip(tensors, before, strict=True):
                tensor.data.copy_(old)  # unseen by autograd's counters
            run(slots, tensors, seed=order)
            results.append([t.clone() for _, t in tensors] if order < orders - 1 else [t for _, t in tensors])
        for (label, last), *others in zip(tensors, *results[:-1], strict=True):
            for other in others:
                if not same(last, other, name in ADDS_ATOMICALLY):
                    raise EmulationError(f"{name}: {label}: the result depends on the order of threads")

    previous, native.emulator = native.emulator, launch
    try:
        yield
    finally:
        native.emulator = previous


def same(a: Tensor, b: Tensor, rounded: bool) -> bool:
    """To the bit, or to rounding errors of the largest number."""
    if rounded and a.is_floating_point():
        scale = float(b.abs().nan_to_num().max()) if b.numel() else 0
        return torch.allclose(a, b, rtol=0, atol=64 * torch.finfo(a.dtype).eps * scale, equal_nan=True)
    # a copy, since one number may call itself contiguous with any stride
    return torch.equal(*(x.clone(memory_format=torch.contiguous_format).view(torch.uint8) for x in (a, b)))


# ---- the tests of the ops, on CUDA kernels --------------------------------------------------------------------------

_FACTORIES = {torch.tensor, torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn, torch.randint}
_FACTORIES |= {torch.arange, torch.linspace, torch.eye}


class _Made(TorchFunctionMode):
    """Tensors are made on a device, where the test does not name one; random ones as on the CPU."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        return made.to(self.device) if func in _FACTORIES and "device" not in kwargs else made


@contextlib.contextmanager
def on_gpu(device: torch.device) -> Iterator[None]:
    """Here ops run CUDA kernels: on tensors that are made on ``device`` if it is a GPU, else in the emulator."""
    with _Made(device) if device.type == "cuda" else emulated():
        yield


def on_both(function, *inputs):
    """function(*inputs) as CUDA kernels have it, and as the CPU has it."""
    found = function(*inputs)
    previous, native.emulator = native.emulator, None
    try:
        with _Made(torch.device("cpu")):
            return found, function(*(x.cpu() if isinstance(x, Tensor) else x for x in inputs))
    finally:
        native.emulator = previous
