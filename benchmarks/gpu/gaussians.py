"""A million Gaussians of 2 to 8 px and SH degree 3 at 1080p, forward and with backward, against gsplat.

Activations are timed on both sides: ours are part of the kernels, gsplat's are torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from polyfield.cuda.gaussians import render_gaussians

from ..measure import Row, absent, gpu_row, gpu_seconds, peer
from ..scenes import splats

COUNT, PICTURE, SETS = 1 << 20, (1920, 1080), 2
NAME = f"{COUNT / 1e6:.1f} M Gaussians at {PICTURE[0]}x{PICTURE[1]}"
AIMS = {"forward": 1.0, "forward + backward": 1.2}


def run(device: str) -> Iterator[Row]:
    width, height = PICTURE
    made = [splats(COUNT, width, height, seed=seed) for seed in range(SETS)]
    K, pose = (x.to(device) for x in made[0][1:])
    sets = [[x.to(device).requires_grad_() for x in gaussians] for gaussians, _, _ in made]
    upstream = torch.randn(height, width, 3, device=device)

    def ours(gaussians: list[torch.Tensor]) -> torch.Tensor:
        return render_gaussians(*gaussians, K, pose, width, height).colors

    once = sum(x.nbytes for x in sets[0])
    moved = {"forward": once + upstream.nbytes, "forward + backward": 2 * (once + upstream.nbytes)}
    own = times(ours, sets, upstream)
    for what, time in own.items():
        yield gpu_row(f"{NAME}, {what}", time, COUNT, "ns/Gaussian", bytes=moved[what], aim=f"{AIMS[what]:g}x gsplat")
    if (gsplat := peer("gsplat")) is None:
        yield absent(NAME, "gsplat", "ns/Gaussian")
        return

    def theirs(gaussians: list[torch.Tensor]) -> Any:
        means, quats, log_scales, logits, sh = gaussians
        scales, opacities = log_scales.exp(), logits.sigmoid()
        return gsplat.rasterization(
            means, quats, scales, opacities, sh, pose[None], K[None], width, height, sh_degree=3, packed=False
        )[0][0]

    for what, time in times(theirs, sets, upstream).items():
        ratio = f"{AIMS[what]:g}x"
        yield Row(f"{NAME}, {what}: gsplat", time / own[what], time / COUNT * 1e9, "ns/Gaussian", "ours", ratio)


def times(draw: Callable[[Any], Any], sets: list[list[torch.Tensor]], upstream: torch.Tensor) -> dict[str, float]:
    """Seconds of a picture, and of a picture and its gradients."""

    def forward(gaussians):
        with torch.no_grad():
            draw(gaussians)

    def both(gaussians):
        torch.autograd.grad(draw(gaussians), gaussians, upstream)

    calls = zip(AIMS, (forward, both), strict=True)
    return {what: gpu_seconds([lambda g=g, call=call: call(g) for g in sets]) for what, call in calls}
