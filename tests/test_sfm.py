"""Structure from motion, on photographs whose cameras are known: poses, what is kept, what is refused and why."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from polyfield.apps.__main__ import main
from polyfield.datasets import colmap, photos, transforms_json
from polyfield.datasets.colmap_model import read_model
from polyfield.datasets.scene import LoadOptions, SceneError, open_scene
from polyfield.datasets.sfm import reconstruct as sfm
from polyfield.datasets.sfm.intrinsics import Cameras, Lens, Taken, grouped, read_taken
from polyfield.datasets.sfm.mapping import Mapper
from polyfield.datasets.sfm.pairs import Matching, look_alikes, neighbours
from polyfield.datasets.sfm.reconstruct import SfmOptions, reconstruct

from tests.photo_makers import FOCAL, HEIGHT, WIDTH, around, draw, save, turning, write_photos
from tests.test_colmap import same

QUICK = SfmOptions(max_features=1000)


def silent(*_):
    """Progress that nobody watches."""


def find(root, **options):
    return reconstruct(root, SfmOptions(max_features=1000, **options), silent)


def assert_poses(cameras, truth, tolerance=0.01):
    """Distances between cameras agree up to one scale, and turns from one to the next, within ``tolerance``."""
    got, true = (torch.stack([c.camera_to_world for c in group]).double() for group in (cameras, truth))
    distances, expected = (torch.cdist(p[:, :3, 3], p[:, :3, 3]) for p in (got, true))
    scale = distances.sum() / expected.sum()
    torch.testing.assert_close(distances / scale, expected, atol=tolerance * float(expected.max()), rtol=0)
    turns, expected = (p[:1, :3, :3].transpose(1, 2) @ p[:, :3, :3] for p in (got, true))
    torch.testing.assert_close(turns, expected, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder of six photographs with poses found, its cameras and the report."""
    folder = tmp_path_factory.mktemp("sfm") / "room"
    cameras = around(6)
    write_photos(folder, cameras)
    result, report, known = reconstruct(folder, QUICK, silent)
    assert not known
    assert result == folder / "polyfield"
    return folder, cameras, report


# --- what is found ----------------------------------------------------------------------------------------------------


def test_poses_and_focal_length_are_those_of_the_cameras(room):
    folder, cameras, report = room
    capture = photos.read(folder, LoadOptions())
    assert [s.name for s in capture.shots] == [f"photo_{i:03d}.png" for i in range(6)]
    assert_poses([s.camera for s in capture.shots], cameras)
    for shot in capture.shots:
        assert (shot.camera.width, shot.camera.height) == (WIDTH, HEIGHT)
        assert float(shot.camera.K[0, 0]) == pytest.approx(FOCAL, rel=0.01)
    assert report.registered == report.photographs == 6
    assert report.error < 0.5
    assert report.pairs == report.compared == 15
    assert not report.warnings
    assert report.points == len(read_model(folder / "polyfield/sparse/0").points.ids) > 200


def test_points_have_the_colours_of_the_photographs(room):
    folder, _, _ = room
    capture = photos.read(folder, LoadOptions())
    shot = capture.shots[0]
    pixels = shot.camera.project(capture.points)[0]
    size = pixels.new_tensor([WIDTH, HEIGHT])
    seen = ((pixels >= 0) & (pixels < size)).all(-1)
    at = pixels[seen].long()
    picture = torch.from_numpy(np.asarray(Image.open(shot.image)).copy()).float() / 255
    off = (picture[at[:, 1], at[:, 0]] - capture.point_colors[seen]).abs().mean(-1)
    assert float(off.median()) < 0.05


def test_the_scene_opens_and_holds_out_every_eighth(room):
    scene = open_scene(room[0])
    assert scene.name == "room"
    assert [f.name for f in scene.test] == ["photo_003.png"]  # the ends of a walk show what nothing else does
    assert len(scene.train) == 5
    assert len(scene.points) > 200
    small = open_scene(room[0], downscale=2)
    assert small.frames[0].camera.width == WIDTH // 2


def test_seed_decides(room, tmp_path):
    folder, _, _ = room
    reconstruct(folder, QUICK, silent, tmp_path / "again")
    for part in ("cameras", "images", "points3D"):
        first, second = (p / f"sparse/0/{part}.bin" for p in (folder / "polyfield", tmp_path / "again"))
        assert first.read_bytes() == second.read_bytes()


