"""What every op checks of its arguments, with one form of message: ``op: argument: expected ..., got ...; remedy``."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


def check_shape(op: str, name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless ``tensor`` has ``shape``; None stands for any size."""
    if tensor.dim() != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, tensor.shape, strict=True)
    ):
        wanted = ", ".join("*" if s is None else str(s) for s in shape)
        raise ValueError(f"{op}: {name}: expected shape ({wanted}), got {tuple(tensor.shape)}; reshape it")


def check_dtype(op: str, name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    """Raise TypeError unless ``tensor`` has one of ``dtypes``."""
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name}: expected {wanted}, got {got}; convert it with .to({dtypes[0]})")


def check_contiguous(op: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor``, which is written to in place, is contiguous."""
    if not tensor.is_contiguous():
        strides = tensor.stride()
        raise ValueError(f"{op}: {name}: expected a contiguous tensor, got strides {strides}; call .contiguous()")


def check_device(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors, given by their names, are on one device. None counts for nothing."""
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first, device = given[0][0], given[0][1].device
    for name, tensor in given:
        if tensor.device != device:
            raise ValueError(
                f"{op}: {name}: expected a tensor on {device}, as {first} is, got {tensor.device}; "
                f"move it with .to({str(device)!r})"
            )


def check_range(op: str, name: str, value: int | float, low: int | float, high: int | float) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{op}: {name}: expected a number from {low} to {high}, got {value}")
