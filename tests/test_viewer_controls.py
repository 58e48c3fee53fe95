"""What a window shows and its controls do: meshes, photographs, channels, crops, recorded paths."""

import io
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from polyfield.apps.errors import UserError
from polyfield.apps.viewer.panel import Panel
from polyfield.apps.viewer.photos import Photos, thumbnail
from polyfield.apps.viewer.recorder import Recorder
from polyfield.geometry import Mesh
from polyfield.geometry.mesh_io import load_mesh, save_mesh

from .viewer_fakes import SCENE_TO_WORLD, Client, photographs, settled, soon, viewer


def test_missing_mesh(tmp_path):
    with pytest.raises(UserError, match="view: --mesh: expected a file, found none"):
        viewer(mesh=tmp_path / "none.glb")


def test_no_mesh(tmp_path):
    (tmp_path / "mesh.ply").write_text("ply\nnonsense")
    with viewer(run=tmp_path) as page, pytest.raises(UserError, match=r"mesh\.ply: expected a whole \.ply file"):
        page.mesh_glb()


def test_mesh_is_moved_to_the_scene_frame(tmp_path):
    import trimesh

    brick = trimesh.creation.box((2.0, 4.0, 6.0)).apply_translation([1, 2, 3])
    mesh = Mesh(torch.tensor(brick.vertices).float(), torch.tensor(brick.faces), colors=torch.full((8, 3), 0.5))
    for name in ("mesh.glb", "mesh.ply"):
        save_mesh(mesh, tmp_path / name)
        with viewer(mesh=tmp_path / name) as page:
            data, colored = page.mesh_glb()
        assert colored
        (tmp_path / "page.glb").write_bytes(data)
        back = load_mesh(tmp_path / "page.glb", up="y")
        assert back.vertices.abs().max(0).values.tolist() == pytest.approx([0.5, 1, 1.5], abs=1e-6)
        assert back.colors.mean() == pytest.approx(0.5, abs=0.01)


# Photographs.


def test_thumbnails():
    colors = torch.zeros(400, 600, 3, dtype=torch.uint8)
    colors[:, 300:] = 200
    small = thumbnail(colors)
    assert small.shape == (100, 150, 3)
    assert small[0, 0].tolist() == [0, 0, 0]
    assert small[0, -1].tolist() == [200, 200, 200]
    assert thumbnail(colors, torch.zeros(400, 600, dtype=torch.uint8)).min() == 255
    assert thumbnail(torch.zeros(1, 1, 3, dtype=torch.uint8)).shape == (1, 1, 3)
    assert thumbnail(torch.zeros(3, 5000, 3, dtype=torch.uint8)).shape == (1, 156, 3)


def test_photos_arrive():
    photos, calls = Photos(photographs), []
    photos.when_ready(lambda: calls.append("early"))
    photos.start()
    assert photos.arrived.wait(20)
    photos.when_ready(lambda: calls.append("late"))
    soon(lambda: sorted(calls) == ["early", "late"])
    assert [p.name for p in photos.photos] == ["000.png", "001.png", "002.png"]
    fov, aspect = photos.photos[0].fov_and_aspect
    assert aspect == pytest.approx(4 / 3)
    assert math.tan(fov / 2) * aspect == pytest.approx(math.tan(0.4), rel=1e-5)


def test_photos_that_are_gone_say_so():
    def gone():
        raise UserError("/data/fox: expected a folder with a data set, found nothing there")

    photos = Photos(gone)
    photos.start()
    assert photos.arrived.wait(20)
    assert photos.failure == "/data/fox: expected a folder with a data set, found nothing there"
    with viewer(open_scene=gone) as page:
        panel = Panel(page, Client(page.server))
        soon(lambda: "No photographs: /data/fox" in panel.photos._note.content)
        assert panel.photos._show.disabled
        panel.close()


# The controls.


@pytest.fixture
def window(tmp_path):
    """A page on an empty run folder, with one window on it."""
    with viewer(run=tmp_path) as page:
        client = Client(page.server)
        panel = Panel(page, client)
        soon(lambda: panel.photos._go.visible)
        yield SimpleNamespace(page=page, client=client, panel=panel, run=tmp_path)
        panel.close()