def test_results_elsewhere_open_as_a_colmap_model(room, tmp_path):
    folder, report, _ = reconstruct(room[0], QUICK, silent, tmp_path / "out")
    assert folder == tmp_path / "out"
    scene = open_scene(folder)
    assert len(scene.frames) == report.registered == 6


def test_global_mapping(room, tmp_path):
    folder, report, _ = reconstruct(room[0], SfmOptions(mapper=Mapper.GLOBAL), silent, tmp_path / "out")
    assert report.registered == 6
    assert_poses([s.camera for s in colmap.read(folder, LoadOptions()).shots], room[1])


def test_cameras_of_their_own_and_other_lenses(room, tmp_path):
    options = SfmOptions(max_features=1000, cameras=Cameras.EACH, lens=Lens.PINHOLE)
    folder, report, _ = reconstruct(room[0], options, silent, tmp_path / "out")
    model = read_model(folder / "sparse/0")
    assert len(report.cameras) == len({i.camera for i in model.images.values()}) == 6
    assert {c.model for c in model.cameras.values()} == {"SIMPLE_PINHOLE"}


@pytest.mark.parametrize("lens", Lens)
def test_every_lens_is_one_of_colmaps(lens):
    import pycolmap

    for count in (3, 40):
        assert pycolmap.Camera.create_from_model_name(0, lens.model(count), 500.0, 640, 480).width == 640


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_results_are_used_again_until_something_changes(tmp_path, monkeypatch):
    write_photos(tmp_path, around(4))
    folder, report, _ = find(tmp_path)
    stages = []
    again, kept, known = reconstruct(tmp_path, QUICK, lambda stage, *_: stages.append(stage))
    assert (again, kept, known, stages) == (folder, report, True, [])
    assert photos.is_posed(tmp_path)
    save(tmp_path / "photo_004.png", draw(around(5)[2]))
    assert not photos.is_posed(tmp_path)
    assert "have changed since; find poses again" in photos.read(tmp_path, LoadOptions()).warnings[0]
    assert find(tmp_path)[1].photographs == 5
    assert not find(tmp_path, seed=1)[2]
    monkeypatch.setattr(sfm, "VERSION", 2)
    assert not photos.is_posed(tmp_path)


def test_what_fails_leaves_what_was_there(tmp_path, monkeypatch):
    write_photos(tmp_path, around(4))
    folder, report, _ = find(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sfm, "reconstruct_model", lambda *_: None)
    with pytest.raises(SceneError, match=r"found no two to begin with \(6 of 6 pairs overlap\); take more photographs"):
        find(tmp_path, seed=5)
    assert sorted(tmp_path.iterdir()) == before
    assert sfm.read_report(folder) == report


def test_a_folder_of_the_user_is_not_replaced(tmp_path):
    write_photos(tmp_path, around(3))
    (tmp_path / "polyfield").mkdir()
    (tmp_path / "polyfield/precious.txt").write_text("mine")
    with pytest.raises(SceneError, match=r"polyfield: expected a free name for the results, found something else"):
        find(tmp_path)
    assert (tmp_path / "polyfield/precious.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path):
    write_photos(tmp_path / "photos", around(3))
    (tmp_path / "file").write_text("")
    with pytest.raises(SceneError, match=r"cannot be written .*; copy the photographs to a folder of your own, or"):
        reconstruct(tmp_path / "photos", QUICK, silent, tmp_path / "file/out")


# --- the command line -------------------------------------------------------------------------------------------------


def test_process_then_inspect(tmp_path, capsys):
    write_photos(tmp_path / "p", around(4))
    assert main(["inspect", str(tmp_path / "p")]) == 2
    assert "expected photographs with poses, found none" in capsys.readouterr().err
    assert main(["process", str(tmp_path / "p"), "--max-features", "1000", "--matching", "exhaustive"]) == 0
    said = capsys.readouterr().out
    assert "poses     4 of 4 photographs registered" in said
    assert "px mean reprojection error" in said
    assert main(["process", str(tmp_path / "p"), "--max-features", "1000", "--matching", "exhaustive"]) == 0
    assert "found before; --again finds them anew" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "p")]) == 0
    assert "photographs, with poses from" in capsys.readouterr().out


