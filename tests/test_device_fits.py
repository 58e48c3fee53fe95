"""Fits on another device than the CPU: all is there, the CPU seldom waits for it, runs move from one to the other."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from polyfield.apps import devices, march_pace
from polyfield.apps.commands.extract import extract_mesh
from polyfield.apps.exposures import ExposureKind
from polyfield.apps.first_distance import FirstDistance
from polyfield.apps.first_gaussians import FirstGaussians, Source
from polyfield.apps.first_sheet import FirstSheet
from polyfield.apps.fit import Budget, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.images import photograph
from polyfield.apps.recipes import neus, ngp, udf
from polyfield.apps.run import Run, SceneFacts
from polyfield.apps.shape_batches import SamplesConfig
from polyfield.apps.viewer.painting import Painting, Stage
from polyfield.datasets.scene import open_scene
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.networks import MlpConfig
from polyfield.fields.radiance_grid import RadianceGridConfig
from polyfield.geometry import Aabb
from polyfield.renderers.metrics import psnr
from polyfield.renderers.robust import RobustConfig
from polyfield.renderers.volume import MarchConfig

from tests.fake_gpu import DEVICE, Far, fake_gpu

NETWORK = MlpConfig(width=16)
GRID = HashGridConfig(levels=2, log2_size=8, base_resolution=4, finest_resolution=16, half=True)
TINY = replace(
    ngp.Config(),
    field=RadianceGridConfig(GRID, density=NETWORK, color=NETWORK, geometry_features=4, sh_degree=1),
    march=MarchConfig(steps_per_diagonal=64),
    occupancy=ngp.OccupancyConfig(resolution=16, cells=1024),
    samples_per_step=512,
    exposure=ExposureKind.GAIN,
    robust=RobustConfig(outliers=0.1, begin=0.0, until=0.0),
)


@pytest.fixture(scope="module")
def scene():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyfield.datasets.demo.VIEWS", 10)
        patch.setattr("polyfield.datasets.demo.SIZE", 16)
        return open_scene("demo")


@pytest.fixture(autouse=True)
def few_rays(monkeypatch):
    monkeypatch.setattr(march_pace, "MIN_RAYS", 64)


def build(scene, seed=0, device=DEVICE):
    job = TINY.build(scene, seed, device)
    job.batches.rays = job.parts["pace"].least_rays = 64
    return job


def step(job, after=()):
    """One step; returns its loss terms."""
    terms = []
    until = job.step + 1
    fit(job, Budget(steps=100), [lambda r: terms.append(r.terms), *after], stop=lambda: job.step >= until)
    return terms[0]


def test_a_fit_is_all_on_its_device(scene, tmp_path):
    """Steps, a picture, a mesh, the viewer's painting, a checkpoint that goes to a CPU and back."""
    with fake_gpu() as waits:
        job = build(scene)
        tensors = (*job.field.parameters(), *job.field.buffers(), *job.renderer.buffers(), job.batches.colors)
        assert all(isinstance(t, Far) for t in tensors) and job.batches.storage == DEVICE
        generators = (job.generator, job.renderer.generator, job.batches.generator)
        assert all(g.device == DEVICE for g in generators)
        step(job, TINY.after_step())
        waits.clear()
        step(job)
        assert len(waits) == 2, waits  # how many samples were met, and how many of them matter
        Checkpoints(tmp_path, 1.0).save(job)

        frame = scene.test[0]
        pixels = job.renderer.render(job.field, frame.camera).pixels
        found = psnr(pixels.colors, photograph(frame, job.renderer))
        painting = Painting(
            Stage(job.field, job.renderer), frame.camera.resized(6, 4), box=Aabb.cube(0.5), normals=True
        )
        painting.advance(24)
        assert not isinstance(painting.pixels().colors, Far)
        run = Run(
            tmp_path, SimpleNamespace(facts=SceneFacts.of(scene), config=ngp.Config()), job.field, job.renderer, 2, 0.0
        )
        density = job.field.query(torch.rand(99, 3, device=DEVICE)).values
        mesh = extract_mesh(run, resolution=16, level=float(density.median()), components=0)
        assert len(mesh.faces) and not isinstance(mesh.colors, Far)

    here = build(scene, 1, devices.CPU)
    here.restore(*Checkpoints(tmp_path, 1.0).load())
    assert here.step == 2
    pixels = here.renderer.render(here.field, frame.camera).pixels
    assert psnr(pixels.colors, photograph(frame, here.renderer)) == pytest.approx(found, abs=0.1)
    assert all(value < 10 for value in step(here).values())
    Checkpoints(tmp_path, 1.0).save(here)
    with fake_gpu():
        back = build(scene, 2)
        back.restore(*Checkpoints(tmp_path, 1.0).load())
        assert back.step == 3
        step(back)