def sharp(window):
    return settled(window.panel)


@pytest.mark.parametrize("channel", ["Colour", "Depth", "Normals", "Opacity"])
def test_channels(window, channel):
    window.panel._channel.value = channel
    soon(lambda: sharp(window))
    image, options = window.client.pictures[-1]
    assert image.shape == (24, 32, 3)
    assert image.dtype == np.uint8
    assert image[12, 16].max() > 0
    assert image[0, 0].max() == 0
    assert options["depth"] is None, "nothing else is drawn"


def test_nothing_but_the_browsers_own(window):
    window.panel._channel.value = "Nothing"
    soon(lambda: window.client.pictures and window.client.pictures[-1][0] is None)
    window.panel._save_picture()
    assert window.client.notes[-1][0] == "Nothing to save"


def test_detail_bounds_the_picture(window):
    window.client.camera.image_width, window.client.camera.image_height = 1024, 512
    window.panel._detail.value = 128
    soon(lambda: sharp(window) and window.client.pictures[-1][0].shape == (64, 128, 3))


def test_moving_shows_another_view(window):
    soon(lambda: sharp(window))
    before = window.client.pictures[-1][0]
    window.client.camera.position = window.client.camera.position * 0.7
    window.client.moved()
    soon(lambda: sharp(window))
    assert (window.client.pictures[-1][0] > 0).sum() > 1.3 * (before > 0).sum()


def test_crop(window):
    soon(lambda: sharp(window))
    whole = (window.client.pictures[-1][0] > 0).any(-1).sum()
    window.panel._axes[2].value = (-1.0, 0.0)
    window.panel._crop.value = True
    assert window.panel.box.high.tolist() == [1, 1, 0]
    soon(lambda: 0 < (window.client.pictures[-1][0] > 0).any(-1).sum() < 0.9 * whole)
    assert window.client.pictures[-1][1]["depth"] is not None
    assert window.page.server.scene.get_handle_by_name("/crop").points.shape == (12, 2, 3)
    window.panel._crop.value = False
    assert window.panel.box is None
    assert window.page.server.scene.get_handle_by_name("/crop") is None


def test_photographs_as_frusta(window):
    photos, scene = window.panel.photos, window.page.server.scene
    photos._show.value = True
    handles = photos._frusta
    assert [h.visible for h in handles] == [False, True, True], "the one that is looked through would cover the window"
    assert "held-out ones are orange" in photos._note.content
    photos._size.value = 0.3
    assert {h.scale for h in handles} == {0.3}
    photos._look_through(2)
    torch.testing.assert_close(
        torch.tensor(window.client.camera.position).float(), photographs().frames[2].camera.position, rtol=0, atol=1e-6
    )
    assert window.client.camera.fov == pytest.approx(2 * math.atan(math.tan(0.4) * 0.75))
    window.client.moved()
    assert [h.visible for h in handles] == [True, True, False]
    assert "3 of 3: 002.png (train)" in photos._note.content
    for where, index in (("next", 0), ("previous", 2), ("first", 0), ("next", 1)):
        photos._step(where)
        assert photos._at == index
    photos._show.value = False
    assert not any(h.visible for h in handles)
    assert scene.get_handle_by_name("/photos/00001") is not None


def test_mesh_is_drawn_when_asked_for(tmp_path):
    import trimesh

    trimesh.creation.icosphere(1, 1.0).export(tmp_path / "mesh.ply")
    with viewer(run=tmp_path) as page:
        panel = Panel(page, Client(page.server))
        assert page.server.scene.get_handle_by_name("/mesh") is None
        panel._show_mesh.value = True
        assert page.server.scene.get_handle_by_name("/mesh").visible
        panel._show_mesh.value = False
        assert not page.server.scene.get_handle_by_name("/mesh").visible
        panel.close()
        (tmp_path / "mesh.ply").write_text("broken")
        client = Client(page.server)
        panel = Panel(page, client)
        panel._show_mesh.value = True
        assert client.notes[-1][0] == "The mesh cannot be shown"
        panel.close()


