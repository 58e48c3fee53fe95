"""Hash encoding of 2^20 samples along rays: 16 levels, 2 features, tables of 2^19 read in half precision."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.cuda.hash_encoding import HashLayout, hash_encode

from ..measure import Row, absent, gpu_row, gpu_seconds, peer
from ..scenes import points_along_rays

POINTS, SETS = 1 << 20, 4
NAME = "hash_encode L16 F2 T2^19 half"


def run(device: str) -> Iterator[Row]:
    layout = HashLayout.build(levels=16, features=2, log2_size=19)
    table = torch.empty(layout.entries, 2, device=device).uniform_(-1, 1).requires_grad_()
    half, buffer = table.detach().half(), torch.zeros_like(table)
    points = [points_along_rays(POINTS // 64, 64, seed).to(device) for seed in range(SETS)]
    upstream = torch.randn(POINTS, layout.out_channels, device=device)
    moved = points[0].nbytes + upstream.nbytes

    @torch.no_grad()
    def forward(x):
        hash_encode(x, table, layout, half=half)

    def both(x):
        hash_encode(x, table, layout, half=half, table_grad=buffer).backward(upstream)

    ours = gpu_seconds([lambda x=x: forward(x) for x in points])
    yield gpu_row(f"{NAME}, forward", ours, POINTS, "ns/sample", bytes=moved + half.nbytes, aim="tiny-cuda-nn")
    trained = gpu_seconds([lambda x=x: both(x) for x in points])
    passed = 2 * (moved + half.nbytes) + 2 * buffer.nbytes
    yield gpu_row(f"{NAME}, forward + backward", trained, POINTS, "ns/sample", bytes=passed)
    if (tcnn := peer("tinycudann")) is None:
        yield absent(NAME, "tinycudann", "ns/sample")
        return
    settings = {"otype": "HashGrid", "n_levels": 16, "n_features_per_level": 2, "log2_hashmap_size": 19}
    growth = 2048 ** (1 / 15) / 16 ** (1 / 15)
    theirs = tcnn.Encoding(3, {**settings, "base_resolution": 16, "per_level_scale": growth}).to(device)
    with torch.no_grad():
        time = gpu_seconds([lambda x=x: theirs(x) for x in points])
    yield Row(f"{NAME}, forward: tinycudann", time / ours, time / POINTS * 1e9, "ns/sample", "ours", "1x")