def test_gaussians_begin_on_a_device_at_a_scene_s_own_points(scene):
    """Photographs, cameras and points stay on the CPU; half of what is asked for fills the holes between the points."""
    points = scene.mesh.vertices[:200]
    opaque = scene.with_frames(tuple(replace(f, alphas=None, mask=None) for f in scene.frames))
    with fake_gpu():
        first = FirstGaussians(source=Source.POINTS, count=2 * len(points), surroundings=0.5)
        gaussians = first.draw(replace(opaque, points=points), 0, 0, DEVICE, Budget(steps=1)).gaussians
        assert isinstance(gaussians.means, Far) and len(points) < len(gaussians.means) <= 2 * len(points)


def test_what_asks_for_no_answer_waits_for_none(scene):
    """Occupancy: observing never, an update for its list of cells and its threshold."""
    with fake_gpu() as waits:
        job = build(scene)
        points, values = torch.rand(50, 3, device=DEVICE), torch.rand(50, device=DEVICE)
        grid = job.renderer.occupancy
        waits.clear()
        grid.observe(points, values)
        assert waits == []
        job.batches.draw()
        assert waits == []
        generator = torch.Generator(DEVICE)
        grid.update(lambda p: p[:, 0].exp(), step=0.1, part=0.1, generator=generator)
        waits.clear()
        grid.update(lambda p: p[:, 0].exp(), step=0.1, part=0.1, generator=generator)
        assert len(waits) == 2, waits


def test_photographs_that_do_not_fit_stay_behind(scene):
    with fake_gpu(free_memory=1000), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
        job = build(scene)
        rays, target, _ = job.batches.draw()
        assert job.batches.storage == devices.CPU and not isinstance(job.batches.colors, Far)
        assert all(isinstance(t, Far) for t in (rays.origins, rays.camera_indices, target.colors, target.alphas))
    other, wanted, _ = build(scene, device=devices.CPU).batches.draw()
    assert torch.equal(rays.directions.near, other.directions) and torch.equal(target.colors.near, wanted.colors)


def test_the_fake_gpu_is_strict():
    with fake_gpu() as waits:
        far = torch.ones(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            far + torch.ones(3)
        assert float((far + 1).sum()) == 6 and far[far > 0].shape == (3,) and len(waits) == 2


# ---- where distances begin ------------------------------------------------------------------------------------------

SIZES = dict(network=NETWORK, color=NETWORK, geometry_features=4, sh_degree=1)
FEW = SamplesConfig(batch=256, first=512, most=512, part=256)
DISTANCES = {
    name: replace(
        config,
        field=replace(config.field, grid=replace(GRID, half=False), **SIZES),
        march=TINY.march,
        occupancy=TINY.occupancy,
        samples_per_step=512,
        first=first,
    )
    for name, config, first in (
        ("udf", udf.Config(), FirstSheet(points=1000, radius=0.3, samples=FEW)),
        ("neus", neus.Config(), FirstDistance(resolution=24, views=4, view_size=16, steps=4, points=512)),
    )
}


@pytest.fixture(scope="module")
def learned(scene):
    """What a quick fit knows in the end."""
    config = replace(TINY, samples_per_step=4096)
    job = config.build(scene)
    fit(job, Budget(steps=200), config.after_step())
    return job.tensors(), {"step": job.step, **job.metadata()}


@pytest.fixture
def no_quick_fit(learned, monkeypatch):
    def known_already(scene, seed, device, budget, robust):
        job = build(scene, seed, device)
        job.restore(*learned)
        job.renderer.eval()
        return job

    for module in ("first_sheet", "first_distance"):
        monkeypatch.setattr(f"polyfield.apps.{module}.quick_fit", known_already)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_is_taught_on_a_device(scene, no_quick_fit, tmp_path, name):
    """As it is on the CPU; known distances go with the fit, count in each step and are waited for in none."""
    config, at = DISTANCES[name], 2 * torch.rand(300, 3) - 1
    on_cpu = config.build(scene, 0, devices.CPU, Budget(steps=40))
    wanted = on_cpu.field.distance(at).detach()
    unfitted = config.build(scene, 0, devices.CPU).field.distance(at).detach()
    with fake_gpu() as waits:
        job = config.build(scene, 0, DEVICE, Budget(steps=40))
        found = job.field.distance(at.to(DEVICE)).near.detach()
        job.batches.rays = job.parts["pace"].least_rays = 64
        step(job, config.after_step())
        waits.clear()
        terms = step(job)
        # How many samples were met, how many of them matter, and how many are these with those beside them.
        assert len(waits) == 2 + job.renderer.opacity.needs_neighbors, waits
        assert name == "neus" or (isinstance(job.parts["known"].rows, Far) and terms["known"] > 0)
        Checkpoints(tmp_path, 1.0).save(job)
    assert float((wanted - unfitted).abs().mean()) > 0.03
    assert float((found - wanted).abs().mean()) < 0.1 * float((wanted - unfitted).abs().mean())
    back = config.build(scene, 1, devices.CPU)
    back.restore(*Checkpoints(tmp_path, 1.0).load())
    if name == "udf":
        rows = on_cpu.parts["known"].rows
        assert back.parts["known"].rows.shape == rows.shape == (512, 4)
        torch.testing.assert_close(back.parts["known"].rows, rows, atol=0.02, rtol=0)
    back.batches.rays = back.parts["pace"].least_rays = 64
    assert all(value < 10 for value in step(back).values())
