"""Small sets of Gaussians for the tests of their files, and how far each format may move them by its own rounding."""

import math

import torch
from polyfield.geometry import Gaussians
from polyfield.geometry.gaussian_differences import Differences
from polyfield.geometry.gaussians import SH_C0
from polyfield.geometry.morton import morton_order

SUFFIXES = [".ply", ".compressed.ply", ".splat", ".spz", ".sog", ".glb", ".gltf"]
DEGREES = {".ply": 4, ".compressed.ply": 3, ".splat": 0, ".spz": 4, ".sog": 3, ".glb": 3, ".gltf": 3}
FLOAT = 2.0**-22  # room for float32, for numbers up to 8


def sample(G=600, degree=0, seed=0):
    """Colours, scales and bands within what every format can hold; quaternions of any length and sign."""
    g = torch.Generator().manual_seed(seed)
    uniform = lambda low, high, *shape: low + (high - low) * torch.rand(*shape, generator=g)  # noqa: E731
    sh = uniform(-0.9, 0.9, G, (degree + 1) ** 2, 3)
    sh[:, 0] = uniform(-1.7, 1.7, G, 3)
    quats = torch.randn(G, 4, generator=g) * uniform(0.2, 3, G, 1)
    quats[:4] = (torch.eye(4) * torch.tensor([1.0, -1.0, 1.0, -1.0]))[:G]
    return Gaussians(uniform(-3, 5, G, 3), quats, uniform(-6, 0.5, G, 3), uniform(-5, 5, G), sh)


def _smallest_three(step):
    """Angle, if each of the three is at most ``step`` / 2 off: the fourth is at most sqrt 3 times as far as they."""
    return 1.01 * 2 * 2 * math.sqrt(3) * step / 2


def _chunks(values):
    """Largest range within the chunks of 256, for each axis."""
    return torch.stack([c.amax(0) - c.amin(0) for c in values.split(256)]).amax(0)


def bounds(suffix, g, version=4):
    """The largest differences that writing ``g`` may make, from the format's definition."""
    byte = 0.5 / 255
    if suffix == ".ply":
        return Differences(0, FLOAT, 0, 0, 0, 0)
    if suffix in (".glb", ".gltf"):
        return Differences(0, 4 * FLOAT, 2 * FLOAT, FLOAT, 0, 0)
    if suffix == ".splat":  # a component of 1 is cut to 127/128
        angle = 2 * math.asin(math.sqrt(3 * (1 / 256) ** 2 + (1 / 128) ** 2))
        return Differences(0, angle, 2 * FLOAT, byte + FLOAT, byte + FLOAT, 0)
    if suffix == ".spz":
        angle = _smallest_three(math.sqrt(0.5) / 511)
        if version == 2:  # x y z half a step of 2/255 off, and w = sqrt(1 - x^2 - y^2 - z^2)
            xyz = math.sqrt(3) / 255
            angle = 4 * math.asin(math.hypot(xyz, math.sqrt(2 * xyz + xyz**2)) / 2)
        return Differences(2.0**-13 + FLOAT, angle, 1 / 32 + FLOAT, byte + FLOAT, SH_C0 * 0.5 / 38.25 + FLOAT, 1 / 256)
    if suffix == ".sog":
        logs = g.means.abs().log1p() * g.means.sign()
        step = float((logs.amax(0) - logs.amin(0)).max()) / 65535
        code = lambda x: 2 * float(x.max() - x.min()) / 255 + FLOAT if x.numel() else 0.0  # noqa: E731
        means = 1.01 * (1 + float(g.means.abs().max())) * step / 2 + FLOAT
        angle = _smallest_three(math.sqrt(2) / 255)
        return Differences(means, angle, code(g.log_scales), byte + FLOAT, SH_C0 * code(g.sh[:, 0]), code(g.sh[:, 1:]))
    assert suffix == ".compressed.ply"
    g = g[morton_order(g.means)]
    steps = torch.tensor([2047.0, 1023.0, 2047.0])
    half = lambda x: float((_chunks(x) / steps).max()) / 2 + FLOAT  # noqa: E731
    color = SH_C0 * float(_chunks(g.sh[:, 0]).max()) * byte + FLOAT
    angle = _smallest_three(math.sqrt(2) / 1023)
    return Differences(half(g.means), angle, half(g.log_scales), byte + FLOAT, color, 8 / 256 / 2 + FLOAT)


def within(found, *allowed):
    """Whether differences are no larger than the sum of those allowed, attribute by attribute."""
    return [name for name in vars(found) if getattr(found, name) > sum(getattr(a, name) for a in allowed)] == []
