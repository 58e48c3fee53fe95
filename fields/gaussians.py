"""A scene as 3D Gaussians (Kerbl et al. 2023): parameters of ``geometry.Gaussians``, as a module.

Their number changes while fitting (``density_control.py``); a checkpoint of any number loads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..geometry.gaussians import Gaussians
from ..geometry.types import Aabb

NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh")


class GaussianField(nn.Module):
    """Gaussians in the scene's frame; ``bounds`` is what may hold content."""

    means: nn.Parameter
    quats: nn.Parameter
    log_scales: nn.Parameter
    logit_opacities: nn.Parameter
    sh: nn.Parameter

    def __init__(self, gaussians: Gaussians, bounds: Aabb) -> None:
        super().__init__()
        for name in NAMES:
            self.register_parameter(name, nn.Parameter(getattr(gaussians, name).detach().clone().contiguous()))
        self.register_buffer("bounds_low", bounds.low.clone())
        self.register_buffer("bounds_high", bounds.high.clone())

    @property
    def bounds(self) -> Aabb:
        return Aabb(self.bounds_low, self.bounds_high)

    def __len__(self) -> int:
        return self.means.shape[0]

    def gaussians(self) -> Gaussians:
        """The parameters themselves."""
        return Gaussians(*(getattr(self, name) for name in NAMES))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in NAMES:
            stored: Tensor | None = state_dict.get(prefix + name)
            parameter = getattr(self, name)
            if stored is not None and stored.shape[1:] == parameter.shape[1:] and len(stored) != len(parameter):
                parameter.data = parameter.data.new_empty(stored.shape)
                parameter.grad = None if parameter.grad is None else torch.zeros_like(parameter)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
