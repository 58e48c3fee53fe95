"""`polyfield inspect` and `polyfield cameras`, and the scene's frame where poses went wrong."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from polyfield.apps import __main__
from polyfield.apps.commands.inspect import warnings
from polyfield.apps.errors import UserError
from polyfield.apps.run import open_run
from polyfield.datasets.normalize import place_capture, up_direction
from polyfield.datasets.scene import open_scene
from polyfield.geometry import Camera
from polyfield.geometry.transforms import look_at, rigid

from tests.capture_writers import CENTER, UP, WRITERS, truth, write_colmap, write_neus, write_panoramas


def lines(capsys) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        found.setdefault(line[:9].strip(), []).append(line[10:])
    return found


def test_inspect_says_what_is_there(tmp_path, capsys):
    write_colmap(tmp_path / "shoe")
    picture = tmp_path / "cameras.png"
    assert __main__.main(["inspect", str(tmp_path / "shoe"), "--output", str(picture)]) == 0
    said = lines(capsys)
    assert said["scene"] == ["shoe"]
    assert said["format"][0].startswith("COLMAP model in")
    assert said["images"] == ["9: 6 of 24x20, 3 of 20x24"]
    assert said["splits"] == ["7 train, 2 test (every 8th held out)"]
    assert "2 cameras, 9 of opencv; fx 26.00, fy 27.00, centre (12.70, 9.60) px" in said["lens"][0]
    assert said["points"] == ["37"]
    assert any("3 of 40 points left out" in w for w in said["warning"])
    assert any("7 photographs to fit are few" in w for w in said["warning"])
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    blue = (np.abs(pixels - (40, 90, 200)).sum(-1) < 30).sum()
    orange = (np.abs(pixels - (225, 110, 20)).sum(-1) < 30).sum()
    assert blue > orange > 100, "frusta of 7 and of 2 cameras"


def test_inspect_counts_masks_and_depths(tmp_path, capsys):
    write_neus(tmp_path / "a")
    assert __main__.main(["inspect", str(tmp_path / "a")]) == 0
    assert lines(capsys)["masks"] == ["9 of 9, 52% of their pixels count"]
    assert __main__.main(["inspect", str(tmp_path / "a"), "--masks", "alpha"]) == 0
    said = lines(capsys)
    assert (said["masks"], said["alpha"]) == (["none"], ["yes"])
    WRITERS["polycam"][0](tmp_path / "b")
    assert __main__.main(["inspect", str(tmp_path / "b"), "--downscale", "1"]) == 0
    assert lines(capsys)["depths"][0].startswith("9 of 9, from ")


def test_inspect_draws_panoramas(tmp_path, capsys):
    write_panoramas(tmp_path / "a")
    assert __main__.main(["inspect", str(tmp_path / "a"), "--output", str(tmp_path / "p.png")]) == 0
    assert lines(capsys)["lens"] == ["1 camera, 9 of equirectangular"]
    assert Image.open(tmp_path / "p.png").size[0] == 1600


def test_inspect_of_nothing(tmp_path, capsys):
    assert __main__.main(["inspect", str(tmp_path / "none")]) == 2
    assert "expected a folder with a data set, found nothing there" in capsys.readouterr().err


def test_depths_of_other_sizes_are_looked_up_along_the_axis(tmp_path):
    for name in ("polycam", "scannet"):
        WRITERS[name][0](tmp_path / name)
        scene = open_scene(tmp_path / name)
        for frame in scene.frames[:3]:
            along = frame.camera.directions()[:, 2].reshape(frame.depths.shape)
            z = frame.depths * along * float(scene.scene_to_world[0, 0])
            known = frame.depths > 0
            assert float(known.float().mean()) > 0.85
            torch.testing.assert_close(z[known], torch.full_like(z[known], 3.5), atol=1e-3, rtol=0)


def test_cameras_refuses_what_exists_and_what_has_no_files(tmp_path, capsys):
    write_colmap(tmp_path / "a")
    out = tmp_path / "a/transforms.json"
    assert __main__.main(["cameras", str(tmp_path / "a"), str(out)]) == 0
    assert len(json.loads(out.read_text())["frames"]) == 9
    assert __main__.main(["cameras", str(tmp_path / "a"), str(out)]) == 2
    assert "exists; replace it with --overwrite" in capsys.readouterr().err
    assert __main__.main(["cameras", str(tmp_path / "a"), str(out), "--overwrite"]) == 0
    assert __main__.main(["cameras", "demo", str(out)]) == 2
    assert "cameras: DATA: expected a data set with files of its own, got demo" in capsys.readouterr().err


def test_cameras_of_panoramas_are_none_of_colmaps(tmp_path, capsys):
    write_panoramas(tmp_path / "a")
    assert __main__.main(["cameras", str(tmp_path / "a"), str(tmp_path / "out")]) == 2
    assert "expected lenses that COLMAP knows, got EQUIRECTANGULAR; write transforms.json" in capsys.readouterr().err
    assert __main__.main(["cameras", str(tmp_path / "a"), str(tmp_path / "a/t.json")]) == 0
    assert open_scene(tmp_path / "a/t.json").frames[0].camera.model.value == "equirectangular"


def test_a_run_remembers_what_its_masks_mean(tmp_path):
    write_neus(tmp_path / "a")
    options = ["--steps", "2", "--preview-every", "0", "--device", "cpu", "--run", str(tmp_path / "run")]
    assert __main__.main(["fit", "ngp", str(tmp_path / "a"), "--masks", "alpha", *options]) == 0
    assert open_run(tmp_path / "run", "cpu").scene().has_alpha
    config = tmp_path / "run/config.json"
    content = json.loads(config.read_text())
    assert content.pop("masks") == "alpha"
    config.write_text(json.dumps(content))
    assert open_run(tmp_path / "run", "cpu").scene().frames[0].mask is not None, "as runs had it before"
    config.write_text(json.dumps({**content, "masks": "grey"}))
    with pytest.raises(UserError, match=r"config.json: masks: expected one of ignore, alpha, .*, got 'grey'"):
        open_run(tmp_path / "run", "cpu")


# --- the frame --------------------------------------------------------------------------------------------------------


def moved(camera: Camera, position: list[float]) -> Camera:
    pose = look_at(torch.tensor(position).double(), torch.tensor([0.0, 0.0, 1e4]).double(), UP.roll(1))
    return Camera(camera.K, pose, camera.width, camera.height)


def test_cameras_that_went_astray_do_not_move_the_frame():
    cameras = truth(count=20)
    clean = place_capture(cameras)
    astray = place_capture([*cameras, moved(cameras[0], [900.0, 50.0, -300.0]), moved(cameras[0], [-50.0, 4e3, 1.0])])
    torch.testing.assert_close(astray.center, clean.center)
    assert astray.half == pytest.approx(clean.half)
    assert float((clean.center - CENTER).norm()) < 0.2


def test_forward_facing_frames_do_not_follow_a_stray_camera():
    ahead = torch.eye(3, dtype=torch.float64)
    cameras = []
    for i in range(20):
        pose = rigid(ahead, torch.tensor([i % 5 * 0.3, i // 5 * 0.3, 0.0]).double())
        cameras.append(Camera(truth()[0].K, pose, 24, 20))
    clean = place_capture(cameras)
    stray = Camera(cameras[0].K, rigid(ahead, torch.tensor([500.0, 0.0, 0.0]).double()), 24, 20)
    torch.testing.assert_close(place_capture([*cameras, stray]).center, clean.center)


def test_up_is_across_the_horizons():
    """From one side and above, cameras' upward axes lean; a photograph taken on end counts little."""
    found = []
    for angle in torch.linspace(-1.2, 1.2, 15).tolist():
        eye = torch.tensor([4 * np.cos(angle), 4 * np.sin(angle), 3.0]).double()
        found.append(look_at(eye, torch.zeros(3).double(), UP))
    on_end = found[3].clone()
    on_end[:3, 0], on_end[:3, 1] = found[3][:3, 1], -found[3][:3, 0]
    up = up_direction(torch.stack([*found, on_end]))
    assert float(up @ UP) > 0.9999
    mean = torch.nn.functional.normalize(-torch.stack(found)[:, :3, 1].mean(0), dim=0)
    assert float(mean @ UP) < 0.97
    same_way = torch.stack([found[0]] * 4)
    torch.testing.assert_close(up_direction(same_way), -found[0][:3, 1])


def test_warnings_name_stray_and_upside_down_cameras(tmp_path):
    scene = open_scene(write_colmap(tmp_path).root)
    first = scene.frames[0]
    pose = first.camera.camera_to_world.clone()
    pose[:3, :2] *= -1
    turned = Camera(first.camera.K, pose, first.camera.width, first.camera.height)
    pose = first.camera.camera_to_world.clone()
    pose[:3, 3] += 300
    away = Camera(first.camera.K, pose, first.camera.width, first.camera.height)
    frames = [type(first)(n, c, first.colors) for n, c in (("turned", turned), ("away", away))]
    said = " ".join(warnings(scene.with_frames((*scene.frames, *frames))))
    assert "1 cameras lie far from all others: away" in said
    assert "1 cameras are upside down: turned" in said
