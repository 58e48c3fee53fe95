"""A file of Gaussians, whoever made it, where commands take a run."""

import numpy as np
import pytest
import torch
from PIL import Image
from polyfield.apps.__main__ import main
from polyfield.apps.run import open_run
from polyfield.apps.splat_file import frame_of, holds_gaussians
from polyfield.apps.viewer import view_run
from polyfield.apps.viewer.cameras import Pose
from polyfield.geometry.gaussian_transforms import transform
from polyfield.geometry.gaussians import Gaussians
from polyfield.geometry.mesh_io import load_mesh
from polyfield.geometry.splat_io import load_gaussians, save_gaussians

from .splat_samples import sample


def ball(count=400, middle=(5.0, -3.0, 2.0), radius=0.7):
    """Small opaque Gaussians of one colour on a sphere."""
    g = torch.Generator().manual_seed(0)
    out = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    quats = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(count, 4)
    sh = torch.tensor([1.0, -1.0, -1.0]).expand(count, 1, 3) / 0.5642
    means = torch.tensor(middle) + radius * out
    return Gaussians(means, quats, torch.full((count, 3), -3.0), torch.full((count,), 6.0), sh)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ball.ply"
    save_gaussians(path, ball())
    return path


def test_it_opens_where_its_gaussians_are(file):
    run = open_run(file, "cpu")
    means = run.field.means.detach()
    assert 0.8 < float(means.norm(dim=1).max()) < 1.1 and not run.has_photographs
    back = transform(run.field.gaussians(), run.asked.facts.matrix)
    read = load_gaussians(file)
    torch.testing.assert_close(back.means, read.means, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.log_scales, read.log_scales, atol=1e-5, rtol=0)
    assert run.asked.facts.up == (0.0, -1.0, 0.0) and open_run(file, "cpu", up="z").asked.facts.up == (0.0, 0.0, 1.0)


def test_what_lies_far_away_does_not_shrink_it():
    near, g = ball(), torch.Generator().manual_seed(1)
    far = Gaussians(near.means + 500 * torch.randn(400, 3, generator=g), *(getattr(near, n) for n in
                    ("quats", "log_scales", "logit_opacities", "sh")))  # fmt: skip
    few = far[torch.arange(40)]
    both = Gaussians(*(torch.cat([getattr(near, n), getattr(few, n)]) for n in near.__dataclass_fields__))
    matrix, cascades = frame_of(both)
    assert float(matrix[0, 0]) < 2 and cascades == 6
    torch.testing.assert_close(matrix[:3, 3].float(), torch.tensor([5.0, -3.0, 2.0]), atol=0.2, rtol=0)
    assert frame_of(near)[1] == 1


def test_rendered(file, capsys):
    assert main(["render", str(file), "--frames", "2", "--width", "64", "--device", "cpu"]) == 0
    pictures = sorted((file.parent / "ball" / "renders").glob("*.png"))
    assert len(pictures) == 2
    for path in pictures:
        picture = np.asarray(Image.open(path)).astype(int)
        assert (picture[32, 32] > [150, -1, -1]).all() and (picture[32, 32, 1:] < 60).all()
        assert not picture[[0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_meshed_from_all_around(file):
    """A closed ball in the file's units; in .glb files +y is up."""
    assert main(["extract", str(file), "--resolution", "48", "--device", "cpu"]) == 0
    mesh = load_mesh(file.parent / "ball" / "mesh.glb", up="-y")
    away = (mesh.vertices - torch.tensor([5.0, -3.0, 2.0])).norm(dim=1)
    assert 0.65 < float(away.mean()) < 0.8 and float((away - 0.72).abs().max()) < 0.2
    assert bool((mesh.colors[:, 0] > mesh.colors[:, 1] + 0.3).float().mean() > 0.95)


def test_the_viewer_shows_its_mesh_where_it_is_and_keeps_a_camera_path(file):
    assert main(["extract", str(file), "--resolution", "32", "--device", "cpu"]) == 0
    viewer = view_run(open_run(file, "cpu"), port=0)
    try:
        glb = file.parent / "shown.glb"
        glb.write_bytes(viewer.mesh_glb()[0])
        viewer.recorder.add(Pose((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -3.0), 0.8), 64, 48)
        saved = viewer.recorder.save()
    finally:
        viewer.stop()
    away = load_mesh(glb, up="y").vertices.norm(dim=1)
    assert 0.8 < float(away.mean()) < 1.1, "in the scene's frame"
    assert saved == file.parent / "ball" / "camera_path.json" and saved.is_file()


def test_a_ply_of_points_is_not_taken_for_gaussians(tmp_path, file):
    points = tmp_path / "points.ply"
    points.write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
                      "end_header\n0 0 0\n")  # fmt: skip
    assert holds_gaussians(file) and not holds_gaussians(points)
    save_gaussians(tmp_path / "small.compressed.ply", ball())
    assert holds_gaussians(tmp_path / "small.compressed.ply")


@pytest.mark.parametrize("name", ["scene.spz", "scene.splat", "scene.sog", "scene.glb"])
def test_every_format_opens(tmp_path, name):
    made = sample(50)
    save_gaussians(tmp_path / name, made)
    assert len(open_run(tmp_path / name, "cpu").field) == 50


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render", "FILE", "--views", "test"], "render: --views test: expected photographs, got a run without any"),
        (["evaluate", "FILE"], "expected a run with its photographs, got a file of Gaussians, which has none"),
        (["render", "missing.ply"], "expected a file of Gaussians, got nothing there"),
        (["view", "cut.ply"], "cut.ply"),
    ],
)
def test_refused(file, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(file.parent)
    (file.parent / "cut.ply").write_bytes(file.read_bytes()[:-100])
    assert main([str(file) if a == "FILE" else a for a in arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert sorted(p.name for p in file.parent.iterdir()) == ["ball.ply", "cut.ply"]
