"""Fused networks against the processor's multiply-add peak, torch's layers, and bfloat16 against float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.cuda import native
from polyfield.cuda.mlp import mlp

from tests.reference import mlp as reference

from ..measure import Row, blocks, fma_peak, seconds

SAMPLES = 65536
NETS = {"32-64-16": (32, 64, 16), "32-64-64-3": (32, 64, 64, 3)}


def run(device: str) -> Iterator[Row]:
    peak = fma_peak()
    yield Row("float32 multiply-add peak", None, peak / 1e9, "GFLOP/s", "")
    for name, sizes in NETS.items():
        weights = [(torch.randn(o, i) / i**0.5).requires_grad_() for i, o in zip(sizes[:-1], sizes[1:], strict=True)]
        inputs = torch.randn(SAMPLES, sizes[0]).requires_grad_()
        upstream = torch.randn(SAMPLES, sizes[-1])
        operations = 2 * SAMPLES * sum(w.numel() for w in weights)

        def forward(weights=weights, inputs=inputs):
            with torch.no_grad():
                mlp(inputs, weights)

        def both(call=mlp, weights=weights, inputs=inputs, upstream=upstream, **options):
            for tensor in (inputs, *weights):
                tensor.grad = None
            call(inputs, weights, **options).backward(upstream)

        for label, call, work, aim in (("forward", forward, 1, "0.80x"), ("forward + backward", both, 3, "0.65x")):
            time = seconds(call)
            share = work * operations / time / peak
            yield Row(f"mlp {name}, {label}", share, time / SAMPLES * 1e9, "ns/sample", "of the peak", aim)
        ours, torchs = blocks(both, lambda both=both: both(reference.mlp))
        yield Row(
            f"mlp {name}, forward + backward, vs torch",
            torchs / ours,
            ours / SAMPLES * 1e9,
            "ns/sample",
            "torch reference",
        )
        if native.has_bfloat16():
            half, full = blocks(lambda both=both: both(bfloat16=True), both)
            yield Row(
                f"mlp {name} bfloat16, forward + backward",
                full / half,
                half / SAMPLES * 1e9,
                "ns/sample",
                "our float32",
                "1.6x",
            )
