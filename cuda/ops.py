"""How a function becomes an op: ``@op("name")``.

Torch knows it as ``torch.ops.polyfield.name``, with what its results look like and its gradients: for what traces
programs, such as ``torch.compile``. Called with plain tensors it does without torch's dispatcher, which takes 0.05 to
0.15 ms each time, more than many kernels do; a step of a fit calls some twenty ops.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def eager(tensor: Tensor) -> bool:
    """Whether the dispatcher has nothing to do: a plain tensor, and nothing that traces or watches."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return plain and not torch.compiler.is_compiling() and not torch._C._len_torch_dispatch_stack()


class Op:
    """An op, called by position, with a tensor first. ``register_fake`` and ``register_autograd`` are as in torch."""

    def __init__(self, name: str, run: Callable[..., Any], mutates: tuple[str, ...]) -> None:
        self.run = run
        self.traced = torch.library.custom_op(f"polyfield::{name}", run, mutates_args=mutates)
        self.register_fake = self.traced.register_fake
        names = inspect.signature(run).parameters
        self.mutated = [i for i, name in enumerate(names) if name in mutates]
        self.tensors = [i for i, p in enumerate(names.values()) if "Tensor" in str(p.annotation)]  # and lists of them
        self.node: type[torch.autograd.Function] | None = None
        functools.update_wrapper(self, run)

    def __call__(self, *arguments: Any) -> Any:
        if not eager(arguments[0]):
            return self.traced(*arguments)
        if torch.is_grad_enabled() and any(_needs_grad(arguments[i]) for i in self.tensors):
            return self.traced(*arguments) if self.node is None else self.node.apply(*arguments)
        results = self.run(*arguments)
        if self.mutated:
            changed = [arguments[i] for i in self.mutated]
            torch.autograd.graph.increment_version([x for x in changed if x is not None and not x.is_inference()])
        return results

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        """Ops that take lists of tensors have gradients by the dispatcher alone."""
        self.traced.register_autograd(backward, setup_context=setup_context)
        if any("list[Tensor" in str(kind) for kind in self.run.__annotations__.values()):
            return
        run = self.run

        def forward(ctx, *arguments):  # with the context: of two functions, torch looks up signatures at each call
            results = run(*arguments)
            setup_context(ctx, arguments, results)
            return results

        functions = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self.node = type(self.run.__name__, (torch.autograd.Function,), functions)


def _needs_grad(argument: Any) -> bool:
    if isinstance(argument, Tensor):
        return argument.requires_grad
    return argument is not None and any(x is not None and x.requires_grad for x in argument)


def op(name: str, *, mutates: Iterable[str] = ()) -> Callable[[Callable[..., Any]], Op]:
    """Make ``torch.ops.polyfield.<name>`` of a function whose signature says what it takes and returns.

    mutates: names of parameters that it changes in place.
    """
    return lambda run: Op(name, run, tuple(mutates))
