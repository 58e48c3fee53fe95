"""The native kernels: which instruction set serves this processor, and how an op calls its kernel.

The package holds one compiled module per instruction set (``portable``, ``avx2``, ``avx512``). The best one that the
processor has is imported on first use; the environment variable ``POLYFIELD_ISA`` names another. ``launch`` is the
one door to the kernels, on the CPU and on GPUs (``device.py``): tensors become addresses, and what a kernel cannot take
is refused here.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

import torch  # before the modules: they then share torch's OpenMP threads
from torch import Tensor

from . import device as gpu
from .nvrtc import Constants

CPU = torch.device("cpu")
ISAS = ("portable", "avx2", "avx512")  # from the slowest to the fastest
ISA_VARIABLE = "POLYFIELD_ISA"
_SUFFIX = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


@functools.cache
def features() -> tuple[str, ...]:
    """What the processor can do: any of ``avx2``, ``avx512``, ``bf16`` (AVX-512 bfloat16 dot products)."""
    return tuple(importlib.import_module(f"{__package__}._processor").features())


def available_isas() -> tuple[str, ...]:
    """The instruction sets that run on this processor and are in this build, from the slowest to the fastest."""
    found = []
    for isa in ISAS:
        if isa == "portable" or isa in features():
            try:
                importlib.import_module(f"{__package__}._cpu_{isa}")
            except ImportError:
                continue
            found.append(isa)
    return tuple(found)


@functools.cache
def isa() -> str:
    """The instruction set in use: the best available one, or what ``POLYFIELD_ISA`` says.

    Raises RuntimeError if ``POLYFIELD_ISA`` names one that this processor or build does not have.
    """
    wanted = os.environ.get(ISA_VARIABLE, "").strip().lower()
    found = available_isas()
    if not wanted:
        return found[-1]
    if wanted not in found:
        raise RuntimeError(
            f"{ISA_VARIABLE}: expected one of {', '.join(found)} on this processor, got {wanted!r}; "
            "unset it to choose the best"
        )
    return wanted


def has_bfloat16(tensor: Tensor | None = None) -> bool:
    """Whether bfloat16 matrix products run natively: on the device of ``tensor``, or with the CPU's instruction set."""
    if tensor is not None and on_gpu(tensor):
        return not tensor.is_cuda or torch.cuda.get_device_capability(tensor.device) >= (8, 0)
    return isa() == "avx512" and "bf16" in features()


@functools.cache
def module() -> ModuleType:
    """The compiled module in use."""
    return importlib.import_module(f"{__package__}._cpu_{isa()}")


@functools.cache
def _op(name: str):
    return module().op(name)


# Tests set this to run CUDA kernels without a GPU: (name, arguments as given to launch, the same as numbers).
emulator: Callable[[str, Sequence[Any], list[Any], Constants], None] | None = None


def on_gpu(tensor: Tensor) -> bool:
    """Whether CUDA kernels work on this tensor."""
    return tensor.is_cuda or emulator is not None


class Table:
    """Sizes and tensors in host memory, eight bytes each, that a kernel reads: on a GPU by value, as ``Inline`` of
    ``include/op.h``. None counts as 0, and so does what lacks to ``length``."""

    def __init__(self, entries: Sequence[Tensor | int | None], length: int = 0):
        self.tensors = [(i, entry) for i, entry in enumerate(entries) if isinstance(entry, Tensor)]
        numbers = [0 if entry is None or isinstance(entry, Tensor) else entry for entry in entries]
        self.slots = (ctypes.c_int64 * max(length, len(entries), 1))(*numbers)


def launch(
    name: str,
    dtype: torch.dtype | None,
    *arguments: Tensor | Table | int | float | None,
    constants: Constants = (),
) -> None:
    """Run kernel ``name`` (its ``dtype`` instance; None if it has only one) where its tensors are.

    constants: macros that CUDA kernels are compiled with for this launch; nothing to the CPU.

    Tensors must be contiguous and all on the CPU or all on one CUDA device, on whose current stream the kernel is put.

    Raises ValueError for tensors on another device, on two, or with gaps. Shapes and dtypes are the op's own to check.
    """
    if dtype is not None:
        name = f"{name}_{_SUFFIX[dtype]}"
    device: torch.device | None = None
    slots: list[Any] = []
    tables = False
    for argument in arguments:
        if isinstance(argument, Tensor):
            if device is None:
                device = argument.device
            if argument.device != device or not argument.is_contiguous():
                _refuse(name, arguments)
            slots.append(argument.data_ptr())
        elif argument is None:
            slots.append(0)
        elif isinstance(argument, Table):
            tables = True
            for i, tensor in argument.tensors:
                if device is None:
                    device = tensor.device
                if tensor.device != device or not tensor.is_contiguous():
                    _refuse(name, arguments)
                argument.slots[i] = tensor.data_ptr()
            slots.append(argument.slots)
        else:
            slots.append(argument)
    if emulator is not None:
        emulator(name, arguments, slots, constants)
    elif device is not None and device.type == "cuda":
        gpu.launch(name, device, slots, constants)
    elif device is not None and device.type != "cpu":
        raise ValueError(f"{name}: expected CPU or CUDA tensors, got {device}; move them with .cpu()")
    else:
        if tables:
            slots = [ctypes.addressof(slot) if isinstance(slot, ctypes.Array) else slot for slot in slots]
        _op(name)(*slots)


def _refuse(name: str, arguments: Sequence[Any]) -> NoReturn:
    """Say which tensor a kernel cannot take, and why."""
    tensors = tensors_of(arguments)
    device = tensors[0][1].device
    for where, tensor in tensors:
        if tensor.device != device:
            raise ValueError(
                f"{name}: {where}: expected a tensor on {device} like the others, got {tensor.device}; "
                f"move it with .to({str(device)!r})"
            )
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name}: {where}: expected a contiguous tensor, got strides {tensor.stride()}; call .contiguous()"
            )
    raise AssertionError(f"{name}: every tensor is contiguous and on {device}")


def tensors_of(arguments: Sequence[Any]) -> list[tuple[str, Tensor]]:
    """All tensors among the arguments of a launch, those in tables too, with the places where they stand."""
    found = []
    for index, argument in enumerate(arguments):
        if isinstance(argument, Tensor):
            found.append((f"argument {index}", argument))
        elif isinstance(argument, Table):
            found += [(f"argument {index}[{i}]", tensor) for i, tensor in argument.tensors]
    return found
