"""Marching cubes cell by cell with a dictionary of edges, in plain Python: the definition, given the table of cases."""

from __future__ import annotations

import itertools

import torch
from polyfield.cuda import marching_cubes_table as table
from torch import Tensor


def marching_cubes(values: Tensor, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """values (X, Y, Z) -> vertices (V, 3), faces (F, 3), vertices in order of first use."""
    numbers: dict[tuple, int] = {}
    vertices, faces = [], []
    for origin in itertools.product(*(range(n - 1) for n in values.shape)):
        corners = [tuple(o + (c >> s & 1) for o, s in zip(origin, (2, 1, 0), strict=True)) for c in range(8)]
        case = sum(1 << c for c in range(8) if values[corners[c]] > level)
        for triangle in table.triangles()[case]:
            face = []
            for edge in triangle:
                low, high = (corners[c] for c in table.edge_corners(edge))
                if (low, high) not in numbers:
                    numbers[low, high] = len(vertices)
                    t = (level - values[low]) / (values[high] - values[low])
                    vertices.append(torch.tensor(low) + t * (torch.tensor(high) - torch.tensor(low)))
                face.append(numbers[low, high])
            faces.append(face)
    if not faces:
        return values.new_empty(0, 3), torch.empty(0, 3, dtype=torch.int32)
    return torch.stack(vertices).to(values), torch.tensor(faces, dtype=torch.int32)


def canonical(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """The same mesh with vertices in order of position and triangles rotated and sorted: equal meshes become equal."""
    order = sorted(range(len(vertices)), key=lambda i: vertices[i].tolist())
    rank = torch.empty(len(vertices), dtype=torch.int64)
    rank[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(vertices))
    rotated = []
    for a, b, c in rank[faces.long()].tolist():
        rotated.append(min((a, b, c), (b, c, a), (c, a, b)))
    return vertices[torch.tensor(order, dtype=torch.int64)], torch.tensor(sorted(rotated)).reshape(-1, 3)
