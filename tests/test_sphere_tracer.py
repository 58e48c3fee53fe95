"""The renderer on top of the march: pictures, and derivatives of where rays meet a surface."""

import math
from dataclasses import replace

import pytest
import torch
from polyfield.cuda.sphere_tracing import sphere_trace
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.networks import MlpConfig
from polyfield.fields.protocols import FieldOutput
from polyfield.fields.signed_distance import SignedDistanceConfig
from polyfield.fields.unsigned_distance import UnsignedDistanceConfig
from polyfield.geometry import Aabb, Camera, Rays, transforms
from polyfield.geometry.occupancy import OccupancyGrid
from polyfield.renderers.background import FixedBackground
from polyfield.renderers.shading import Lighting, openness, sunlight
from polyfield.renderers.sphere_tracing import SphereTracer, TraceConfig, differences
from torch.nn.functional import normalize

UP = torch.tensor([0.0, 0.0, 1.0])


class Ball(torch.nn.Module):
    """|x - c| - r, or its absolute value, times ``slope``; red where x > 0, else blue."""

    def __init__(self, radius=0.6, center=(0.0, 0.0, 0.0), slope=1.0, signed=True, dtype=torch.float32, colored=False):
        super().__init__()
        self.radius = torch.nn.Parameter(torch.tensor(radius, dtype=dtype))
        self.center = torch.nn.Parameter(torch.tensor(center, dtype=dtype))
        self.slope, self.signed, self.colored = slope, signed, colored
        self.bounds = Aabb(-torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype))

    def distance(self, points):
        found = self.slope * ((points - self.center).norm(dim=-1) - self.radius)
        return found if self.signed else found.abs()

    def query(self, points, directions=None, *, gradients=False):
        raw = self.slope * ((points - self.center).norm(dim=-1) - self.radius)
        slopes = self.slope * normalize(points - self.center, dim=-1)
        if not self.signed:
            raw, slopes = raw.abs(), slopes * raw.sign()[:, None]
        red = torch.tensor([1.0, 0, 0]).to(points)
        colors = torch.where(points[:, :1] > 0, red, red.flip(0)) if self.colored else None
        return FieldOutput(raw, slopes if gradients else None, colors)


def rays_towards(count, dtype=torch.float32, aim=0.4):
    g = torch.Generator().manual_seed(0)
    origins = 2.5 * normalize(torch.randn(count, 3, generator=g, dtype=torch.float64), dim=1)
    targets = aim * (torch.rand(count, 3, generator=g, dtype=torch.float64) - 0.5)
    directions = normalize(targets - origins, dim=1)
    near = torch.zeros(count, dtype=torch.float64)
    return Rays(*(x.to(dtype) for x in (origins, directions, near, near + 9)))


def exact_depths(rays, center, radius):
    away = rays.origins - center
    b = (away * rays.directions).sum(-1)
    return -b - (b * b - (away * away).sum(-1) + radius * radius).sqrt()


@pytest.mark.parametrize("slope", [0.3, 1.0, 1.7])
def test_a_ball_is_met_where_it_is(slope):
    rays = rays_towards(300)
    drawn = SphereTracer(TraceConfig(steepness=max(1.0, slope))).render(Ball(slope=slope), rays).pixels
    wanted = exact_depths(rays, torch.zeros(3), 0.6)
    assert bool((drawn.alphas == 1).all())
    torch.testing.assert_close(drawn.depths, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn.normals, normalize(rays.at(wanted), dim=1), atol=1e-3, rtol=0)


