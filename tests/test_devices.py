"""Fits on another device than the CPU: all is there, the CPU seldom waits for it, runs move from one to the other."""

from dataclasses import replace

import pytest
from polyfield.apps import devices, march_pace
from polyfield.apps.commands.evaluate import photograph
from polyfield.apps.fit import Budget, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.recipes import ngp
from polyfield.apps.viewer.painting import Painting, Stage
from polyfield.datasets.scene import open_scene
from polyfield.fields.encodings import HashGridConfig
from polyfield.fields.networks import MlpConfig
from polyfield.fields.radiance_grid import RadianceGridConfig
from polyfield.geometry import Aabb
from polyfield.renderers.metrics import psnr
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
    exposure=True,
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


def test_everything_is_on_the_device(scene, tmp_path):
    """A fit, its checkpoint, a picture, a mesh and the viewer's painting; and the first step is that of a CPU."""
    there, here, losses = [], build(scene, device=devices.CPU), []
    fit(here, Budget(steps=1), after_step=[lambda report: losses.append(report.terms)])
    with fake_gpu() as waits:
        job = build(scene)
        for step in range(8):
            waits.clear()
            fit(job, Budget(steps=8), [lambda r: losses.append(r.terms)], stop=lambda step=step: job.step > step)
            there.append(list(waits))
            fit(job, Budget(steps=9), TINY.after_step(), stop=lambda step=step: job.step > step + 1)
            job.step = step + 1
        assert all(isinstance(t, Far) for t in (*job.field.parameters(), *job.renderer.buffers(), job.batches.colors))
        assert job.generator.device == job.renderer.generator.device == job.batches.generator.device == DEVICE
        Checkpoints(tmp_path, 1.0).save(job)
        frame = scene.test[0]
        pixels = job.renderer.render(job.field, frame.camera).pixels
        assert 0 < psnr(pixels.colors, photograph(frame, job.renderer.background, DEVICE)) < 60
        stage = Stage(job.field, job.renderer)
        painting = Painting(stage, frame.camera.resized(6, 4), box=Aabb.cube(0.5), normals=True)
        painting.advance(24)
        assert not isinstance(painting.pixels().colors, Far)
    assert losses[1].keys() == losses[0].keys()
    assert there and all(len(found) == 2 for found in there[1:]), there
