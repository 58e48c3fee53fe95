"""A device that is none: whatever would go wrong on a GPU goes wrong here, on the CPU.

Tensors on it hold their numbers in ordinary memory and call themselves ``meta`` (the one device besides the CPU whose
autograd every build of torch has). What mixes them with the CPU's is refused as a GPU would refuse it, what makes the
CPU wait for a GPU is counted, and CUDA kernels run in the emulator.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from polyfield.apps import batches, fit
from polyfield.cuda import native
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map

from tests.emulation import kernel

DEVICE = torch.device("meta")
ROOT = Path(__file__).resolve().parents[1]
aten = torch.ops.aten
READS = {
    aten.item,
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.is_nonzero,
    aten.bincount,
}
COPIES = {aten._to_copy, aten.copy_}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Far(torch.Tensor):
    """A tensor on the device; ``near`` holds its numbers."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor):
        layout = dict(strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype)
        made = torch.Tensor._make_wrapper_subclass(cls, near.shape, device=DEVICE, **layout)
        made.near = near
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.near.data_ptr()


class _Generator(torch.Generator):
    """One that says it is where it was asked to be."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.place = torch.device(device)
        return made

    @property
    def device(self):
        return self.place


def _call(function, args, kwargs):
    packet, values = function.overloadpacket, list(tree_iter((args, kwargs)))
    if function.namespace == "polyfield" and any(isinstance(v, Far) for v in values):
        with _FromPython(), _Everything():  # which are off while they are asked
            return torch._library.custom_ops.OPDEFS[function._schema.name]._init_fn(*args, **kwargs)
    target = kwargs.get("device")
    there = [v for v in values if isinstance(v, Far)]
    here = [v for v in values if isinstance(v, torch.Tensor) and not isinstance(v, Far) and v.dim()]
    if there and here and packet not in COPIES:
        raise RuntimeError(f"{function}: expected all tensors on one device, got {DEVICE} and cpu")
    if _waits(packet, args, kwargs, there):
        waits.append(f"{packet} in {_where()}")
    if target == DEVICE:
        kwargs = {**kwargs, "device": "cpu"}
    kwargs.pop("pin_memory", None)
    with _disable_current_modes():
        found = function(*tree_map(_near, args), **tree_map(_near, kwargs))
    if function._schema.name.endswith("_") and isinstance(args[0], Far):
        return args[0]
    far = target == DEVICE if target is not None else bool(there)
    return tree_map(_far, found) if far else found


waits: list[str] = []


def _waits(packet, args, kwargs, there) -> bool:
    """Whether a CPU would wait for a GPU here."""
    if not there:
        return False
    if packet in COPIES:
        to_cpu = packet is aten.copy_ and not isinstance(args[0], Far)
        to_cpu |= packet is aten._to_copy and kwargs.get("device") == torch.device("cpu")
        return to_cpu and not kwargs.get("non_blocking", packet is aten.copy_ and len(args) > 2 and args[2])
    if packet in INDEXED:
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return packet in READS or (packet is aten.repeat_interleave and kwargs.get("output_size") is None)


def _near(value):
    return value.near if isinstance(value, Far) else value


def _far(value):
    return Far(value) if isinstance(value, torch.Tensor) and not isinstance(value, Far) else value


def _where() -> str:
    """Our own line that asked."""
    ours = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(ROOT) and "tests" not in f.filename]
    ours = [f for f in ours if ".venv" not in f.filename]
    return f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno} {ours[-1].line}" if ours else "torch"


class _Everything(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {})


class _Event:
    def record(self, stream) -> None:
        """All has happened already."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class _FromPython(TorchFunctionMode):
    """Tensors of Python's numbers, which torch sends to a device unseen by dispatch."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.tolist and isinstance(args[0], Far):
            return args[0].to("cpu").tolist()
        new = function is torch.Tensor.new_tensor and isinstance(args[0], Far)
        if not new and not (function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE):
            return function(*args, **kwargs)
        data, *more = args[1:] if new else args
        dtype = kwargs.get("dtype") or (args[0].dtype if new else None)
        return data if isinstance(data, Far) else Far(torch.tensor(data, *more, dtype=dtype))


def _launch(name, arguments, slots, constants) -> None:
    with _disable_current_modes():
        tensors = [(label, _near(tensor)) for label, tensor in native.tensors_of(arguments)]
        assert all(isinstance(t, Far) for _, t in native.tensors_of(arguments)), f"{name}: launched on CPU tensors"
        kernel(name, constants).run(slots, tensors, seed=0)


@contextlib.contextmanager
def fake_gpu(free_memory: int = 1 << 30) -> Iterator[list[str]]:
    """Here ``DEVICE`` exists, with this much memory. Yields the list of waits, which grows."""
    waits.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "emulator", _launch)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "current_stream", lambda device: None)
        patch.setattr(fit, "default_generator", lambda device: torch.default_generator)
        patch.setattr(batches, "free_memory", lambda device: free_memory)
        with _FromPython(), _Everything():
            yield waits
