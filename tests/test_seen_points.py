"""Depths from the points of structure from motion: whose they are, where they fall, what they weigh, what fits gain."""

import math
from dataclasses import replace

import pytest
import torch
from polyfield.apps.fit import Budget, fit
from polyfield.apps.recipes import neus, ngp, splat
from polyfield.apps.supervision import with_point_depths
from polyfield.datasets import colmap
from polyfield.datasets.capture import build
from polyfield.datasets.scene import LoadOptions, open_scene
from polyfield.datasets.seen_points import SeenPoints
from polyfield.datasets.undistort import straightened
from polyfield.geometry import Camera
from polyfield.renderers.losses.depth import Depth

from .capture_writers import write_colmap
from .test_fit import SMALL as SMALL_GRID
from .test_splat_fit import SMALL as SMALL_SPLAT
from .test_supervision import depth_errors, depth_step, without

LOSSES = {"depth": Depth(weight=0.1)}


def test_what_a_model_says_of_each_photograph(tmp_path):
    """Tracks name the images; bad points are left out; a pixel's depth is the distance to the point there."""
    written = write_colmap(tmp_path)
    model = colmap.read_model(tmp_path / "sparse/0")
    options = LoadOptions(hold_out=0)
    capture = colmap.read(tmp_path, options)
    mean = float(model.points.errors[colmap.trusted(model.points)].mean())
    offsets, tracks = model.points.offsets, model.points.tracks
    for number, image in model.images.items():
        shot = next(s for s in capture.shots if s.name == image.name)
        wanted = [i for i in range(3, 40) if number in tracks[offsets[i] : offsets[i + 1], 0]]
        if not wanted:
            assert shot.seen is None
            continue
        torch.testing.assert_close(shot.seen.positions, torch.from_numpy(model.points.positions[wanted]))
        errors = torch.from_numpy(model.points.errors[wanted])
        torch.testing.assert_close(shot.seen.weights, (-(errors / mean).square()).exp())
    assert sum(shot.seen is not None for shot in capture.shots) == 3
    assert len(written.points) == 37
    scene = build(capture, options, tmp_path)
    for made in (scene, straightened(scene), build(capture, replace(options, downscale=2), tmp_path)):
        told = with_point_depths(LOSSES, made)
        for frame in (f for f in told.train if f.seen is not None):
            seen, camera = frame.seen.positions, frame.camera
            pixels, _ = camera.project(seen)
            shown = ((pixels >= 0) & (pixels < pixels.new_tensor([camera.width, camera.height]))).all(-1)
            assert 0 < int((frame.depths > 0).sum()) <= int(shown.sum())
            x, y = pixels[shown].long().unbind(-1)
            distance = (seen[shown] - camera.position).norm(dim=-1)
            assert (frame.depths[y, x] <= distance + 1e-5).all(), "the nearest of those in a pixel"
            assert int(torch.isclose(frame.depths[y, x], distance).sum()) >= int((frame.depths > 0).sum())
            assert torch.equal(frame.depths > 0, frame.depth_weights > 0)


def test_of_several_points_in_a_pixel_the_nearest():
    camera = Camera.perspective(8, 8, 1.0, torch.eye(4))
    places = torch.tensor([[0.01, 0.01, 4.0], [0.01, 0.01, 2.0], [0.01, 0.01, 3.0], [0.0, 0.0, -1.0], [9.0, 0.0, 1.0]])
    depths, weights = SeenPoints(places, torch.tensor([0.9, 0.2, 0.8, 0.7, 0.6])).depths(camera)
    assert int((depths > 0).sum()) == 1
    assert float(depths[4, 4]) == pytest.approx(2.0, abs=1e-4) and float(weights[4, 4]) == pytest.approx(0.2)
    none, _ = SeenPoints(torch.zeros(0, 3), torch.zeros(0)).depths(camera)
    assert not none.any()


def test_weights_scale_errors():
    step = depth_step(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.2]))
    step = replace(step, target=replace(step.target, depth_weights=torch.tensor([1.0, 0.5])))
    assert float(Depth(weight=2.0)(step)) == pytest.approx(2 * (0.5 + 0.1) / 2)


@pytest.fixture(scope="module")
def scene():
    """The demo, which knows 400 points of its surface by the views that see them, but no depth maps."""
    full = open_scene("demo", downscale=4)
    vertices = full.mesh.vertices
    chosen = vertices[torch.randperm(len(vertices), generator=torch.Generator().manual_seed(0))[:1500]]
    frames = []
    for frame in full.frames:
        pixels, _ = frame.camera.project(chosen)
        x, y = pixels.long().clamp(0, frame.camera.width - 1).unbind(-1)
        distance = (chosen - frame.camera.position).norm(dim=-1)
        seen = chosen[(frame.depths[y, x] - distance).abs() < 0.02]
        frames.append(replace(frame, seen=SeenPoints(seen, torch.ones(len(seen)))))
    return full.with_frames(tuple(frames))


def test_maps_of_depths_come_first(scene, capsys):
    assert with_point_depths(LOSSES, scene) is scene
    bare = without(scene, "depths")
    assert with_point_depths({}, bare) is bare, "nobody asks"
    told = with_point_depths(LOSSES, bare)
    assert "demo: depths of" in (said := capsys.readouterr().out) and "structure from motion in" in said
    assert all(frame.depths is None for frame in told.test)
    for recipe in (ngp, splat, neus):
        job = recipe.Config(depth=Depth(weight=0.1)).build(bare)
        _, target, _ = job.batches.draw()
        assert bool((target.depth_weights[target.depths > 0] == 1).all())


@pytest.mark.parametrize(("config", "weight", "share"), [(SMALL_GRID, 1.0, 0.85), (SMALL_SPLAT, 1.0, 0.97)])
def test_a_fit_of_few_views_gains(scene, config, weight, share):
    """Median error of depths on held-out views, with the points' depths and without."""
    few = [f.name for f in scene.train[:: math.ceil(len(scene.train) / 6)]]
    known = scene.with_frames(tuple(f for f in scene.frames if f.name in few) + scene.test)
    budget, found = Budget(steps=150), []
    for depth in (Depth(), Depth(weight=weight)):
        made = replace(config, depth=depth)
        job = made.build(without(known, "depths"), budget=budget)
        fit(job, budget, made.after_step())
        found.append(depth_errors(job, scene, views=8))
    assert found[1] < share * found[0], found
