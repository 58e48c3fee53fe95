"""Built-in scenes, rendered exactly from analytic shapes when they are loaded; nothing is downloaded.

``demo_bowl`` and ``demo_cloth`` are open surfaces without thickness (``demo_sheets.py``), seen from both sides. In
``demo``, a wooden disc carries a striped ball, a marble block, a glossy ring with a ball in its hole, a thin brass
hoop and a tripod of thin rods: texture, view-dependent gloss, soft shadows, thin parts and contact. Views have
colours with alpha (four samples per pixel on a rotated grid), and depths and normals of the ray through the pixel's
centre; the ground-truth mesh is a tessellation of the solids. Some views look from below, so that all of the surface is
seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..geometry.cameras import Camera
from ..geometry.transforms import look_at, similarity, similarity_inverse, transform_points, transform_poses
from ..geometry.types import Aabb, Mesh
from . import images
from .demo_shapes import MISS, Capsule, Cylinder, RoundedBox, Solid, Sphere, Torus, dot, length, vector
from .demo_sheets import Bowl, Cloth, bands, weave
from .scene import Frame, LoadOptions, Scene, SceneError, Split

VIEWS = 69
SIZE = 200
CENTER, HALF = (0.0, 0.0, 0.42), 1.35  # of the cube that holds everything
LIGHT = (0.48, -0.36, 0.80)
LIGHT_TANGENT = 0.10  # of the light's angular radius: the softness of shadows
SUBPIXELS = ((0.125, 0.625), (0.375, 0.125), (0.625, 0.875), (0.875, 0.375))
APEX = (0.0, 0.0, 0.86)


@dataclass(frozen=True)
class Part:
    """A solid with its look."""

    solid: Solid
    albedo: Callable[[Tensor], Tensor]  # (N, 3) world -> (N, 3) linear
    gloss: float = 0.0  # strength of the mirror-like part
    sharpness: float = 60.0  # Phong exponent of the light's highlight
    metal: bool = False  # reflections take the albedo's colour


def matches(root: Path) -> bool:
    """The name of a built-in scene, unless a folder of that name exists."""
    return str(root) in NAMES and not root.exists()


def load(root: Path, options: LoadOptions) -> Scene:
    """Render the scene: 60 views to fit, 9 held out."""
    size = SIZE // options.downscale
    if size < 8:
        raise SceneError(
            f"{root}: downscale: expected at most {SIZE // 8}, got {options.downscale}; use a smaller factor"
        )
    images.check_memory(VIEWS * size * size * 14, options.max_memory, options.downscale, root)
    return render_demo(VIEWS, size, options.hold_out, str(root))


def render_demo(views: int = VIEWS, size: int = SIZE, hold_out: int = 8, name: str = "demo") -> Scene:
    """A built-in scene with any number of views and image size."""
    scene_to_world = similarity(HALF, torch.eye(3, dtype=torch.float64), torch.tensor(CENTER, dtype=torch.float64))
    to_scene = similarity_inverse(scene_to_world)
    all_parts = NAMES[name]()

    def render(numbered: tuple[int, Tensor]) -> Frame:
        i, pose = numbered
        world = Camera.perspective(size, size, 0.74, pose)
        in_scene = Camera(world.K, transform_poses(to_scene, pose.double()).float(), size, size)
        split = Split.TEST if hold_out > 0 and i % hold_out == 0 else Split.TRAIN
        colors, alphas, depths, normals = render_view(all_parts, world)
        return Frame(f"view_{i:03d}", in_scene, colors, split, alphas, None, depths / HALF, normals.half())

    frames = images.in_threads(render, list(enumerate(view_poses(views))))
    mesh = demo_mesh(all_parts)
    mesh = Mesh(transform_points(to_scene.float(), mesh.vertices), mesh.faces, mesh.normals, mesh.colors)
    return Scene(name, tuple(frames), scene_to_world, Aabb.cube(1.0), cascades=1, near=0.1, mesh=mesh)


def view_poses(views: int) -> Tensor:
    """(views, 4, 4) camera-to-world around the scene: golden-angle spirals, one sixth of them from below."""
    i = torch.arange(views, dtype=torch.float64)
    share = (i + 0.5) / views
    height = torch.where(share < 1 / 6, -0.55 + share * 6 * 0.55, (share - 1 / 6) * 1.2 * 0.94)
    azimuth = i * (math.pi * (3 - math.sqrt(5)))
    flat = (1 - height * height).sqrt()
    outward = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), height], -1)
    target = torch.tensor([0.0, 0.0, 0.32], dtype=torch.float64)
    eye = target + outward * (3.95 + 0.1 * (i * 1.7).sin())[:, None]
    return look_at(eye, target.expand_as(eye), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)).float()


def parts() -> list[Part]:
    """The scene, z up; the table's top is z = 0."""
    block = RoundedBox((0.56, -0.36, 0.27), 0.27, 0.05, 0.45)
    feet = [(0.17 * math.cos(a), 0.17 * math.sin(a), 0.016) for a in (0.3, 0.3 + 2.0944, 0.3 + 4.18879)]
    steel = _plain(0.06, 0.065, 0.08)
    return [
        Part(Cylinder((0.0, 0.0, -0.05), 1.22, 0.05), _wood, 0.03, 30),
        Part(Sphere((-0.56, -0.40, 0.36), 0.36), _stripes, 0.05, 50),
        Part(block, lambda p: _marble(block.local(p)), 0.05, 80),
        Part(Torus((0.36, 0.56, 0.125), (0.0, 0.0, 1.0), 0.30, 0.125), _plain(0.62, 0.035, 0.03), 0.10, 120),
        Part(Sphere((0.36, 0.56, 0.14), 0.14), _plain(0.02, 0.09, 0.42), 0.10, 160),
        Part(Torus((-0.55, 0.46, 0.336), (0.8, 0.6, 0.0), 0.32, 0.016), _plain(0.72, 0.45, 0.15), 0.55, 40, True),
        *(Part(Capsule(foot, APEX, 0.016), steel, 0.25, 60) for foot in feet),
        Part(Sphere((0.0, 0.0, 0.95), 0.10), _plain(0.92, 0.62, 0.18), 0.60, 90, True),
    ]


