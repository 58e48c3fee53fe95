"""Compositing of packed rays: forward + backward, against the torch reference."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.cuda.compositing import composite

from tests.reference import composite as reference

from ..measure import Row, seconds
from ..scenes import generator

RAYS, SAMPLES = 4096, 32


def run(device: str) -> Iterator[Row]:
    g = generator()
    alphas = (torch.rand(RAYS * SAMPLES, generator=g) * 0.2).requires_grad_()
    colors = torch.rand(RAYS * SAMPLES, 3, generator=g).requires_grad_()
    offsets = (torch.arange(RAYS + 1) * SAMPLES).int()
    upstream = torch.randn(RAYS, 3, generator=g)

    def both(call):
        alphas.grad = colors.grad = None
        _, _, (out,) = call(alphas, [colors], offsets)
        out.backward(upstream)

    # One after the other: the reference walks ray by ray in Python and would leave our caches and threads cold.
    theirs = seconds(lambda: both(reference.composite))
    ours = seconds(lambda: both(composite))
    yield Row(
        "composite 32 samples per ray, forward + backward",
        theirs / ours,
        ours / len(alphas) * 1e9,
        "ns/sample",
        "torch reference",
        "1.5 ns",
    )
