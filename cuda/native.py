"""The native kernels: which instruction set serves this processor, and how an op calls its kernel.

The package holds one compiled module per instruction set (``portable``, ``avx2``, ``avx512``). The best one that the
processor has is imported on first use; the environment variable ``POLYFIELD_ISA`` names another. ``launch`` is the
one door to the kernels: tensors become addresses, and what a kernel cannot take is refused here.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch  # before the modules: they then share torch's OpenMP threads
from torch import Tensor

ISAS = ("portable", "avx2", "avx512")  # from the slowest to the fastest
ISA_VARIABLE = "POLYFIELD_ISA"
_SUFFIX = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


@functools.cache
def features() -> tuple[str, ...]:
    """What the processor can do: any of ``avx2``, ``avx512``, ``bf16`` (AVX-512 bfloat16 dot products)."""
    return tuple(importlib.import_module(f"{__package__}._cpu_portable").features())


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


def has_bfloat16() -> bool:
    """Whether bfloat16 matrix products run natively with the instruction set in use."""
    return isa() == "avx512" and "bf16" in features()


@functools.cache
def module() -> ModuleType:
    """The compiled module in use."""
    return importlib.import_module(f"{__package__}._cpu_{isa()}")


@functools.cache
def _op(name: str):
    return module().op(name)


def launch(name: str, dtype: torch.dtype | None, *arguments: Tensor | int | float | None) -> None:
    """Run kernel ``name`` (its ``dtype`` instance; None if it has only one). Tensors must be contiguous CPU tensors.

    Raises ValueError for a tensor on another device or with gaps. Shapes and dtypes are the op's own to check.
    """
    if dtype is not None:
        name = f"{name}_{_SUFFIX[dtype]}"
    slots: list[int | float] = []
    for index, argument in enumerate(arguments):
        if isinstance(argument, Tensor):
            if not argument.is_cpu:
                raise ValueError(
                    f"{name}: argument {index}: expected a CPU tensor, got {argument.device}; move it with .cpu()"
                )
            if not argument.is_contiguous():
                raise ValueError(
                    f"{name}: argument {index}: expected a contiguous tensor, got strides {argument.stride()}; "
                    "call .contiguous()"
                )
            slots.append(argument.data_ptr())
        else:
            slots.append(0 if argument is None else argument)
    _op(name)(*slots)
