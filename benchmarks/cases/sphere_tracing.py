"""Pictures of a hash-grid distance by sphere tracing, against marching the same rays in even steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.signed_distance import SignedDistance, SignedDistanceConfig
from polyfield.geometry import Aabb, Camera, Rays, transforms
from polyfield.geometry.rays import clip_to_box
from polyfield.renderers.sphere_tracing import SphereTracer, TraceConfig

from ..measure import Row, pair

SIDE = 200  # pixels
STEPS = 256  # of the even march, along the box's diagonal


def run(device: str) -> Iterator[Row]:
    grid = HashGridConfig(levels=8, features=4, log2_size=17)
    field = SignedDistanceConfig(grid=grid, color=None).build(Aabb.cube())  # a sphere, as it begins
    pose = transforms.orbit(torch.zeros(3), 3.0, 1, 0.3, torch.tensor([0.0, 0.0, 1.0]))[0]
    rays = Camera.perspective(SIDE, SIDE, 0.6, pose).rays()
    for relaxation in (1.0, 1.4):
        tracer = SphereTracer(TraceConfig(relaxation=relaxation))
        ours, theirs = pair(lambda t=tracer: t.trace(field, rays), lambda: even_steps(field, rays), budget=4.0, least=3)
        name = f"sphere tracing, hash grid L8 F4 T2^17, relaxation {relaxation}"
        yield Row(name, theirs / ours, ours / len(rays) * 1e9, "ns/ray", f"{STEPS} even steps, first change of sign")


@torch.no_grad()
def even_steps(field: SignedDistance, rays: Rays) -> torch.Tensor:
    """(R,) where the distance changes its sign first; infinite where it does not."""
    rays = clip_to_box(rays, field.bounds)
    share = (torch.arange(STEPS) + 0.5) / STEPS
    t = rays.near[:, None] + share * (rays.far - rays.near).clamp(min=0)[:, None]
    met = torch.full_like(rays.near, torch.inf)
    for index in torch.arange(len(rays)).split(4096):
        part = rays[index]
        points = part.origins[:, None] + part.directions[:, None] * t[index][..., None]
        inside = field.distance(points.view(-1, 3)).view(len(index), STEPS) < 0
        first = inside.int().argmax(1)
        met[index] = torch.where(inside.any(1), t[index].gather(1, first[:, None])[:, 0], torch.inf)
    return met
