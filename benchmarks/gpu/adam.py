"""Adam on the tables of a hash encoding (16 x 2^19 x 2), gradients in a tenth of them, against torch's fused one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.cuda.sparse_adam import sparse_adam_

from ..measure import Row, gpu_row, gpu_seconds

COUNT, TOUCHED = 16 << 20, 0.1


def run(device: str) -> Iterator[Row]:
    param, m, v = torch.randn(3, COUNT, device=device)
    half, v = param.half(), v.square()
    entries = torch.rand(COUNT // 2, device=device) < TOUCHED
    gradient = torch.randn(COUNT, device=device) * entries.repeat_interleave(2)
    grad = gradient.clone()

    def refill():
        grad.copy_(gradient)  # our step clears it

    def step():
        refill()
        sparse_adam_(param, grad, m, v, step=100, lr=1e-6, half=half)

    time = gpu_seconds([step]) - gpu_seconds([refill])
    # The gradient is read; of what it touches, four are read, five written. Neighbours in a sector come along.
    moved = 4 * COUNT + TOUCHED * COUNT * (3 * 4 + 4 * 4 + 2)
    yield gpu_row("sparse Adam, 16.8M numbers, a tenth touched", time, COUNT, "ns/number", bytes=moved)
    other = torch.nn.Parameter(param.clone())
    other.grad = gradient
    optimizer = torch.optim.Adam([other], lr=1e-6, fused=True)
    optimizer.step()
    theirs = gpu_seconds([optimizer.step])
    yield Row("sparse Adam, vs torch", theirs / time, theirs / COUNT * 1e9, "ns/number", "torch's fused Adam, dense")