def test_what_is_missed_is_background():
    camera = Camera.perspective(24, 16, 1.0, transforms.look_at(torch.tensor([0.0, -2.5, 0]), torch.zeros(3), UP))
    tracer = SphereTracer(background=FixedBackground((0.1, 0.2, 0.3)))
    drawn = tracer.render(Ball(colored=True), camera).pixels
    assert drawn.colors.shape == drawn.normals.shape == (16, 24, 3)
    assert drawn.shades.shape == drawn.depths.shape == (16, 24)
    torch.testing.assert_close(drawn.colors[0, 0], torch.tensor([0.1, 0.2, 0.3]))
    assert drawn.alphas[0, 0] == drawn.depths[0, 0] == drawn.shades[0, 0] == 0
    assert drawn.alphas[8, 12] == 1 and drawn.colors[8, 13].tolist() == [1, 0, 0]
    assert drawn.colors[8, 10].tolist() == [0, 0, 1]
    seen = int(drawn.alphas.sum())
    angle = math.asin(0.6 / 2.5)
    assert seen == pytest.approx(math.pi * (math.tan(angle) * 24 / 2 / math.tan(0.5)) ** 2, rel=0.1)


def test_chunks_make_the_same_picture():
    camera = Camera.perspective(20, 20, 0.6, transforms.look_at(torch.tensor([1.0, -2, 1]), torch.zeros(3), UP))
    whole = SphereTracer().render(Ball(), camera).pixels
    parts = SphereTracer(TraceConfig(chunk=37)).render(Ball(), camera).pixels
    for name in ("colors", "alphas", "depths", "normals", "shades"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_an_unsigned_distance_has_two_sides():
    """Met at the threshold from outside, and from inside."""
    rays = rays_towards(50)
    tracer = SphereTracer(TraceConfig(threshold=0.01, tolerance=1e-5))
    outside = tracer.render(Ball(signed=False), rays).pixels
    torch.testing.assert_close(outside.depths, exact_depths(rays, torch.zeros(3), 0.61), atol=1e-4, rtol=0)
    within = Rays(torch.zeros(50, 3), rays.directions, rays.near, rays.far)
    inside = tracer.render(Ball(signed=False), within).pixels
    torch.testing.assert_close(inside.depths, torch.full((50,), 0.59), atol=1e-4, rtol=0)
    for view, drawn in ((rays, outside), (within, inside)):
        assert bool(((drawn.normals * view.directions).sum(1) < 0).all()), "normals face the viewer"


@torch.no_grad()
def test_only_occupied_cells_are_looked_into():
    """Of two balls, one behind the other, the cells of the first are empty."""

    class Two(Ball):
        def distance(self, points):
            return torch.minimum(*((points - points.new_tensor([x, 0, 0])).norm(dim=-1) - 0.2 for x in (-0.5, 0.5)))

        def query(self, points, directions=None, *, gradients=False):
            return FieldOutput(self.distance(points), differences(self.distance, points, 1e-3))

    occupancy = OccupancyGrid(32)
    kept = lambda p: (p[:, 0] > 0).float() * 1e3 + ((p[:, 1] > 0.5) & (p[:, 0] < -0.8)).float() * 1e3  # noqa: E731
    occupancy.update(kept, step=0.01, all_cells=True)
    y = torch.linspace(-0.15, 0.15, 40)
    origins = torch.stack([torch.full_like(y, -3), y, 0 * y], 1)
    rays = Rays(origins, torch.tensor([1.0, 0, 0]).repeat(40, 1), 0 * y, 0 * y + 9)
    found = SphereTracer().render(Two(), rays).pixels.depths
    torch.testing.assert_close(
        found - SphereTracer(occupancy=occupancy).render(Two(), rays).pixels.depths, 0 * y - 1, atol=3e-4, rtol=0
    )
    empty = OccupancyGrid(32)
    empty.update(lambda p: 0 * p[:, 0], step=0.01, all_cells=True)
    assert not SphereTracer(occupancy=empty).render(Two(), rays).pixels.alphas.any()


def test_the_next_stretch_is_looked_at_where_the_first_has_nothing():
    occupancy = OccupancyGrid(32)
    near_ends = lambda p: ((p[:, 0] < -0.7) | (p[:, 0].abs() < 0.2)).float() * 1e3  # noqa: E731
    occupancy.update(near_ends, step=0.01, all_cells=True)
    rays = Rays(torch.tensor([[-3.0, 0, 0]]), torch.tensor([[1.0, 0, 0]]), torch.zeros(1), torch.full((1,), 9.0))
    found = SphereTracer(occupancy=occupancy).render(Ball(radius=0.15), rays).pixels
    torch.testing.assert_close(found.depths, torch.tensor([2.85]), atol=1e-3, rtol=0)


# ---- derivatives ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("signed", [True, False])
def test_where_a_ball_is_met_is_differentiated(signed):
    """By its radius, its centre, and the rays; against the closed form's own derivatives, in float64."""
    config = TraceConfig(tolerance=1e-9, threshold=0.02)
    rays = rays_towards(40, torch.float64)
    rays = replace(rays, origins=rays.origins.requires_grad_(), directions=rays.directions.requires_grad_())
    field = Ball(signed=signed, dtype=torch.float64, center=(0.05, -0.02, 0.1))
    found = SphereTracer(config).render(field, rays).pixels.depths
    weights = torch.linspace(-1, 2, 40, dtype=torch.float64)
    inputs = (field.radius, field.center, rays.origins, rays.directions)
    ours = torch.autograd.grad((weights * found).sum(), inputs)
    wanted = exact_depths(rays, field.center, field.radius + (0 if signed else 0.02))
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
    # Directions need not stay unit here: t counts lengths of d, whose derivative along d is -t.
    theirs = list(torch.autograd.grad((weights * wanted).sum(), inputs))
    along = (ours[3] * rays.directions).sum(1)
    torch.testing.assert_close(along, -(weights * found).detach(), atol=1e-7, rtol=0)
    flat = lambda g: g - (g * rays.directions).sum(1, keepdim=True) * rays.directions  # noqa: E731
    for a, b in zip((*ours[:3], flat(ours[3])), (*theirs[:3], flat(theirs[3])), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [SignedDistanceConfig, UnsignedDistanceConfig])
def test_derivatives_by_a_hash_grid_are_finite_differences(kind):
    """Depths of a field with tables and networks, each moved along a random direction; in float64."""
    torch.manual_seed(3)
    grid = HashGridConfig(levels=3, features=2, log2_size=9, base_resolution=4, finest_resolution=12)
    config = kind(grid=grid, network=MlpConfig(width=16), color=None, geometry_features=1, radius=0.5)
    field = config.build(Aabb.cube()).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in field.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    tracer = SphereTracer(TraceConfig(tolerance=1e-11, threshold=0.03, max_steps=2000)).double()
    rays = rays_towards(60, torch.float64, aim=0.1)
    parameters = list(field.parameters())
    found = tracer.render(field, rays).pixels
    met = found.alphas > 0
    assert met.float().mean() > 0.9
    changes = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in parameters]
    weights = torch.rand(60, generator=g, dtype=torch.float64) * met
    slopes = torch.autograd.grad((weights * found.depths).sum(), parameters)
    ours = sum(float((a * b).sum()) for a, b in zip(slopes, changes, strict=True))

    def moved(step):
        with torch.no_grad():
            for p, c in zip(parameters, changes, strict=True):
                p.add_(step * c)
            depths = tracer.render(field, rays).pixels.depths
            for p, c in zip(parameters, changes, strict=True):
                p.sub_(step * c)
        return float((weights * depths).sum())

    step = 1e-6
    assert ours == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=2e-3)


