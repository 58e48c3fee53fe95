"""2D Gaussians from end to end on the built-in scene: fits resume to the bit; geometry, meshes, pictures and files."""

from dataclasses import replace

import pytest
import torch
from polyfield.apps.__main__ import main
from polyfield.apps.first_gaussians import FirstGaussians, Source
from polyfield.apps.fit import Budget, fit
from polyfield.apps.fit_reports import Checkpoints
from polyfield.apps.recipes import splat_2d
from polyfield.apps.recipes.splat_classic import ClassicControl
from polyfield.apps.run import open_run
from polyfield.apps.viewer import view_run
from polyfield.apps.viewer.panel import Panel
from polyfield.datasets.scene import open_scene
from polyfield.fields.surfels import LOG_THICKNESS
from polyfield.geometry.mesh_io import load_mesh
from polyfield.geometry.splat_io import load_gaussians, save_gaussians
from polyfield.renderers.losses.depth_distortion import DepthDistortion
from polyfield.renderers.losses.normal_consistency import NormalConsistency

from .test_splat_fit import tensors
from .viewer_fakes import Client, settled, soon

SMALL = replace(
    splat_2d.Config(),
    first=FirstGaussians(source=Source.MESH, count=2000, opacity=0.1, scale=1.0),
    classic=ClassicControl(every=10, threshold=1e-5, min_opacity=0.05, reset_every=0.0),
    sh_degree=1,
    max_gaussians=2600,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    options = ["--steps", "200", "--downscale", "2", "--preview-every", "0", "--max-gaussians", "6000"]
    first = ["--first.count", "5000", "--first.grid-steps", "200"]
    assert main(["fit", "splat_2d", "demo", "--run", str(folder), *options, *first]) == 0
    return folder


def test_resuming_is_as_if_nothing_had_happened(tmp_path):
    scene, budget = open_scene("demo", downscale=4), Budget(steps=50)
    straight = SMALL.build(scene, 1, budget=budget)
    fit(straight, budget, SMALL.after_step())
    first = SMALL.build(scene, 1, budget=budget)
    fit(first, budget, SMALL.after_step(), stop=lambda: first.step >= 23)
    Checkpoints(tmp_path, 1.0).save(first)
    second = SMALL.build(scene, 2)
    second.restore(*Checkpoints(tmp_path, 1.0).load())
    assert second.step == 23 and 2000 < len(second.field) == len(first.field)
    fit(second, budget, SMALL.after_step())
    a, b = tensors(straight), tensors(second)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert (second.field.log_scales[:, 2] == LOG_THICKNESS).all()


def errors(config, scene, budget):
    """Mean errors of normals (1 - cosine) and of depths on the held-out views, and the mean distortion."""
    job = config.build(scene, 0, budget=budget)
    fit(job, budget, config.after_step())
    normals, depths = [], []
    for frame in scene.test:
        pixels = job.renderer.render(job.field, frame.camera, normals=True, median_depths=True).pixels
        both = (pixels.alphas > 0.5) & (frame.depths > 0) & (pixels.depths > 0)
        normals.append((1 - (pixels.normals * frame.normals.float()).sum(-1))[both].mean())
        depths.append((pixels.depths - frame.depths)[both].abs().mean())
    return torch.stack(normals).mean(), torch.stack(depths).mean()


def test_the_two_losses_make_better_normals():
    """Of discs that begin turned anyhow, as the paper's do, after the same number of steps."""
    scene, budget = open_scene("demo", downscale=2), Budget(steps=150)
    config = replace(SMALL, classic=replace(SMALL.classic, every=1000))
    config = replace(config, distortion=DepthDistortion(begin=0.0), normals=NormalConsistency(begin=0.0))
    without = replace(config, distortion=DepthDistortion(0.0), normals=NormalConsistency(0.0))
    with pytest.MonkeyPatch.context() as patch:
        g = torch.Generator().manual_seed(0)
        patch.setattr("polyfield.fields.surfels.turning_z_to", lambda axes: torch.randn(len(axes), 4, generator=g))
        plain, better = errors(without, scene, budget), errors(config, scene, budget)
    assert better[0] < 0.95 * plain[0]
    assert better[1] < 1.05 * plain[1]


def test_verbs(run, tmp_path):
    assert main(["evaluate", str(run)]) == 0
    channels = ["--channels", "color", "depth", "normal", "alpha"]
    assert main(["render", str(run), "--output", str(tmp_path / "r"), "--width", "48", *channels]) == 0
    assert len(list((tmp_path / "r").iterdir())) == 4 * 9
    assert main(["extract", str(run), "--output", str(tmp_path / "mesh.ply"), "--resolution", "64"]) == 0
    assert len(load_mesh(tmp_path / "mesh.ply").faces) > 1000


def test_files_keep_them_flat(run, tmp_path):
    field = open_run(run).field
    save_gaussians(tmp_path / "g.ply", field.gaussians().detach())
    assert main(["convert", str(tmp_path / "g.ply"), str(tmp_path / "g.spz")]) == 0
    read = load_gaussians(tmp_path / "g.spz")
    assert len(read) == len(field)
    assert (read.log_scales.amin(-1) < read.log_scales.amax(-1) - 1).float().mean() > 0.9


def test_the_viewer_opens_it(run):
    with view_run(open_run(run), port=0) as page:
        client = Client(page.server)
        panel = Panel(page, client)
        soon(lambda: settled(panel))
        assert client.pictures[-1][0].std() > 10
        panel.close()
