"""Hash encoding against the torch reference: forward, and forward + backward to the table."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.cuda.hash_encoding import HashLayout, hash_encode
from polyfield.cuda.memory import prefer_large_pages

from tests.reference import hash_encode as reference

from ..measure import Row, pair, seconds
from ..scenes import points_along_rays

POINTS = 65536


def run(device: str) -> Iterator[Row]:
    points = points_along_rays(POINTS // 64, 64)
    for levels, features, log2_size, half in (
        (16, 2, 15, False),
        (16, 2, 17, False),
        (16, 2, 19, False),
        (16, 2, 19, True),
        (8, 4, 19, False),
    ):
        layout = HashLayout.build(levels=levels, features=features, log2_size=log2_size)
        table = prefer_large_pages(torch.empty(layout.entries, features)).uniform_(-1, 1).requires_grad_()
        copy = prefer_large_pages(table.detach().bfloat16()) if half else None
        buffer = prefer_large_pages(torch.zeros_like(table))
        upstream = torch.randn(POINTS, levels * features)

        def forward(table=table, layout=layout, copy=copy):
            with torch.no_grad():
                return hash_encode(points, table, layout, half=copy)

        def both(table=table, layout=layout, copy=copy, buffer=buffer, upstream=upstream):
            hash_encode(points, table, layout, half=copy, table_grad=buffer).backward(upstream)

        def slow(table=table, layout=layout, upstream=upstream):
            table.grad = None
            reference.hash_encode(points, table, layout).backward(upstream)

        name = f"hash_encode L{levels} F{features} T2^{log2_size}{' bf16 table' if half else ''}"
        yield Row(f"{name}, forward", None, seconds(forward) / POINTS * 1e9, "ns/point", "")
        if (levels, log2_size, half) == (16, 19, False):
            ours, theirs = pair(both, slow, budget=6)
            yield Row(
                f"{name}, forward + backward", theirs / ours, ours / POINTS * 1e9, "ns/point", "torch reference", "40x"
            )
        else:
            yield Row(f"{name}, forward + backward", None, seconds(both) / POINTS * 1e9, "ns/point", "")