def test_grazing_rays_have_bounded_derivatives():
    field = Ball(dtype=torch.float64)
    heights = torch.linspace(0.599, 0.6, 20, dtype=torch.float64)
    origins = torch.stack([torch.full_like(heights, -3), heights, 0 * heights], 1)
    rays = Rays(origins, torch.tensor([[1.0, 0, 0]]).double().repeat(20, 1), 0 * heights, 0 * heights + 9)
    drawn = SphereTracer().render(field, rays).pixels
    for depth in drawn.depths[drawn.alphas > 0]:
        (slope,) = torch.autograd.grad(depth, field.radius, retain_graph=True)
        assert -51 <= float(slope) < 0
    assert bool(drawn.depths.isfinite().all())


def test_a_fit_to_depths_moves_the_surface():
    rays = rays_towards(200, aim=0.2)
    wanted = exact_depths(rays, torch.tensor([0.1, 0.05, -0.1]), 0.5)
    field, tracer = Ball(), SphereTracer()
    optimizer = torch.optim.Adam(field.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        pixels = tracer.render(field, rays).pixels
        ((pixels.depths - wanted) * pixels.alphas).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(field.center.detach(), torch.tensor([0.1, 0.05, -0.1]), atol=5e-3, rtol=0)
    assert float(field.radius.detach()) == pytest.approx(0.5, abs=5e-3)


# ---- light ---------------------------------------------------------------------------------------------------------
def above_floor(points):
    """A floor at z = 0 and a ball of radius 0.3 that floats 0.5 above it."""
    return torch.minimum(points[:, 2], (points - points.new_tensor([0, 0, 0.5])).norm(dim=1) - 0.3)


def test_shadows_are_soft_at_their_rim():
    x = torch.linspace(0, 1, 200)
    floor = torch.stack([x, 0 * x, 0 * x + 1e-3], 1)
    share = sunlight(above_floor, floor, UP, 0.2)
    assert float(share[0]) == 0 and float(share[-1]) == 1
    assert bool((share.diff() >= -1e-4).all()), "lighter outwards"
    rim = x[(share > 0.02) & (share < 0.98)]
    harder = sunlight(above_floor, floor, UP, 0.05)
    assert 0.25 < float(rim.min()) < 0.35 and float(rim.max()) < 0.45
    assert int(((harder > 0.02) & (harder < 0.98)).sum()) < len(rim)


def test_occlusion_darkens_below():
    floor = torch.tensor([[0.0, 0, 0], [0.35, 0, 0], [2, 0, 0]])
    near, beside, far = openness(above_floor, floor, UP.expand(3, 3), 0.4).tolist()
    assert near < beside < far == pytest.approx(1)


def test_options_make_pictures_darker_and_no_brighter():
    camera = Camera.perspective(40, 40, 0.8, transforms.look_at(torch.tensor([2.0, -1, 1.5]), torch.zeros(3), UP))

    class Floating(Ball):
        """A ball above a floor."""

        def distance(self, points):
            return above_floor(points + points.new_tensor([0, 0, 0.5]))

        def query(self, points, directions=None, *, gradients=False):
            return FieldOutput(self.distance(points), differences(self.distance, points, 1e-3))

    drawn = {}
    for shadows in (False, True):
        for occlusion in (False, True):
            tracer = SphereTracer(lighting=Lighting(shadows=shadows, occlusion=occlusion))
            drawn[shadows, occlusion] = tracer.render(Floating(), camera).pixels.shades
    plain = drawn[False, False]
    for options, shades in drawn.items():
        assert bool((shades <= plain + 1e-6).all())
        assert any(options) == bool((shades < plain - 0.02).any()), options


def test_differences_follow_the_gradient():
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = normalize(differences(lambda p: (p * p).sum(1), points, 1e-4), dim=1)
    torch.testing.assert_close(found, normalize(points, dim=1), atol=1e-6, rtol=0)


def test_smooth_normals_are_those_of_the_distance():
    rays = rays_towards(50)
    plain, smooth = (SphereTracer(TraceConfig(normal_step=s)).render(Ball(), rays).pixels for s in (0.0, 0.002))
    torch.testing.assert_close(smooth.normals, plain.normals, atol=2e-3, rtol=0)


def test_nothing_of_a_trace_has_a_gradient():
    field = Ball()
    rays = rays_towards(5)
    found = sphere_trace(field.distance, rays.origins, rays.directions, rays.near, rays.far)
    assert not found.requires_grad
