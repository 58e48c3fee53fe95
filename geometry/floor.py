"""The floor that photographs show: the plane on which they agree best.

A pixel that looks down meets a plane in a point, and other photographs have pixels of the same point: over all pixels
of two photographs their brightnesses correlate if the plane is right, whatever the exposures. Planes are tried by
height and tilt, first coarsely, then finely.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .cameras import Camera
from .sampling import sampled
from .types import Rays

LEAST = 30  # pixels that two photographs must share
LEAST_CORRELATION = 0.3
# finer and finer: heights as powers of a ratio, tilts in degrees; the finer ones go on while they find better
NEXT = range(-1, 2)
SEARCH = ((1.1, 2.5, range(-5, 7)), (1.05, 1.2, NEXT), (1.02, 0.5, NEXT), (1.007, 0.2, NEXT))
REPEATS = 4


@dataclass(frozen=True)
class Plane:
    """normal . x = height; the normal is a unit vector (3,)."""

    normal: Tensor
    height: float

    def distances(self, rays: Rays) -> Tensor:
        """(R,) along rays that fall towards the plane from above it; infinite along others."""
        falling = -(rays.directions @ self.normal)
        t = (rays.origins @ self.normal - self.height) / falling.clamp(min=1e-6)
        return torch.where((falling > 1e-3) & (t > 0), t, math.inf)


@dataclass(frozen=True)
class FloorView:
    """Pixels (N, 2) of a photograph that may show the floor, and its brightness (H, W)."""

    camera: Camera
    image: Tensor
    pixels: Tensor


@torch.no_grad()
def find_floor(views: Sequence[FloorView], guess: Plane, eye_height: float) -> Plane:
    """The plane near ``guess`` on which views agree best; ``guess`` itself where they have nothing to say.

    Heights from 0.6 to 1.8 times ``eye_height`` (that of the cameras above the guess) and tilts of some 4 degrees about
    two axes are tried. Views that follow each other are compared.
    """
    rays = [v.camera.rays(v.pixels) for v in views]
    own = [_sample(v.image, v.camera, v.pixels) for v in views]
    eyes = torch.stack([v.camera.position for v in views])
    below = eyes.mean(0)
    across = functional.normalize(torch.linalg.cross(guess.normal, guess.normal.roll(1)), dim=0)
    along = torch.linalg.cross(guess.normal, across)

    def plane(growth: float, a: float, b: float) -> Plane:
        normal = functional.normalize(guess.normal + math.tan(a) * across + math.tan(b) * along, dim=0)
        return Plane(normal, float(below @ normal) - eye_height * growth)

    def score(candidate: Plane) -> float:
        found = []
        for i in range(len(views)):
            t = candidate.distances(rays[i])
            points = rays[i].origins + rays[i].directions * t.clamp(max=1e6)[:, None]
            for j in (i - 1, i + 1):
                if not 0 <= j < len(views):
                    continue
                theirs = _sample(views[j].image, views[j].camera, views[j].camera.project(points)[0])
                both = ~theirs.isnan() & t.isfinite()
                if int(both.sum()) >= LEAST:
                    found.append(float(torch.corrcoef(torch.stack([own[i][both], theirs[both]]))[0, 1]))
        known = [f for f in found if math.isfinite(f)]
        return sum(known) / len(known) if known else -1.0

    best, most = (1.0, 0.0, 0.0), score(plane(1.0, 0.0, 0.0))
    for ratio, degrees, heights in SEARCH:
        tilt = math.radians(degrees)
        for _ in range(REPEATS):
            center = best
            for k, a, b in itertools.product(heights, (-1, 0, 1), (-1, 0, 1)):
                candidate = (center[0] * ratio**k, center[1] + a * tilt, center[2] + b * tilt)
                if (found := score(plane(*candidate))) > most:
                    best, most = candidate, found
            if best == center or len(heights) > 3:
                break
    return plane(*best) if most > LEAST_CORRELATION else guess


def _sample(image: Tensor, camera: Camera, pixels: Tensor) -> Tensor:
    """The brightness (N,) at pixel positions (N, 2); NaN outside."""
    size = pixels.new_tensor([camera.width, camera.height])
    inside = ((pixels >= 0) & (pixels <= size)).all(-1)
    places = torch.where(inside[:, None], pixels / size * 2 - 1, 0.0).to(image)
    return torch.where(inside, sampled(image[None], places)[:, 0], math.nan)