def test_saving_a_picture_at_full_size(window):
    window.panel._save_size.value = "1280 x 720"
    window.panel._channel.value = "Normals"
    window.panel._save_picture()
    soon(lambda: window.client.downloads, 60)
    name, content = window.client.downloads[0]
    assert name == "ball_normal_001.png"
    assert Image.open(io.BytesIO(content)).size == (1280, 720)


def test_a_fault_is_shown_on_the_page(window, capsys):
    soon(lambda: sharp(window))
    window.page.stage.renderer.error = RuntimeError("a fault in the field")
    window.panel.refresh()
    soon(lambda: "cannot be painted: a fault in the field" in window.panel._status.content)
    window.panel._save_picture()
    soon(lambda: ("The picture was not saved", "a fault in the field") in window.client.notes)
    assert window.client.downloads == []
    assert "a fault in the field" in capsys.readouterr().err


def test_level_camera(window):
    window.panel._level()
    assert window.client.camera.up_direction.tolist() == [0, 0, 1]


def test_recording_a_path(window):
    from polyfield.apps.camera_path import load_camera_path

    path, recorder = window.panel.path, window.page.recorder
    path._write()
    assert "expected at least one key" in window.client.notes[-1][1]
    path._toggle_play()
    assert window.client.notes[-1][0] == "Nothing to play"
    start = window.client.camera.position.copy()
    for k in range(3):
        window.client.camera.position = start * (1 + 0.2 * k)
        recorder.add(window.panel.pose, *window.panel.size)
    assert path._keys.content.count("°") == 3
    assert path._index.max == 3
    assert window.page.server.scene.get_handle_by_name("/path/key0002") is not None
    assert window.page.server.scene.get_handle_by_name("/path/curve") is not None
    path._seconds.value = 0.5
    path._closed.value = True
    assert (recorder.path.seconds, recorder.path.closed) == (0.5, True)
    path._write()
    assert window.client.notes[-1] == (
        "Camera path saved",
        f"polyfield render {window.run} --path {window.run / 'camera_path.json'}",
    )
    cameras = load_camera_path(window.run / "camera_path.json", 3)
    assert (cameras[0].width, cameras[0].height) == (32, 24)
    expected = torch.tensor(start) * 2 + torch.tensor([1.0, 2, 3])
    torch.testing.assert_close(cameras[0].position, expected.float(), rtol=0, atol=1e-5)
    again = Recorder(window.run / "camera_path.json", SCENE_TO_WORLD)
    assert again.key_pose(2).position == pytest.approx(tuple(start * 1.4), abs=1e-6)
    path._index.value = 1
    path._edit_key("look")
    assert window.client.camera.position == pytest.approx(start, abs=1e-6)
    path._edit_key("remove")
    assert len(recorder.path.keys) == 2
    positions = []
    window.client.flush = lambda: positions.append(window.client.camera.position)
    path._toggle_play()
    assert len(positions) > 2
    assert path._play.label == "Play"
    recorder.clear()
    assert path._keys.content == "no keys yet"
    assert window.page.server.scene.get_handle_by_name("/path/key0000") is None
    path._edit_key("look")


def test_two_windows_record_one_path(window):
    other = Panel(window.page, Client(window.page.server))
    window.panel.path._seconds.value = 12.0
    assert other.path._seconds.value == 12
    window.page.recorder.add(other.pose, 4, 3)
    assert window.panel.path._keys.content == other.path._keys.content
    other.close()
    window.page.recorder.clear()
    assert len(window.page.recorder.changed) == 1


def test_a_path_that_cannot_be_read_is_said_so(tmp_path):
    (tmp_path / "camera_path.json").write_text("{")
    recorder = Recorder(tmp_path / "camera_path.json", SCENE_TO_WORLD)
    assert "expected a camera path" in recorder.trouble
    with viewer(run=tmp_path) as page:
        panel = Panel(page, Client(page.server))
        assert "not read" in panel.path._keys.content
        panel.close()


def test_closed_windows_are_forgotten(window):
    window.panel.close()
    calls = window.page.stage.renderer.calls
    window.panel.refresh()
    window.client.moved()
    window.page.recorder.add(window.panel.pose, 4, 3)
    time.sleep(0.05)
    assert window.page.stage.renderer.calls <= calls + 1
    assert window.page.loop._windows == []
