"""Say what this machine offers, and check the kernels on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

from ..errors import UserError
from ..parse import parse

PACKAGES = ("torch", "numpy", "pillow", "tyro", "rich", "safetensors", "trimesh", "viser", "torchmetrics", "cuda-core")


def main(arguments: list[str]) -> None:
    parse(run, "doctor", arguments)


def run(architecture: str | None = None) -> None:
    """Versions, processor, instruction set, threads, memory, GPU; every kernel checked against a short reference.

    Args:
        architecture: compile the CUDA kernels for this GPU too, such as sm_90; without it, for those that are here.
    """
    import torch

    import polyfield

    from ...cuda import device, native
    from ..self_check import CHECKS

    print(f"polyfield    {polyfield.__version__}, Python {platform.python_version()}, {platform.platform()}")
    print("packages     " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    print(f"processor    {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used")
    available = ", ".join(native.available_isas())
    print(f"instructions {native.isa()} in use ({available} available; {native.ISA_VARIABLE} forces one)")
    print(
        f"bfloat16     {'native matrix products' if native.has_bfloat16() else 'not native: float32 products instead'}"
    )
    print(f"memory       {_memory()}")
    print(f"GPU          {_gpu()}")
    print(f"fits run on  {_place()}")
    failed = _check(CHECKS, "cpu")
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    for target in dict.fromkeys([*(device.architecture(i) for i in gpus), *([architecture] if architecture else [])]):
        _compile(target)
    for index in gpus:
        with torch.device("cuda", index), device.timed() as times:
            failed += _check(CHECKS, f"cuda:{index}")
        for name, milliseconds in times.items():
            print(f"cuda:{index}       {name:<32} {milliseconds:.3f} ms")
    if failed:
        raise UserError(
            f"doctor: {failed} kernels failed on {native.isa()}; "
            f"try {native.ISA_VARIABLE}=portable and report this output"
        )
    sys.stdout.flush()


def _check(checks, where: str) -> int:
    """Run all checks; returns how many failed."""
    failed = 0
    for name, check in checks.items():
        try:
            error = check()
            good = error < 1e-4
            print(f"kernel       {name:<16} {where} {'ok' if good else 'WRONG'} (largest error {error:.1e})")
        except Exception as problem:
            good = False
            print(f"kernel       {name:<16} {where} FAILED: {problem}")
        failed += not good
    return failed


def _compile(architecture: str) -> None:
    """Compile every CUDA kernel, or find it compiled, and say what it takes of the chip."""
    import time

    from ...cuda import nvrtc

    begin = time.perf_counter()
    for path in sorted(set(nvrtc.sources().values())):
        if path.stem in nvrtc.WITHOUT_TWIN:
            continue
        start = time.perf_counter()
        try:
            compiled = nvrtc.compile_kernels(path, architecture)
        except RuntimeError as problem:
            raise UserError(str(problem)) from problem
        print(f"{architecture:<12} {path.name}: {time.perf_counter() - start:.2f} s")
        for name, r in sorted(compiled.resources.items()):
            takes = f"{r.registers} registers, {r.spills} bytes spilled, {r.shared} bytes of shared memory"
            print(f"{architecture:<12}   {name:<32} {takes}")
    print(f"{architecture:<12} all kernels: {time.perf_counter() - begin:.2f} s, kept in {nvrtc.cache_folder()}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        return f"{total / 2**30:.1f} GB, {free / 2**30:.1f} GB free"
    except (ValueError, OSError):
        return "unknown"


def _place() -> str:
    from ...cuda import device
    from ..devices import choose_device, describe

    chosen = choose_device("auto")
    return describe(chosen) if chosen.type == "cuda" else f"the CPU: {device.problem()}"


def _gpu() -> str:
    import torch

    nvrtc = _version("cuda-core")
    if not torch.cuda.is_available():
        return f"none that torch can use (cuda-core for NVRTC: {nvrtc})"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{torch.cuda.get_device_name()}, {memory:.0f} GB (cuda-core for NVRTC: {nvrtc})"
