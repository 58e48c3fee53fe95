"""Appearance codes: for each photograph a few numbers, of which a small network makes an affine map of colours.

    c' = A(z) [c, 1],   A(z) = [I 0] + W2 tanh(W1 z)   (3 x 4; no biases, so that the code 0 changes nothing)

Codes are learned with the scene (GLO; Bojanowski et al. 2018), the map is Urban Radiance Fields' (Rematas et al. 2022,
eq. 4). They take out weather, time of day and processing, which differ from photograph to photograph in a few ways,
where a gain is too stiff and a bilateral grid too free. The mean code is 0: the scene keeps its colours. What was
held out is compared as in NeRF-W (Martin-Brualla et al. 2021): the left half fits a code, the right half counts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..geometry import Camera, Rays

SIZE, HIDDEN = 8, 32  # numbers of a code, width of the network
LEARNING_RATE, DECAY = 2e-3, 1e-4
FIT_STEPS, FIT_RATE = 60, 0.05  # of a code to half a photograph


class AppearanceCodes(nn.Module):
    """colours (R, 3) of images (R,) -> colours (R, 3); or those of one image, (H, W, 3), and its number ()."""

    def __init__(self, images: int, size: int = SIZE, hidden: int = HIDDEN) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(images)
        self.codes = nn.Parameter(0.1 * torch.randn(images, size, generator=generator))
        self.into = nn.Parameter(torch.randn(size, hidden, generator=generator) / size**0.5)
        self.out = nn.Parameter(torch.zeros(hidden, 12))

    def forward(self, colors: Tensor, images: Tensor, view: Camera | Rays | None = None) -> Tensor:
        return self.apply_code(colors, (self.codes - self.codes.mean(0))[images])

    def apply_code(self, colors: Tensor, codes: Tensor) -> Tensor:
        """colours (..., 3) under codes (..., size), which broadcast."""
        maps = (torch.tanh(codes @ self.into) @ self.out).unflatten(-1, (3, 4))
        return colors + (maps[..., :3] * colors[..., None, :]).sum(-1) + maps[..., 3]

    def fitted(self, colors: Tensor, target: Tensor) -> Tensor:
        """(size,) the code under which colours (N, 3) come nearest to target (N, 3)."""
        code = torch.zeros(self.codes.shape[1], device=colors.device, requires_grad=True)
        optimizer = torch.optim.Adam([code], FIT_RATE)
        with torch.enable_grad():
            for _ in range(FIT_STEPS):
                optimizer.zero_grad()
                loss = (self.apply_code(colors.detach(), code) - target).square().mean()
                (loss + DECAY * code.square().mean()).backward()
                optimizer.step()
        return code.detach()
