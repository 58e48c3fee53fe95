"""No picture at all: the field asked at points, for fits to a shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..fields.protocols import Field
from ..geometry.types import Pixels, Points
from .protocols import Render


class PointRenderer(nn.Module):
    """``render`` asks a field at ``Points``; for its gradients too while ``gradients`` is set."""

    where: Tensor

    def __init__(self, *, gradients: bool = False) -> None:
        super().__init__()
        self.gradients = gradients
        self.generator = torch.Generator()
        self.register_buffer("where", torch.zeros(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self.where.device

    def render(self, field: Field, view: Points) -> Render:
        """What the field says at the points."""
        return Render(Pixels(), output=field.query(view.positions, gradients=self.gradients))
