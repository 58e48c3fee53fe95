"""What can be known to go wrong before poses are computed: blur, no overlap, too few matches, no parallax.

Parallax: a camera that only turned sees the world through x' ~ K R K^-1 x, whatever is in it. A rotation is fitted to
the bearings of each pair's matches (Kabsch 1976), for the focal length and radial distortion that suit all pairs best
(k of x / (1 + k x^2), Fitzgibbon 2001); where it explains them to a pixel or two, there is nothing to triangulate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..scene import SceneError
from .features import Features
from .matching import Pair

FEW_FEATURES = 60  # key points below which a photograph is of little use
BLURRED = 0.55  # of ``sharpness.blur``: photographs that are sharp lie at 0.2 to 0.4, shaken ones above 0.6
FEW_MATCHES = 30  # that the best pair must have
STILL = 0.0015  # of the longer side: what a rotation may leave unexplained where the camera only turned
PAIRS, MATCHES = 60, 200  # looked at for parallax
FOCALS = np.geomspace(0.4, 4, 24)  # of the longer side, where EXIF says nothing
LENSES = np.linspace(-0.3, 0.1, 9)  # k, of a radius of the longer side

SHARPER = "they are blurred: hold the camera still while it takes one, or use a shorter exposure"
TEXTURE = "they show little texture, or are small: photograph what has patterns, in more light, at full size"
OVERLAP = "walk around one thing and let neighbours share two thirds of what they show"
MORE = "take more photographs between these, of something with more texture, without changes of light or motion"


def check_features(source: Path, features: Sequence[Features]) -> list[str]:
    """Warnings about blurred photographs. Raises SceneError if most of them show nothing to match."""
    if len(features) < 2:
        raise SceneError(
            f"{source}: expected two photographs or more that can be read, got {len(features)}; copy them again"
        )
    poor = [f for f in features if len(f) < FEW_FEATURES]
    blurred = [f for f in features if f.blur > BLURRED]
    if len(poor) * 2 > len(features):
        counts = sorted(len(f) for f in features)
        raise SceneError(
            f"{source}: expected photographs with {FEW_FEATURES} key points or more, got {counts[len(counts) // 2]} in "
            f"the middle one of {len(features)}; {_why(features)}"
        )
    notes = []
    if blurred:
        notes.append(f"{len(blurred)} photographs are blurred: {_names(blurred)}; poses and scene gain without them")
    weak = [f for f in poor if f not in blurred]
    if weak:
        notes.append(f"{len(weak)} photographs have fewer than {FEW_FEATURES} key points: {_names(weak)}")
    return notes


def check_overlap(source: Path, features: Sequence[Features], pairs: Sequence[Pair], compared: int) -> list[str]:
    """Warnings about photographs that overlap with none of the others. Raises SceneError if no pair is good enough."""
    if not pairs:
        raise SceneError(
            f"{source}: expected photographs that overlap, found nothing in common in {compared} pairs of "
            f"{len(features)}; {_why(features, OVERLAP)}"
        )
    best = max(len(p.matches) for p in pairs)
    if best < FEW_MATCHES:
        raise SceneError(
            f"{source}: expected pairs of photographs with {FEW_MATCHES} matches or more, got {best} at most; "
            f"{_why(features, MORE)}"
        )
    largest, *others = components(len(features), pairs)
    if not others:
        return []
    alone = [features[i] for group in others for i in group]
    return [
        f"{len(alone)} of {len(features)} photographs overlap with none of the other {len(largest)}: {_names(alone)}"
    ]


def components(count: int, pairs: Sequence[Pair]) -> list[list[int]]:
    """Groups of photographs that overlap from one to the next, the largest first."""
    import scipy.sparse.csgraph

    i, j = np.array([p.i for p in pairs]), np.array([p.j for p in pairs])
    graph = scipy.sparse.coo_matrix((np.ones(len(pairs)), (i, j)), shape=(count, count))
    number, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    groups = [np.flatnonzero(labels == k).tolist() for k in range(number)]
    return sorted(groups, key=lambda g: (-len(g), g))


def check_parallax(source: Path, features: Sequence[Features], pairs: Sequence[Pair]) -> None:
    """Raises SceneError if the camera only turned, or stood still."""
    longest = sorted(pairs, key=lambda p: -_motion(features, p) * min(len(p.matches), MATCHES))[:PAIRS]
    if max(_motion(features, p) for p in longest) < 2 * STILL:
        raise SceneError(
            f"{source}: expected photographs from several places, got the same view {len(features)} times; walk around "
            "the scene"
        )
    if float(np.median(unexplained(features, longest))) < STILL:
        raise SceneError(
            f"{source}: expected photographs from several places, got a camera that only turned: without steps to the "
            "side there is no depth to be found; walk around the scene, a step between one photograph and the next"
        )


def unexplained(features: Sequence[Features], pairs: Sequence[Pair]) -> np.ndarray:
    """(P,) what the best rotation leaves of each pair's matches, median, in longer sides of the image.

    Focal length and distortion are those, common to all pairs, that make the median over pairs smallest.
    """
    stated = [features[i].taken for p in pairs for i in (p.i, p.j)]
    known = [t.focal / max(t.width, t.height) for t in stated if t.focal is not None]
    focals = np.mean(known) * np.linspace(0.85, 1.15, 7) if len(known) == len(stated) else FOCALS
    sides = [_sides(features, p) for p in pairs]
    best = np.full(len(pairs), np.inf)
    for focal in focals:
        for k in LENSES:
            left = np.array([_after_turning(a, b, focal, k) for a, b in sides])
            if np.median(left) < np.median(best):
                best = left
    return best


def _sides(features: Sequence[Features], pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Up to MATCHES matches, (M, 2) each, from the image's centre in longer sides."""
    some = pair.matches[:: -(-len(pair.matches) // MATCHES)]
    found = []
    for index, column in ((pair.i, 0), (pair.j, 1)):
        taken = features[index].taken
        size = np.array([taken.width, taken.height])
        found.append((features[index].pixels[some[:, column], :2] - size / 2) / size.max())
    return found[0].astype(np.float64), found[1].astype(np.float64)


def _motion(features: Sequence[Features], pair: Pair) -> float:
    """Median distance between matches in the two images, in longer sides."""
    a, b = _sides(features, pair)
    return float(np.median(np.linalg.norm(a - b, axis=1)))


def _after_turning(a: np.ndarray, b: np.ndarray, focal: float, k: float) -> float:
    """Median distance between ``b`` and ``a`` turned by the rotation that suits them best."""
    there, here = _bearings(a, focal, k), _bearings(b, focal, k)
    u, _, vt = np.linalg.svd(here.T @ there)
    turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    return float(np.median(np.linalg.norm(there @ turn.T - here, axis=1))) * focal


def _bearings(x: np.ndarray, focal: float, k: float) -> np.ndarray:
    """(M, 3) unit directions of image points (M, 2)."""
    straight = x / (1 + k * (x * x).sum(1, keepdims=True)) / focal
    rays = np.concatenate([straight, np.ones((len(x), 1))], 1)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _why(features: Sequence[Features], otherwise: str = TEXTURE) -> str:
    """What to do about photographs that show too little in common."""
    blurred = sum(f.blur > BLURRED for f in features)
    return SHARPER if blurred * 2 > len(features) else otherwise


def _names(features: Sequence[Features]) -> str:
    shown = ", ".join(f.name for f in features[:8])
    return shown + (f" and {len(features) - 8} more" if len(features) > 8 else "")