def test_fit_finds_poses_by_itself(tmp_path, capsys):
    write_photos(tmp_path / "p", around(5))
    command = ["fit", "ngp", str(tmp_path / "p"), "--run", str(tmp_path / "run"), "--steps", "2", "--downscale", "4"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "p: photographs without poses; finding those first, as polyfield process" in said
    assert "5 of 5 photographs registered" in said
    assert (tmp_path / "p/polyfield/report.json").is_file()
    assert main([*command, "--overwrite"]) == 0
    assert "without poses" not in capsys.readouterr().out


def test_cameras_are_exported_as_they_are(room, tmp_path, capsys):
    folder, _, _ = room
    assert main(["cameras", str(folder), str(tmp_path / "text")]) == 0
    same(read_model(folder / "polyfield/sparse/0"), read_model(tmp_path / "text"))
    assert main(["cameras", str(folder), str(folder / "transforms.json")]) == 0
    try:
        exported = {s.name: s.camera for s in transforms_json.read(folder, LoadOptions()).shots}
        for shot in photos.read(folder, LoadOptions()).shots:
            pose = exported[shot.name].camera_to_world
            torch.testing.assert_close(pose, shot.camera.camera_to_world, atol=1e-9, rtol=0)
    finally:
        for name in ("transforms.json", "points.ply"):
            (folder / name).unlink()


def test_terminating_leaves_no_stack_trace():
    script = (
        "import os, signal; from polyfield.datasets.sfm.reconstruct import _check_library; _check_library();"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--frames", 1, "--frames: expected 2 or more, got 1"), ("--max-size", 3, "--max-size: expected 64 or more")],
)
def test_options_out_of_range(tmp_path, capsys, option, value, message):
    assert main(["process", str(tmp_path), option, str(value)]) == 2
    assert message in capsys.readouterr().err


# --- what cannot work -------------------------------------------------------------------------------------------------


def noise(seed, size=(HEIGHT, WIDTH)):
    """A picture that shares nothing with another seed's."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 255, (size[0] // 4, size[1] // 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def smeared(pixels, length=25):
    """Motion along the rows."""
    padded = np.pad(pixels.astype(np.float64), ((0, 0), (length, 0), (0, 0)), mode="edge").cumsum(1)
    return ((padded[:, length:] - padded[:, :-length]) / length).astype(np.uint8)


def shaken(pixels, length=30):
    """Motion along rows and columns."""
    return smeared(smeared(pixels, length).transpose(1, 0, 2), length).transpose(1, 0, 2)


def test_a_camera_that_only_turned(tmp_path):
    write_photos(tmp_path, turning(5))
    with pytest.raises(SceneError, match=r"expected photographs from several places, got a camera that only turned"):
        find(tmp_path)
    assert not (tmp_path / "polyfield").exists()


def test_the_same_view_again_and_again(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", draw(around(1)[0]))
    with pytest.raises(SceneError, match=r"expected photographs from several places, got the same view 4 times"):
        find(tmp_path)


def test_photographs_without_overlap_stop_before_mapping(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.png", noise(i))
    stages = []
    with pytest.raises(SceneError, match=r"expected photographs that overlap, found nothing in common in 10 pairs of"):
        reconstruct(tmp_path, QUICK, lambda stage, *_: stages.append(stage))
    assert "mapping" not in stages


def test_too_few_matches(tmp_path):
    for i in range(3):
        pixels = noise(i).copy()
        pixels[40:76, 60:96] = noise(99)[40:76, 60:96]
        save(tmp_path / f"{i}.png", pixels)
    with pytest.raises(SceneError, match=r"expected pairs of photographs with 30 matches or more, got \d+ at most; t"):
        find(tmp_path)


def test_motion_blur_is_named(tmp_path):
    for i, view in enumerate(around(5)):
        save(tmp_path / f"{i}.png", shaken(draw(view)))
    with pytest.raises(SceneError, match=r"key points or more, got \d+ in the middle one of 5; they are blurred: hold"):
        find(tmp_path)


def test_a_blurred_one_among_sharp_ones_is_named(tmp_path):
    for i, view in enumerate(around(5)):
        save(tmp_path / f"{i}.png", smeared(draw(view)) if i == 2 else draw(view))
    report = find(tmp_path)[1]
    assert any(w.startswith("1 photographs are blurred: 2.png") for w in report.warnings)
    assert report.registered >= 4


def test_photographs_without_texture(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", np.tile(np.linspace(0, 200 + i, 128).astype(np.uint8)[:, None, None], (1, 160, 3)))
    with pytest.raises(SceneError, match=r"got 0 in the middle one of 3; they "):
        find(tmp_path)


def test_half_of_them_register_and_the_others_are_named(tmp_path):
    write_photos(tmp_path, around(4))
    for i in range(4):
        save(tmp_path / f"strange_{i}.png", noise(i))
    report = find(tmp_path)[1]
    assert (report.registered, report.photographs) == (4, 8)
    assert report.left_out == tuple(f"strange_{i}.png" for i in range(4))
    assert any("4 photographs got no pose and are left out: strange_0.png, strange_1.png" in w for w in report.warnings)
    assert any("4 of 8 photographs overlap with none of the other 4: strange_0.png" in w for w in report.warnings)
    scene = open_scene(tmp_path)
    assert len(scene.frames) == 4
    assert_poses([s.camera for s in photos.read(tmp_path, LoadOptions()).shots], around(4))


# --- which pairs, which cameras ---------------------------------------------------------------------------------------


def test_neighbours_in_time():
    assert neighbours(4, 2, 2) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    steps = {j - i for i, j in neighbours(200, 8, 64)}
    assert steps == {*range(1, 9), 16, 32, 64}


def test_look_alikes_are_of_the_same_place(tmp_path):
    from polyfield.datasets.sfm.features import all_features

    write_photos(tmp_path, around(4))
    names = sorted(p.name for p in tmp_path.iterdir())
    for i in range(4):
        save(tmp_path / f"other_{i}.png", noise(7) if i % 2 else np.roll(noise(7), 20, 1))
    names += [f"other_{i}.png" for i in range(4)]
    features, _ = all_features(tmp_path, names, 1600, 1000, lambda *_: None)
    found = look_alikes(features, 2)
    together = [(i < 4) == (j < 4) for i, j in found]
    assert sum(together) >= len(together) - 1
    assert {(4, 6), (5, 7)} <= set(found)
    assert all(j - i > 2 for i, j in look_alikes(features, 2, apart=2))


@pytest.mark.parametrize("matching", [Matching.SEQUENTIAL, Matching.SIMILAR])
def test_poses_by_other_choices_of_pairs(room, tmp_path, matching):
    _, report, _ = reconstruct(room[0], SfmOptions(max_features=1000, matching=matching), silent, tmp_path / "out")
    assert report.registered == 6


def test_cameras_are_shared_by_size_focal_length_and_maker():
    taken = [Taken(40, 30, 50.0, "a"), Taken(40, 30, 50.1, "a"), Taken(30, 40, 50.0, "a"), Taken(40, 30, 70.0, "a")]
    assert grouped([*taken, Taken(40, 30, 50.0, "b")], Cameras.AUTO) == [0, 0, 1, 2, 3]
    assert grouped(taken, Cameras.EACH) == [0, 1, 2, 3]
    assert grouped(taken[:2], Cameras.ONE) == [0, 0]
    with pytest.raises(SceneError, match=r"--cameras one: expected photographs of one size, got 30 x 40, 40 x 30; use"):
        grouped(taken, Cameras.ONE)


def test_focal_length_from_exif(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 31
    exif[0x010F] = "Maker"
    save(tmp_path / "a.jpg", draw(around(1)[0]), exif=exif)
    taken = read_taken(tmp_path / "a.jpg")
    assert taken.focal == pytest.approx(31 * np.hypot(WIDTH, HEIGHT) / np.hypot(24, 36))
    assert taken.maker == "Maker"
    exif.get_ifd(0x8769)[0xA405] = 0
    save(tmp_path / "b.jpg", draw(around(1)[0]), exif=exif)
    assert read_taken(tmp_path / "b.jpg").focal is None


@pytest.mark.data
@pytest.mark.slow
def test_sceaux(data_root, tmp_path):
    folder, report, _ = reconstruct(
        data_root / "sceaux_sfm", SfmOptions(max_size=800, max_features=1500), silent, tmp_path / "out"
    )
    assert report.registered == 11
    assert "EXIF began it" in report.cameras[0]
    camera = next(iter(read_model(folder / "sparse/0").cameras.values()))
    assert camera.params[0] == pytest.approx(1641.7, rel=0.04)
    assert json.loads((folder / "report.json").read_text())["report"]["registered"] == 11
    assert os.path.samefile(folder / "images", data_root / "sceaux_sfm/images")
