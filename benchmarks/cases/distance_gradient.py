"""Signed distances with their gradients and an Eikonal term, against autograd's double backward through torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.optimizer import Adam
from polyfield.fields.signed_distance import SignedDistanceConfig
from polyfield.geometry import Aabb
from torch.nn import functional

from tests.reference import hash_encode as reference

from ..measure import Row, blocks, seconds
from ..scenes import points_along_rays

POINTS = 65536


def run(device: str) -> Iterator[Row]:
    field = SignedDistanceConfig(grid=HashGridConfig(levels=16, features=2, log2_size=19), color=None).build(
        Aabb.cube()
    )
    points = 2 * points_along_rays(POINTS // 64, 64) - 1
    Adam([field.encoding.group(), {"params": list(field.network.parameters())}])  # gives the table its buffer

    def loss(values, gradients):
        return values.abs().mean() + (gradients.norm(dim=1) - 1).square().mean()

    def forward():
        with torch.no_grad():
            field.query(points, gradients=True)

    def both():
        for parameter in field.network.parameters():
            parameter.grad = None
        output = field.query(points, gradients=True)
        loss(output.values, output.gradients).backward()

    def slow():
        table = field.encoding.table.detach().requires_grad_()
        at = points.clone().requires_grad_()
        unit = field.bounds.normalize(at)
        x = torch.cat([reference.hash_encode(unit, table, field.encoding.layout), 2 * unit - 1], -1)
        (first, last), (shift, end) = field.network.weights, field.network.biases
        values = at.norm(dim=1) - 0.5 + functional.linear(functional.linear(x, first, shift).relu(), last, end)[:, 0]
        (gradients,) = torch.autograd.grad(values.sum(), at, create_graph=True)
        loss(values, gradients).backward()

    name = "signed distance, L16 F2 T2^19, value + gradient"
    yield Row(f"{name}, forward", None, seconds(forward) / POINTS * 1e9, "ns/point", "")
    ours, theirs = blocks(both, slow)
    peer = "torch reference, double backward"
    yield Row(f"{name}, Eikonal, forward + backward", theirs / ours, ours / POINTS * 1e9, "ns/point", peer, "20x")
