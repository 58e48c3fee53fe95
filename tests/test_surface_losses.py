"""Losses on distances that ask the field anew, and S3IM: closed forms, what counts, how they are asked for."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.errors import UserError
from polyfield.apps.fit import Budget, fit
from polyfield.apps.recipes import neus, shape
from polyfield.apps.supervision import known_points, needed
from polyfield.datasets.scene import open_scene
from polyfield.fields.protocols import FieldOutput
from polyfield.geometry import Aabb, Pixels, Points, Rays
from polyfield.geometry.rays import clip_to_box
from polyfield.renderers.losses.curvature import Curvature, bending, tangents
from polyfield.renderers.losses.free_space import FreeSpace, free_error
from polyfield.renderers.losses.s3im import S3im, similarities
from polyfield.renderers.losses.sparsity import Sparsity, sparsity
from polyfield.renderers.losses.surface_points import SurfacePoints
from polyfield.renderers.protocols import Render, Step

from .test_surface_fit import RECIPES


class Sphere:
    """Its exact distance; ``shift`` makes it wrong."""

    bounds, signed = Aabb.cube(), True

    def __init__(self, radius=0.5, shift=0.0):
        self.radius, self.shift = radius, shift

    def query(self, points, directions=None, *, gradients=False):
        length = points.norm(dim=-1)
        slopes = points / length[:, None]
        return FieldOutput(length - self.radius + self.shift, slopes if gradients else None)


def points_step(field, at, **changes):
    output = field.query(at, gradients=True)
    return Step(3, field, Points(at), Render(Pixels(), output=output), Pixels(), **changes)


def on_a_sphere(n, radius):
    g = torch.Generator().manual_seed(0)
    return radius * torch.nn.functional.normalize(torch.randn(n, 3, generator=g, dtype=torch.float64), dim=-1)


def test_tangents():
    normals = on_a_sphere(100, 1.0)
    found = tangents(normals, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(100, dtype=torch.float64))
    assert (found * normals).sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize("radius", [0.2, 0.8])
def test_the_curvature_of_a_sphere(radius):
    """A shift h along a sphere of radius r turns the normal by atan(h / r)."""
    loss = Curvature(weight=2.0, shift=0.05, until=0.5)
    made = points_step(Sphere(), on_a_sphere(300, radius), spent=0.25)
    turned = torch.atan(torch.tensor(0.05 / radius, dtype=torch.float64))
    torch.testing.assert_close(loss(made), 2 * 0.5 * (turned.cos() - 1) ** 2)
    assert loss(replace(made, spent=0.5)) == 0
    torch.testing.assert_close(replace(loss, until=0.0)(replace(made, spent=1.0)), 2 * (turned.cos() - 1) ** 2)
    assert loss(points_step(Sphere(), torch.zeros(0, 3))) == 0


def test_without_sides_opposite_normals_do_not_bend():
    normals = on_a_sphere(10, 1.0)
    assert bending(normals, -normals) == pytest.approx(4)
    assert bending(normals, -normals, sides=False) == pytest.approx(0)


def test_sparsity():
    torch.testing.assert_close(sparsity(torch.tensor([0.0, -0.1, 0.1]), 10.0), torch.tensor((1 + 2 * 0.36788) / 3))
    assert sparsity(torch.zeros(0), 10.0) == 0
    made = points_step(Sphere(), torch.ones(1, 3))
    far, near = (Sparsity(1.0, tau=20.0, points=1 << 17)(replace(made, field=Sphere(r))) for r in (0.2, 0.8))
    shell = lambda r: 4 * torch.pi * (2 * r**2 / 20 + 4 / 20**3) / 8  # noqa: E731 - the mean of exp(-20 |d|)
    assert float(far) == pytest.approx(shell(0.2), rel=0.1) and float(near) == pytest.approx(shell(0.8), rel=0.1)


def test_free_errors():
    found = free_error(torch.tensor([0.3, 0.6, -0.1, 5.0]), torch.tensor([0.5, 0.5, 0.5, torch.inf]), 4.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.1, 0.4, 0.0]))


def test_where_rays_cross_a_box():
    rays = Rays(
        torch.tensor([[-3.0, 0, 0], [0.0, 0, 0], [-3.0, 2, 0], [-3.0, 1, 0]]),
        torch.tensor([[1.0, 0, 0]]).expand(4, 3),
        torch.tensor([0.5, 0.2, 0.0, 0.0]),
        torch.full((4,), torch.inf),
    )
    inside = clip_to_box(rays, Aabb.cube())
    start, end = inside.near, inside.far
    torch.testing.assert_close(start[:2], torch.tensor([2.0, 0.2]))
    torch.testing.assert_close(end[:2], torch.tensor([4.0, 1.0]))
    assert end[2] <= start[2], "beside it"
    assert not start.isnan().any() and not end.isnan().any()


def rays_step(field, depths=None, alphas=None, masks=None):
    """Rays along z that meet the sphere of radius 0.5, the last two beside it."""
    x = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.8, 0.9])
    zero = torch.zeros(6)
    rays = Rays(torch.stack([x, zero, zero - 3], -1), torch.eye(3)[2].expand(6, 3), zero, zero + torch.inf)
    return Step(0, field, rays, Render(Pixels()), Pixels(depths=depths, alphas=alphas, masks=masks)), x


def test_free_space_of_the_truth_is_free():
    _, x = rays_step(Sphere())
    depths = torch.where(x < 0.5, 3 - (0.25 - x * x).clamp(min=0).sqrt(), 0.0)
    alphas = (x < 0.5).float()
    loss = FreeSpace(weight=1.0)
    for given in (dict(depths=depths), dict(alphas=alphas), dict(depths=depths, alphas=alphas)):
        assert loss(rays_step(Sphere(), **given)[0]) == 0
    inside = Sphere(shift=-0.4)
    for given in (dict(depths=depths), dict(alphas=alphas)):
        assert loss(rays_step(inside, **given)[0]) > 0.01, "what is free is inside of something"
    assert loss(rays_step(Sphere(shift=0.4), depths=depths)[0]) > 0.01, "farther than the way to what is seen"
    assert loss(rays_step(Sphere(shift=0.4), alphas=alphas)[0]) == 0
    masks = torch.tensor([False] * 6)
    assert loss(rays_step(inside, depths=depths, masks=masks)[0]) == 0
    assert loss(rays_step(inside, depths=torch.full((6,), torch.nan))[0]) == 0, "nothing is known"
    assert loss(rays_step(inside, alphas=torch.ones(6))[0]) == 0


def test_surface_points():
    at = on_a_sphere(50, 0.5)
    made = points_step(Sphere(), at)
    loss = SurfacePoints(weight=2.0, normals=0.5)
    assert loss(replace(made, known=Points(at))) == pytest.approx(0, abs=1e-12)
    assert loss(replace(made, known=Points(at, normals=2 * at))) == pytest.approx(0, abs=1e-12)
    assert loss(replace(made, known=Points(at, normals=-2 * at))) == pytest.approx(2 * 0.5 * 2)
    assert loss(replace(made, known=Points(1.2 * at))) == pytest.approx(2 * 0.1)
    both = torch.cat([1.2 * at, 1.8 * at])
    astray = replace(loss, reach=0.2)(replace(made, known=Points(both)))
    assert astray == pytest.approx(2 * (0.1 + 0.2) / 2), "beyond its reach a point counts as that far"
    some = replace(loss, points=7)(replace(made, known=Points(1.2 * at)))
    assert some == pytest.approx(2 * 0.1)
    unsigned = Sphere()
    unsigned.signed = False
    assert loss(replace(made, field=unsigned, known=Points(at, normals=-2 * at))) == pytest.approx(0, abs=1e-12)


def color_step(found, target, masks=None, index=0):
    return Step(index, None, None, Render(Pixels(found)), Pixels(target, masks=masks))


def test_blocks_as_ssim():
    """One block against SSIM's formula, in numpy's words."""
    import numpy as np

    a, b = np.random.default_rng(0).random((2, 16))
    c1, c2 = 0.01**2, 0.03**2
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    wanted = (2 * a.mean() * b.mean() + c1) * (2 * covariance + c2)
    wanted /= (a.mean() ** 2 + b.mean() ** 2 + c1) * (a.var() + b.var() + c2)
    block = lambda values: torch.from_numpy(values)[None, :, None]  # noqa: E731
    found, number = similarities(block(a), block(b), torch.ones(1, 16, dtype=torch.float64))
    assert found.item() == pytest.approx(wanted) and number.item() == 16


def test_s3im_is_zero_for_equals_and_sees_contrast():
    g = torch.Generator().manual_seed(0)
    target = torch.rand(500, 3, generator=g)
    loss = S3im(weight=1.0)
    assert loss(color_step(target, target)) == pytest.approx(0, abs=1e-6)
    flat = 0.5 + 0.5 * (target - 0.5)
    noisy = target + 0.05 * torch.randn(500, 3, generator=g)
    assert loss(color_step(flat, target)) > 3 * loss(color_step(noisy, target)) > 0
    assert loss(color_step(flat, target)) == loss(color_step(flat, target)), "the same step, the same shuffles"
    assert loss(color_step(flat, target)) != loss(color_step(flat, target, index=1))
    for few in (0, 1, 15, 17):
        assert loss(color_step(flat[:few], target[:few])).isfinite()


def test_masked_pixels_do_not_count_in_s3im():
    g = torch.Generator().manual_seed(0)
    found, target = torch.rand(2, 400, 3, generator=g)
    masks = torch.rand(400, generator=g) < 0.5
    found.requires_grad_()
    loss = S3im(weight=1.0)(color_step(found, target, masks))
    (gradient,) = torch.autograd.grad(loss, found)
    assert not gradient[~masks].any() and gradient[masks].any(1).all()
    other = torch.where(masks[:, None], found, 7.0)
    torch.testing.assert_close(S3im(weight=1.0)(color_step(other, target, masks)), loss)
    assert S3im(weight=1.0)(color_step(found, target, torch.zeros_like(masks))) == 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Curvature(1.0), "curvature: render: expected gradients of distances, got none"),
        (Sparsity(1.0), "sparsity: field: expected one that can be asked at points, got none"),
        (FreeSpace(1.0), "free_space: view: expected rays through a distance field, got none"),
        (S3im(1.0), "s3im: render: expected colours, got none"),
        (SurfacePoints(1.0), "surface_points: step: expected points on surfaces, got none"),
    ],
)
def test_a_loss_says_what_it_misses(loss, message):
    with pytest.raises(ValueError, match=message):
        loss(Step(0, None, Points(torch.zeros(2, 3)), Render(Pixels()), Pixels()))
    with pytest.raises(ValueError, match="free_space: target: expected depths or alphas, got none"):
        FreeSpace(1.0)(rays_step(Sphere())[0])
    with pytest.raises(ValueError, match="positions: render: expected samples of rays, got none"):
        _ = rays_step(Sphere())[0].positions


@pytest.fixture(scope="module")
def scene():
    return open_scene("demo", downscale=8)


def test_what_the_data_must_have(scene):
    bare = scene.with_frames(tuple(replace(f, depths=None, alphas=None) for f in scene.frames))
    losses = {"free_space": FreeSpace(1.0)}
    assert needed(losses, scene) == {"depths"}
    with pytest.raises(UserError, match=r"fit: --free-space\.weight: expected depths or alphas in a training view"):
        needed(losses, bare)
    assert needed(losses, bare.with_frames(tuple(replace(f, depths=None) for f in scene.frames))) == frozenset()
    asked, bounds = {"surface_points": SurfacePoints(1.0)}, Aabb.cube()
    for points in (None, torch.full((3, 3), 2.0)):
        with pytest.raises(UserError, match=r"fit: --surface-points\.weight: expected points in the fitted space"):
            known_points(asked, replace(scene, points=points), bounds, torch.device("cpu"))
    some = replace(scene, points=torch.tensor([[0.0, 0, 0], [2.0, 0, 0]]))
    found = known_points(asked, some, bounds, torch.device("cpu"))
    assert found.positions.tolist() == [[0, 0, 0]] and found.normals is None
    assert known_points({}, some, bounds, torch.device("cpu")) is None


ALL = dict(
    s3im=S3im(0.1),
    curvature=Curvature(0.1),
    sparsity=Sparsity(0.01),
    free_space=FreeSpace(0.1),
    surface_points=SurfacePoints(0.1),
)


def test_recipes_have_them_and_resume_to_the_bit(scene):
    """All of them in one fit, stopped and gone on with."""
    vertices = scene.mesh.vertices[::20]
    known = replace(scene, points=vertices, point_normals=scene.mesh.normals[::20])
    config = replace(
        RECIPES["neus"], first=replace(RECIPES["neus"].first, grid_share=0.0), samples_per_step=2048, **ALL
    )
    budget, reports = Budget(steps=6), []
    straight = config.build(known, 1, budget=budget)
    fit(straight, budget, [*config.after_step(), reports.append])
    assert ALL.keys() <= reports[0].terms.keys()
    assert all(reports[0].terms[name] > 0 for name in ALL)
    first = config.build(known, 1, budget=budget)
    fit(first, budget, config.after_step(), stop=lambda: first.step >= 3)
    kept = {k: v.clone() for k, v in first.tensors().items()}
    second = config.build(known, 2)
    second.restore(kept, first.metadata() | {"step": 3})
    fit(second, budget, config.after_step())
    found = second.tensors()
    for name, tensor in straight.tensors().items():
        assert torch.equal(tensor, found[name]), name


def test_off_unless_asked_for():
    for config in (neus.Config(), shape.Config()):
        assert all(getattr(config, name).weight == 0 for name in ALL if hasattr(config, name))


def test_from_the_command_line(tmp_path):
    options = ["--steps", "2", "--downscale", "8", "--samples-per-step", "1024", "--first.grid-share", "0"]
    options += [
        "--curvature.weight",
        "0.1",
        "--sparsity.weight",
        "0.01",
        "--free-space.weight",
        "0.1",
        "--s3im.weight",
        "1",
    ]
    assert main(["fit", "neus", "demo", "--run", str(tmp_path / "run"), *options]) == 0
    assert main(["fit", "neus", "demo", "--run", str(tmp_path / "no"), *options, "--surface-points.weight", "1"]) == 2
