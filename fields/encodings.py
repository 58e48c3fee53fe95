"""Encodings: modules whose ``forward`` turns points in the unit cube into features. What each promises is ``Encoding``.

``HashGrid``: multiresolution hash tables (Müller et al., "Instant Neural Graphics Primitives", 2022).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..cuda.hash_encoding import HashLayout, hash_encode, hash_encode_with_gradient
from ..cuda.hash_slopes import hash_slopes
from ..cuda.memory import prefer_large_pages


@dataclass(frozen=True)
class HashGridConfig:
    """Size of the tables. Four features on eight levels cost half of two on sixteen, for nearly the same quality."""

    levels: int = 16
    features: int = 2
    """Per level: 1, 2, 4 or 8."""
    log2_size: int = 19
    """Entries per level, at most 2 to this power."""
    base_resolution: int = 16
    finest_resolution: int = 2048
    """Cells along an edge of the whole bounds at the last level."""
    half: bool = False
    """Read a bfloat16 copy of the table: faster once the table outgrows the cache."""

    def build(self) -> HashGrid:
        return HashGrid(self)


class Encoding(nn.Module, ABC):
    """points (N, 3) in [0, 1] -> (N, out_channels).

    Differentiable in points and parameters; so are derivatives by the points, which are results of their own: a loss on
    them needs no double backward. All parameters are the optimizer's sparse group.
    """

    out_channels: int
    resolutions: tuple[int, ...]  # cells along an edge of the bounds, coarse to fine: what finite differences go by

    def group(self) -> dict[str, Any]:
        """What ``polyfield.fields.optimizer.Adam`` has to know of the parameters."""
        return {"params": list(self.parameters()), "sparse": True}

    def refresh(self) -> None:
        """After parameters were written by anything but the optimizer that knows of them."""

    @abstractmethod
    def forward(self, points: Tensor) -> Tensor:
        """Features (N, C)."""

    @abstractmethod
    def with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C) and their derivatives (N, C, 3) by the points."""

    def slopes(self, points: Tensor, slopes: Tensor) -> Tensor:
        """How what changes with the features by ``slopes`` (N, C) changes with points (N, 3); these get no gradient."""
        return contract(slopes, self.with_gradient(points)[1])


def others(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a field that are not its encoding's."""
    own = {id(p) for p in model.encoding.parameters()}  # type: ignore[union-attr]
    return [p for p in model.parameters() if id(p) not in own]


class _Contract(torch.autograd.Function):
    """What torch's own does backward takes four times as long."""

    @staticmethod
    def forward(ctx, slopes, jacobian):
        ctx.save_for_backward(slopes, jacobian)
        return torch.bmm(slopes[:, None], jacobian)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        slopes, jacobian = ctx.saved_tensors
        return torch.bmm(jacobian, grad[:, :, None])[:, :, 0], slopes[:, :, None] * grad[:, None]


def contract(slopes: Tensor, jacobian: Tensor) -> Tensor:
    """slopes (N, C), jacobian (N, C, D) -> (N, D): their sum over channels. Differentiable (once) in both."""
    return _Contract.apply(slopes, jacobian)


class HashGrid(Encoding):
    """points (N, 3) in [0, 1] -> (N, levels * features). Constant outside of the unit cube.

    The table's gradient is accumulated in ``table.grad`` in place: an optimizer that keeps that buffer
    (``polyfield.fields.optimizer.Adam`` with a sparse group) saves the allocation of the whole table per step.
    """

    half_table: Tensor | None

    def __init__(self, config: HashGridConfig) -> None:
        super().__init__()
        self.layout = HashLayout.build(
            levels=config.levels,
            features=config.features,
            log2_size=config.log2_size,
            base_resolution=config.base_resolution,
            finest_resolution=config.finest_resolution,
        )
        self.out_channels, self.resolutions = self.layout.out_channels, self.layout.resolutions
        table = prefer_large_pages(torch.empty(self.layout.entries, config.features))
        self.table = nn.Parameter(table.uniform_(-1e-4, 1e-4))
        half = prefer_large_pages(table.to(torch.bfloat16)) if config.half else None
        self.register_buffer("half_table", half, persistent=False)

    def group(self) -> dict[str, Any]:
        """What ``polyfield.fields.optimizer.Adam`` has to know of the table: sparse, and with a half copy, if any."""
        return {"params": [self.table], "sparse": True, "half": [self.half_table]}

    def refresh(self) -> None:
        """Make the half copy anew, after the table was written by anything but the optimizer that knows of it."""
        if self.half_table is not None:
            self.half_table.copy_(self.table.detach())

    def forward(self, points: Tensor) -> Tensor:
        return hash_encode(points, self.table, self.layout, half=self.half_table, table_grad=self.table.grad)

    def with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C) and their derivatives (N, C, 3) by the points."""
        return hash_encode_with_gradient(points, self.table, self.layout, table_grad=self.table.grad)

    def slopes(self, points: Tensor, slopes: Tensor) -> Tensor:
        """How what changes with the features by ``slopes`` (N, C) changes with points (N, 3); these get no gradient."""
        options = dict(half=self.half_table, table_grad=self.table.grad)
        return hash_slopes(points, slopes, self.table, self.layout, **options)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()
