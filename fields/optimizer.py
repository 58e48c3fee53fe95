"""Adam for fields: sparse groups (hash tables) step only where a gradient arrived, dense ones (networks) as usual.

The gradient buffers of sparse groups exist from the start and stay: kernels add into them
(``table_grad=param.grad``), the step consumes them and leaves zeros, so that nothing of a table's size is allocated
or cleared between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..cuda.checks import check_dtype, check_range, check_shape
from ..cuda.memory import prefer_large_pages
from ..cuda.sparse_adam import sparse_adam_
from .sh_factors import ShFactors


def _zeros(param: Tensor) -> Tensor:
    return prefer_large_pages(torch.zeros_like(param, memory_format=torch.contiguous_format))


class Adam(torch.optim.Optimizer):
    """Adam with decoupled weight decay on float32 or float64 parameters.

    Args:
        params: parameters, or dicts of ``params`` with any of the options below.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the corrected second moment.
        weight_decay: the parameter shrinks by ``lr * weight_decay`` per step (AdamW); in sparse groups where touched.
        sparse: numbers whose gradient is zero keep parameter and moments, and the step sets the gradient to zero.
            ``param.grad`` is allocated here.
        column_rates (in a group's dict only): (C,) factors of ``lr`` for parameters of rows of C numbers, such as the
            colours of Gaussians, whose first band learns faster.
        half (in a group's dict only): for each parameter a bfloat16 or float16 tensor of its shape, or None. Kept a
            rounded copy of the parameter from now on. Not part of ``state_dict``.
        factors (in a group's dict only): for each parameter a ``ShFactors``, or None. They are stepped by in place of
            ``param.grad``, which is then not allocated. Not part of ``state_dict``.

    NaN and infinite gradients go into the parameters that they belong to, as in torch's optimizers: the loop that
    calls ``step`` looks at its loss first, and leaves the step out (``zero_grad`` then clears the buffers).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        sparse: bool = False,
    ) -> None:
        self._halves: dict[Tensor, Tensor] = {}
        self._factors: dict[Tensor, ShFactors] = {}
        self._clean: dict[Tensor, tuple[int, int]] = {}  # gradient buffers known to be zero: (address, version)
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, sparse=sparse))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_halves", {})
        self.__dict__.setdefault("_factors", {})
        self.__dict__.setdefault("_clean", {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with their own options; allocates the gradients of a sparse group.

        Raises ValueError for a negative learning rate or weight decay or betas outside [0, 1), TypeError for dtypes.
        """
        halves = param_group.get("half")
        apart = ("half", "factors")
        super().add_param_group({key: value for key, value in param_group.items() if key not in apart})
        group = self.param_groups[-1]
        check_range("Adam", "lr", float(group["lr"]), 0, float("inf"))
        check_range("Adam", "weight_decay", group["weight_decay"], 0, float("inf"))
        for name, beta in zip(("betas[0]", "betas[1]"), group["betas"], strict=True):
            check_range("Adam", name, beta, 0, 1 - 1e-9)
        factors = param_group.get("factors") or [None] * len(group["params"])
        self._factors |= {p: f for p, f in zip(group["params"], factors, strict=True) if f is not None}
        for param in group["params"]:
            check_dtype("Adam", "params", param, torch.float32, torch.float64)
            if group["sparse"] and param.grad is None and param not in self._factors:
                param.grad = _zeros(param)
                self._mark_clean(param)
        if halves is not None:
            if len(halves) != len(group["params"]):
                wanted, got = len(group["params"]), len(halves)
                raise ValueError(f"Adam: half: expected one tensor or None per parameter ({wanted}), got {got}")
            for param, half in zip(group["params"], halves, strict=True):
                self._attach_half(param, half)
            self.refresh_halves()

    def _attach_half(self, param: Tensor, half: Tensor | None) -> None:
        if half is not None:
            check_shape("Adam", "half", half, tuple(param.shape))
            check_dtype("Adam", "half", half, torch.bfloat16, torch.float16)
            check_dtype("Adam", "params", param, torch.float32)
            self._halves[param] = half

    @torch.no_grad()
    def refresh_halves(self) -> None:
        """Round all half copies anew: needed after others have changed the parameters (a checkpoint, say)."""
        for param, half in self._halves.items():
            half.copy_(param)

    @torch.no_grad()
    def step(self, closure=None):
        """One step on every parameter that has a gradient. Returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None or param in self._factors:
                    self._step_param(group, param, self.state[param])
        return loss

    def _step_param(self, group: dict[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        if not state:
            state["step"] = 0
            state["exp_avg"] = _zeros(param)
            state["exp_avg_sq"] = _zeros(param)
        state["step"] += 1
        (beta1, beta2), moments = group["betas"], (state["exp_avg"], state["exp_avg_sq"])
        numbers = dict(step=state["step"], lr=float(group["lr"]), beta1=beta1, beta2=beta2, eps=group["eps"])
        numbers["column_rates"] = group.get("column_rates")
        if param in self._factors:
            self._factors[param].step(param, *moments, **numbers)
            return
        assert param.grad is not None
        if not param.grad.is_contiguous():
            param.grad = param.grad.contiguous()
        half, dense = self._halves.get(param), not group["sparse"]
        decay = group["weight_decay"]
        sparse_adam_(param, param.grad, *moments, **numbers, weight_decay=decay, half=half, dense=dense)
        if group["sparse"]:
            self._mark_clean(param)

    def _mark_clean(self, param: Tensor) -> None:
        assert param.grad is not None
        self._clean[param] = (param.grad.data_ptr(), param.grad._version)

    @torch.no_grad()
    def replace(self, old: Tensor, new: Tensor, moments: Callable[[Tensor], Tensor]) -> None:
        """Step ``new`` in the place of ``old`` from now on; ``moments`` makes its moments of the old ones.

        Half copies are not carried over.
        """
        for group in self.param_groups:
            group["params"] = [new if param is old else param for param in group["params"]]
        state = self.state.pop(old, {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state:
                state[key] = moments(state[key])
        if state:
            self.state[new] = state
        self._halves.pop(old, None)
        self._clean.pop(old, None)
        if old in self._factors:
            self._factors[new] = self._factors.pop(old)
            self._factors[new].clear()
        if old.grad is not None:
            new.grad = _zeros(new)
            self._mark_clean(new)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients. Buffers of sparse groups stay; they are cleared only if written since the last step."""
        for group in self.param_groups:
            for param in group["params"]:
                if param in self._factors:
                    self._factors[param].clear()
                if param.grad is None:
                    continue
                if group["sparse"]:
                    if self._clean.get(param) != (param.grad.data_ptr(), param.grad._version):
                        param.grad = param.grad.detach().zero_()
                        self._mark_clean(param)
                elif set_to_none:
                    param.grad = None
                else:
                    param.grad = param.grad.detach().zero_()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict()`` was taken; half copies are rounded anew from the parameters."""
        super().load_state_dict(state_dict)
        self.refresh_halves()
