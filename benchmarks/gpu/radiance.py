"""The radiance field of a fit on 2^18 samples: one kernel, against the same field composed of its parts' kernels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.cuda import radiance_tensor
from polyfield.cuda.hash_encoding import HashLayout, hash_encode
from polyfield.cuda.mlp import mlp
from polyfield.cuda.radiance import radiance, radiance_density

from ..measure import Row, gpu_row, gpu_seconds
from ..scenes import points_along_rays

SAMPLES, SETS = 1 << 18, 4
DENSITY, COLOR = (32, 64, 16), (32, 64, 64, 3)
NAME = "radiance L8 F4 T2^17 half, bfloat16"


def run(device: str) -> Iterator[Row]:
    layout = HashLayout.build(levels=8, features=4, log2_size=17, finest_resolution=1024)
    table = torch.empty(layout.entries, 4, device=device).uniform_(-1, 1).requires_grad_()
    half, buffer = table.detach().half(), torch.zeros_like(table)
    density, color = (
        [(torch.randn(o, i, device=device) / i**0.5).requires_grad_() for i, o in zip(s[:-1], s[1:], strict=True)]
        for s in (DENSITY, COLOR)
    )
    points = [points_along_rays(SAMPLES // 64, 64, seed).to(device) for seed in range(SETS)]
    extras = torch.randn(SAMPLES, COLOR[0] - DENSITY[-1], device=device)
    upstream = torch.randn(SAMPLES, device=device), torch.randn(SAMPLES, 3, device=device)
    options = dict(half=half, table_grad=buffer)

    def fused(x):
        return radiance(x, extras, table, layout, density, color, bfloat16=True, **options)

    def composed(x):
        geometry = mlp(hash_encode(x, table, layout, **options), density, bfloat16=True)
        raw = mlp(torch.cat([extras, geometry], -1), color, bfloat16=True)
        return geometry[:, 0].clamp(max=15).exp(), torch.sigmoid(raw)

    def densities(x):
        return radiance_density(x, table, layout, density, half=half, bfloat16=True)

    def composed_densities(x):
        return mlp(hash_encode(x, table, layout, half=half), density, bfloat16=True)[:, 0].clamp(max=15).exp()

    def forward(call):
        with torch.no_grad():
            return gpu_seconds([lambda x=x: call(x) for x in points])

    def both(call):
        return gpu_seconds([lambda x=x: torch.autograd.backward(call(x), upstream) for x in points])

    assert radiance_tensor.fits(density, color)
    per_density, per_sample = (sum(w.numel() for w in weights) for weights in (density, [*density, *color]))
    given = points[0].nbytes + half.nbytes
    all_forward = given + extras.nbytes + 4 * SAMPLES * 4
    # Back again: what a sample has (extras, point, two colours and densities with gradients), its features in 16 bits
    # written and read and their gradient in 32, and the table's gradient.
    features = SAMPLES * DENSITY[0] * (2 * 2 + 2 * 4)
    all_both = all_forward + extras.nbytes + points[0].nbytes + 7 * 4 * SAMPLES + features + 2 * buffer.nbytes
    cases = (
        ("densities alone", forward, densities, composed_densities, given + 4 * SAMPLES, 2 * per_density),
        ("forward", forward, fused, composed, all_forward, 2 * per_sample),
        ("forward + backward", both, fused, composed, all_both, 8 * per_sample),  # computed again on the way back
    )
    for what, measure, ours, parts, moved, operations in cases:
        time = measure(ours)
        work = dict(bytes=moved, operations=operations * SAMPLES)
        yield gpu_row(f"{NAME}, {what}", time, SAMPLES, "ns/sample", **work)
        other = measure(parts)
        yield Row(f"{NAME}, {what}, vs parts", other / time, other / SAMPLES * 1e9, "ns/sample", "a kernel for each")
