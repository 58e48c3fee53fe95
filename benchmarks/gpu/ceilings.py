"""What the other rows are held against: this GPU's copy bandwidth, within its L2 cache too, and its matrix rate."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..measure import Row, copy_rate, matrix_rate


def run(device: str) -> Iterator[Row]:
    yield Row("copy, 2 GiB, read + written", None, copy_rate() / 1e9, "GB/s", "torch")
    yield Row("copy, 8 MiB in the L2 cache, read + written", None, copy_rate(8) / 1e9, "GB/s", "torch")
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        yield Row(f"matrix product 8192^3, {name}", None, matrix_rate(dtype) / 1e12, "TFLOP/s", "torch")