def bowl_parts() -> list[Part]:
    """``demo_bowl``: half a sphere without thickness."""
    return [Part(Bowl((0.0, 0.0, 0.62), 0.85, 0.0), bands)]


def cloth_parts() -> list[Part]:
    """``demo_cloth``: a waving sheet."""
    return [Part(Cloth((0.0, 0.0, 0.42), 0.36, 1.05, 3, 0.75), weave)]


NAMES: dict[str, Callable[[], list[Part]]] = {"demo": parts, "demo_bowl": bowl_parts, "demo_cloth": cloth_parts}


def trace(all_parts: list[Part], origin: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Rays from one point (3,) along unit directions (N, 3) -> distance (N,) or infinity, and part (N,) or -1."""
    nearest = torch.full_like(directions[:, 0], MISS)
    which = torch.full(nearest.shape, -1, dtype=torch.int64)
    for i, part in enumerate(all_parts):
        to_center = vector(part.solid.bound_center) - origin
        # A ray meets the bounding sphere if its way along the axis exceeds the tangent's length.
        tangent = math.sqrt(max(float(to_center.square().sum()) - part.solid.bound_radius**2, 0.0))
        index = (directions @ to_center > tangent).nonzero()[:, 0]
        if not len(index):
            continue
        t = part.solid.hit(origin, directions[index])
        closer = t < nearest[index]
        index = index[closer]
        nearest[index], which[index] = t[closer], i
    return nearest, which


def render_view(all_parts: list[Part], camera: Camera) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colours (H, W, 3) and alphas (H, W) uint8; depths (H, W) along the ray and normals (H, W, 3), 0 where empty.

    Light and sky, which vary smoothly, are looked up once per pixel and part; texture and gloss once per sample. All
    samples of a view are traced at once: Python's share is small, and views can be rendered on several threads.
    """
    size = (camera.height, camera.width)
    centers = camera.pixel_centers()
    count = len(centers)
    samples = torch.cat([centers, *(centers - 0.5 + torch.tensor(offset) for offset in SUBPIXELS)])
    directions = camera.rays(samples).directions
    depths, which = trace(all_parts, camera.position, directions)
    hits = (which >= 0).nonzero()[:, 0]
    directions = directions[hits]
    surface = Surface.at(all_parts, camera.position + depths[hits][:, None] * directions, which[hits])
    surface = surface.facing(-directions, torch.tensor([part.solid.thin for part in all_parts]))
    pixel = hits % count
    own = ((hits < count) | (which[hits] != which[pixel])).nonzero()[:, 0]
    light = torch.zeros(5 * count, 2)
    light[hits[own]] = lighting(all_parts, surface.subset(own))
    source = pixel.clone()
    source[own] = hits[own]
    shaded = torch.zeros(5 * count, 3)
    shaded[hits] = shade(surface, light[source], -directions)
    covered = (which >= 0).view(5, count)[1:].sum(0)
    total = shaded.view(5, count, 3)[1:].sum(0)
    colors = (total / covered.clamp_min(1)[:, None] * 255 + 0.5).byte().reshape(*size, 3)
    alphas = (covered * (255 / len(SUBPIXELS)) + 0.5).byte().reshape(size)
    normals = torch.zeros(5 * count, 3)
    normals[hits] = surface.normals
    depths = torch.where(which >= 0, depths, 0.0)[:count]
    return colors, alphas, depths.reshape(size), normals[:count].reshape(*size, 3)


@dataclass(frozen=True)
class Surface:
    """Points on the solids and what the parts look like there."""

    points: Tensor  # (N, 3) world
    which: Tensor  # (N,) part
    normals: Tensor  # (N, 3)
    albedo: Tensor  # (N, 3) linear
    looks: Tensor  # (N, 3) gloss, sharpness, metal

    @staticmethod
    def at(all_parts: list[Part], points: Tensor, which: Tensor) -> Surface:
        """Look the parts up."""
        normals, albedo, looks = (torch.empty_like(points) for _ in range(3))
        for i, part in enumerate(all_parts):
            index = (which == i).nonzero()[:, 0]
            if len(index):
                at = points[index]
                normals[index], albedo[index] = part.solid.normal(at), part.albedo(at)
                looks[index] = torch.tensor([part.gloss, part.sharpness, float(part.metal)])
        return Surface(points, which, normals, albedo, looks)

    def facing(self, to_eye: Tensor, thin: Tensor) -> Surface:
        """With the normals of parts that are ``thin`` (P,) turned towards the eye (N, 3)."""
        away = thin[self.which] & (dot(self.normals, to_eye) < 0)
        return replace(self, normals=torch.where(away[:, None], -self.normals, self.normals))

    def subset(self, index: Tensor) -> Surface:
        """Some of the points."""
        return Surface(*(v[index] for v in (self.points, self.which, self.normals, self.albedo, self.looks)))


def lighting(all_parts: list[Part], surface: Surface) -> Tensor:
    """(N, 2) the shares of the light and of the sky that reach the points."""
    return torch.stack([_light_seen(all_parts, surface), _sky_seen(all_parts, surface)], -1)


def shade(surface: Surface, light: Tensor, to_eye: Tensor | None) -> Tensor:
    """A surface under ``light`` (N, 2) seen from unit directions (N, 3) -> sRGB (N, 3) in [0, 1].

    Lambert under a soft light and a sky, darkened near contact; Phong (1975) highlights and reflections of the sky with
    Schlick's Fresnel term (1994), both left out if ``to_eye`` is None.
    """
    normals, toward = surface.normals, normalize(vector(LIGHT), dim=0)
    gloss, sharpness, metal = surface.looks.unbind(-1)
    lit, open_sky = light.unbind(-1)
    direct = (normals @ toward).clamp_min(0) * lit
    sky = (0.25 + 0.10 * normals[:, 2]) * open_sky
    warm, cool = vector((1.0, 0.95, 0.86)), vector((0.90, 0.96, 1.10))
    matte = (1 - 0.75 * metal)[:, None]
    color = surface.albedo * matte * (0.85 * direct[:, None] * warm + sky[:, None] * cool)
    if to_eye is not None:
        cosine = dot(normals, to_eye).clamp(0, 1)
        mirrored = 2 * cosine[:, None] * normals - to_eye
        fresnel = gloss + (1 - gloss) * (1 - cosine) ** 5
        tint = torch.where(metal[:, None] > 0, surface.albedo, 1.0)
        highlight = (mirrored @ toward).clamp_min(0) ** sharpness * lit * (gloss * 6).clamp_max(1.2)
        panel = torch.sigmoid((mirrored[:, 2] - 0.25) * 9)  # a bright sky above a dark horizon
        color = color + tint * (highlight[:, None] * warm + (fresnel * panel * open_sky * 0.8)[:, None] * cool)
    return color.clamp(0, 1) ** (1 / 2.2)


def demo_mesh(all_parts: list[Part], segments: int = 144) -> Mesh:
    """The surface of all solids: their tessellations without what lies inside another or against it; matte colours."""

    def tessellate(numbered: tuple[int, Part]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        i, part = numbered
        v, f = part.solid.triangles(segments)
        middle = v[f].mean(1)
        middle = middle + 1e-3 * part.solid.normal(middle)
        others = [p.solid.distance(middle) for j, p in enumerate(all_parts) if j != i]
        surface = Surface.at(all_parts, v + 1e-4 * part.solid.normal(v), torch.full((len(v),), i))
        colors = shade(surface, lighting(all_parts, surface), None)
        seen = torch.stack(others).amin(0) > -1e-4 if others else torch.ones(len(f), dtype=torch.bool)
        return v, f[seen], surface.normals, colors

    pieces = images.in_threads(tessellate, list(enumerate(all_parts)))
    vertices, faces, normals, colors = zip(*pieces, strict=True)
    first = torch.tensor([0] + [v.shape[0] for v in vertices]).cumsum(0)
    numbered = [f + n for f, n in zip(faces, first, strict=False)]
    return Mesh(torch.cat(vertices), torch.cat(numbered), torch.cat(normals), torch.cat(colors))


def _light_seen(all_parts: list[Part], surface: Surface) -> Tensor:
    """(N,) how much of the light is seen, from how closely each solid comes to the ray towards it."""
    points, light = surface.points, normalize(vector(LIGHT), dim=0)
    lit = surface.normals @ light > 0
    result = torch.ones_like(points[:, 0])
    for i, part in enumerate(all_parts):
        solid = part.solid
        if isinstance(solid, Cylinder):
            continue  # the table shades nothing that faces the light
        to_center = vector(solid.bound_center) - points
        along = to_center @ light
        gap = (dot(to_center, to_center) - along * along).clamp_min(0).sqrt() - solid.bound_radius
        near = lit & (along > -solid.bound_radius) & (gap < 2 * LIGHT_TANGENT * along.clamp_min(0.05))
        if isinstance(solid, (Sphere, RoundedBox, Capsule)):
            near &= surface.which != i  # convex: never shades itself where it faces the light
        index = near.nonzero()[:, 0]
        if not len(index):
            continue
        at = points[index] + 0.004 * surface.normals[index]
        share = (0.5 + solid.openness(at, light) / (2 * LIGHT_TANGENT)).clamp(0, 1)
        result[index] *= share * share * (3 - 2 * share)
    return result


def _sky_seen(all_parts: list[Part], surface: Surface) -> Tensor:
    """(N,) ambient occlusion: how far the distance to the solids lags behind the distance gone along the normal."""
    result = torch.ones_like(surface.points[:, 0])
    for step, weight in ((0.05, 3.0), (0.14, 1.8)):
        at = surface.points + step * surface.normals
        gap = torch.full_like(result, step)
        for part in all_parts:
            if not isinstance(part.solid, Capsule):
                near = part.solid.bound_radius + step
                index = (length(at - vector(part.solid.bound_center)) < near).nonzero()[:, 0]
                gap[index] = torch.minimum(gap[index], part.solid.distance(at[index]))
        result -= weight * (step - gap)
    return result.clamp(0.25, 1)


def _plain(r: float, g: float, b: float) -> Callable[[Tensor], Tensor]:
    return lambda p: p.new_tensor([r, g, b]).expand_as(p)


def _mix(a: tuple[float, float, float], b: tuple[float, float, float], share: Tensor) -> Tensor:
    return torch.lerp(share.new_tensor(a), share.new_tensor(b), share[:, None])


def _edge(values: Tensor, width: float) -> Tensor:
    """A step at 0, ``width`` wide."""
    return (values / width + 0.5).clamp(0, 1)


def _wood(p: Tensor) -> Tensor:
    """An inlaid checker in a rim of grained wood."""
    x, y, radius = p[:, 0], p[:, 1], torch.hypot(p[:, 0], p[:, 1])
    checker = _edge((x * (math.pi / 0.21)).sin() * (y * (math.pi / 0.21)).sin(), 0.25)
    warp = 0.5 * (3.1 * x + 1.3 * (2.3 * y).sin()).sin() + 0.3 * (7.7 * y + 2.0 * x).sin()
    rings = 0.5 + 0.5 * (26.0 * (y + 0.12 * warp + 0.05 * x)).sin()
    fine = 0.5 + 0.5 * (150.0 * y + 9.0 * warp + 14.0 * (2.0 * x).sin()).sin()
    grain = (0.7 * rings + 0.3 * fine).clamp(0, 1)
    wood = _mix((0.36, 0.17, 0.07), (0.58, 0.33, 0.15), grain)
    inlay = _mix((0.64, 0.55, 0.40), (0.16, 0.085, 0.05), checker) * (0.82 + 0.18 * grain)[:, None]
    top = _edge(p[:, 2] + 0.002, 0.002)
    inside = (_edge(0.945 - radius, 0.012) * top)[:, None]
    band = (_edge(0.03 - (radius - 0.985).abs(), 0.01) * top)[:, None]
    wood = torch.lerp(wood, wood.new_tensor([0.10, 0.05, 0.03]).expand_as(wood), band)
    return torch.lerp(wood, inlay, inside)


def _stripes(p: Tensor) -> Tensor:
    """Twisted stripes on the ball, with a fine ripple."""
    q = (p - p.new_tensor([-0.56, -0.40, 0.36])) / 0.36
    longitude = torch.atan2(q[:, 1], q[:, 0])
    wave = (7 * longitude + 5.0 * q[:, 2] + 0.6 * (9 * q[:, 2]).sin()).sin()
    color = _mix((0.02, 0.22, 0.24), (0.80, 0.72, 0.52), _edge(wave, 0.5))
    band = _edge(0.16 - q[:, 2].abs(), 0.03)[:, None]
    dots = _edge((14 * longitude).cos() * (math.pi * q[:, 2] / 0.16).cos() - 0.35, 0.3)
    middle = _mix((0.75, 0.22, 0.04), (0.90, 0.80, 0.60), dots)
    cap = _edge(q[:, 2].abs() - 0.93, 0.02)[:, None]
    return torch.lerp(torch.lerp(color, middle, band), color.new_tensor([0.75, 0.22, 0.04]).expand_as(color), cap)


def _marble(q: Tensor) -> Tensor:
    """Veins on the block, in its own axes."""
    x, y, z = (q * 9).unbind(-1)
    turbulence = (1.1 * x + 1.9 * (0.9 * y).sin() + 0.7 * z).sin() + 0.5 * (2.3 * y - 1.7 * z + 1.1 * x.sin()).sin()
    turbulence = turbulence + 0.25 * (4.9 * z + 4.1 * x + 2.0 * (3.1 * y).sin()).sin()
    vein = 1 - (1.2 * (x + y + z) * 0.5 + 2.2 * turbulence).sin().abs()
    base = _mix((0.10, 0.30, 0.20), (0.17, 0.42, 0.28), 0.5 + 0.3 * turbulence)
    return torch.lerp(base, base.new_tensor([0.78, 0.82, 0.72]).expand_as(base), (vein**5)[:, None])
