"""Networks 64 wide on 2^20 samples, in bfloat16, against torch's layers and tiny-cuda-nn's fused ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.cuda.mlp import mlp
from torch.nn import functional

from ..measure import Row, absent, gpu_row, gpu_seconds, peer

SAMPLES, SETS = 1 << 20, 3
SIZES = (32, 64, 64, 16)
NAME = f"mlp {'-'.join(map(str, SIZES))}, bfloat16"


def layers(x, weights, **_):
    """The same by torch, all of it in bfloat16."""
    for number, weight in enumerate(weights):
        x = functional.linear(x.relu() if number else x.bfloat16(), weight.bfloat16())
    return x.float()


def run(device: str) -> Iterator[Row]:
    weights = [torch.randn(o, i, device=device) / i**0.5 for i, o in zip(SIZES[:-1], SIZES[1:], strict=True)]
    weights = [w.requires_grad_() for w in weights]
    inputs = [torch.randn(SAMPLES, SIZES[0], device=device, requires_grad=True) for _ in range(SETS)]
    upstream = torch.randn(SAMPLES, SIZES[-1], device=device)
    operations = 2 * SAMPLES * sum(w.numel() for w in weights)
    moved = inputs[0].nbytes + upstream.nbytes

    def forward(call):
        with torch.no_grad():
            return gpu_seconds([lambda x=x: call(x, weights, bfloat16=True) for x in inputs])

    def both(call):
        grads = lambda x: torch.autograd.grad(call(x, weights, bfloat16=True), (x, *weights), upstream)  # noqa: E731
        return gpu_seconds([lambda x=x: grads(x) for x in inputs])

    for what, measure, share in (("forward", forward, 1), ("forward + backward", both, 3)):
        ours, torchs = measure(mlp), measure(layers)
        row = dict(bytes=moved * (1 if share == 1 else 2), operations=share * operations)
        yield gpu_row(f"{NAME}, {what}", ours, SAMPLES, "ns/sample", **row)
        yield Row(f"{NAME}, {what}, vs torch", torchs / ours, torchs / SAMPLES * 1e9, "ns/sample", "its layers", "10x")
        yield _peer(f"{NAME}, {what}", inputs, None if share == 1 else upstream, ours)


def _peer(name: str, inputs: list[torch.Tensor], upstream: torch.Tensor | None, ours: float) -> Row:
    """tiny-cuda-nn's network of this shape, forward alone without ``upstream``."""
    if (tcnn := peer("tinycudann")) is None:
        return absent(name, "tinycudann", "ns/sample")
    kind = {"otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None", "n_neurons": 64}
    network = tcnn.Network(SIZES[0], SIZES[-1], {**kind, "n_hidden_layers": len(SIZES) - 2}).to(inputs[0].device)

    def call(x):
        if upstream is None:
            with torch.no_grad():
                network(x)
        else:
            torch.autograd.grad(network(x).float(), (x, *network.parameters()), upstream)

    time = gpu_seconds([lambda x=x: call(x) for x in inputs])
    return Row(f"{name}: tinycudann", time / ours, time / SAMPLES * 1e9, "ns/sample", "ours", "1x")
