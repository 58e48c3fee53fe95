"""The viewer: addresses, cameras, crop boxes, painting in pieces, pace, turns with a fit, controls, the page itself."""

import io
import itertools
import math
import socket
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from polyfield.apps.commands.render import Channel
from polyfield.apps.errors import UserError
from polyfield.apps.viewer.address import check_address, is_local, wide_warning
from polyfield.apps.viewer.cameras import WIDEST, browser_camera, pose_of, to_browser
from polyfield.apps.viewer.guard import guarded, refusal
from polyfield.apps.viewer.history import History
from polyfield.apps.viewer.loop import Loop, Window
from polyfield.apps.viewer.pace import LADDER, Pace, reduced, sharper
from polyfield.apps.viewer.painting import Painting
from polyfield.apps.viewer.panel import Panel, depth_for_browser, png_bytes
from polyfield.apps.viewer.photos import Photos, thumbnail
from polyfield.apps.viewer.progress import FitProgress, clock
from polyfield.apps.viewer.recorder import Recorder
from polyfield.apps.viewer.turns import Owner, Turns
from polyfield.geometry import Aabb, Camera, CameraModel, Mesh, Pixels, Rays
from polyfield.geometry import transforms as tf
from polyfield.geometry.mesh_io import load_mesh, save_mesh
from polyfield.geometry.rays import clip_to_box

from .viewer_fakes import SCENE_TO_WORLD, Client, Gate, camera, look, photographs, settled, soon, stage, viewer

BOX = Aabb(torch.tensor([-0.3, -0.4, -0.2]), torch.tensor([0.5, 0.1, 0.6]))


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


# Addresses.


def test_port_in_use(taken):
    message = rf"^view: port: expected a free port, got {taken} \(in use\); choose another with --port$"
    with pytest.raises(UserError, match=message):
        check_address("127.0.0.1", taken)
    with pytest.raises(UserError, match=message):
        viewer(port=taken)


@pytest.mark.parametrize("port", [-1, 65536])
def test_port_out_of_range(port):
    with pytest.raises(UserError, match=rf"^view: port: expected 0 to 65535, got {port}; choose another with --port$"):
        check_address("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_host_of_another_machine(host):
    with pytest.raises(UserError, match=r"^view: host: expected an address of this machine, got .*; use 127\.0\.0\.1$"):
        check_address(host, 0)


def test_free_port_is_left_free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


def test_opening_wider_warns(capsys):
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        assert is_local(host)
        assert wide_warning(host) is None
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        warning = wide_warning(host)
        assert warning is not None
        assert host in warning
        assert "no password" in warning
    with viewer(host="0.0.0.0"):
        assert "warning: view: host: 0.0.0.0 lets every machine" in capsys.readouterr().err
    with viewer():
        assert capsys.readouterr() == ("", "")


# The page.


def test_page_answers_on_this_machine_only_and_stops():
    with viewer() as page:
        assert page.url.startswith("http://127.0.0.1:")
        port = int(page.url.rsplit(":", 1)[1])
        with urllib.request.urlopen(page.url, timeout=20) as answer:
            assert answer.status == 200
            assert b"<html" in answer.read().lower()
        thread = page.loop._thread
        assert thread.is_alive()
    assert not thread.is_alive()
    check_address("127.0.0.1", port)
    page.stop()


OURS = [
    ("localhost:8080", None, "127.0.0.1"),
    ("localhost:8080", "http://localhost:8080", "127.0.0.1"),
    ("LOCALHOST:9000", "http://localhost:9000", "127.0.0.1"),  # ssh -L 9000:127.0.0.1:8080
    ("127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1"),
    ("127.0.0.1", "http://127.0.0.1:80", "127.0.0.1"),
    ("[::1]:8080", "http://[::1]:8080", "::1"),
    ("localhost", "https://localhost", "localhost"),
    ("192.168.0.7:8080", "http://192.168.0.7:8080", "0.0.0.0"),
    ("192.168.0.7:8080", "http://192.168.0.7:8080", "192.168.0.7"),
    ("[fe80::1]:8080", "http://[fe80::1]:8080", "::"),
    ("workstation:8080", "http://workstation:8080", "0.0.0.0"),
    ("workstation.local:8080", "http://workstation.local:8080", "0.0.0.0"),
    ("gpu.lab.example:8080", "http://gpu.lab.example:8080", "GPU.lab.example"),
]
FOREIGN = [
    ("evil.example:8080", "http://evil.example:8080", "127.0.0.1"),  # rebound to this machine
    ("evil.example:8080", None, "127.0.0.1"),
    ("evil.example:8080", "http://evil.example:8080", "0.0.0.0"),
    ("localhost.evil.example:8080", None, "127.0.0.1"),
    ("workstation:8080", None, "127.0.0.1"),
    ("192.168.0.7:8080", None, "127.0.0.1"),
    ("localhost:8080", "https://evil.example", "127.0.0.1"),  # another page of the same browser
    ("localhost:8080", "http://localhost:3000", "127.0.0.1"),
    ("localhost:8080", "http://127.0.0.1:8080", "127.0.0.1"),
    ("localhost:8080", "null", "127.0.0.1"),
    ("localhost:8080", "", "127.0.0.1"),
    ("localhost:8080", "file://", "127.0.0.1"),
    ("192.168.0.7:8080", "https://evil.example", "0.0.0.0"),
    ("evil.example@localhost:8080", None, "127.0.0.1"),
    ("localhost:port", None, "127.0.0.1"),
    ("[::1", None, "127.0.0.1"),
    ("", None, "127.0.0.1"),
]


@pytest.mark.parametrize(("host", "origin", "bound"), OURS)
def test_requests_of_the_own_page_pass(host, origin, bound):
    assert refusal([host], [] if origin is None else [origin], bound) is None


@pytest.mark.parametrize(("host", "origin", "bound"), FOREIGN)
def test_requests_of_other_pages_are_refused(host, origin, bound):
    assert "open" in refusal([host], [] if origin is None else [origin], bound)


def test_requests_without_one_host_are_refused():
    assert "expected one Host header" in refusal([], [], "127.0.0.1")
    assert "expected one Host header" in refusal(["localhost", "evil.example"], [], "127.0.0.1")
    assert "not the viewer's own" in refusal(
        ["localhost:1"], ["http://localhost:1", "http://evil.example"], "localhost"
    )


def test_the_websocket_is_for_the_own_page_alone(capsys):
    import viser
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    def first_message(port, host, origin):
        talk = socket.create_connection(("127.0.0.1", port))
        options = dict(sock=talk, origin=origin, subprotocols=[f"viser-v{viser.__version__}"])
        with connect(f"ws://{host}:{port}", **options) as websocket:
            return websocket.recv(timeout=20)

    with viewer() as shown:
        port = shown.server.get_port()
        assert first_message(port, "localhost", f"http://localhost:{port}")
        assert first_message(port, "127.0.0.1", None)
        for host, origin in (
            ("localhost", "https://evil.example"),
            ("localhost", "null"),
            ("evil.example", f"http://evil.example:{port}"),
        ):
            with pytest.raises(InvalidStatus) as refused:
                first_message(port, host, origin)
            assert refused.value.response.status_code == 403
        request = urllib.request.Request(f"http://127.0.0.1:{port}", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403") as error:
            urllib.request.urlopen(request, timeout=20)
        assert b"open the page as localhost" in error.value.read()
    assert "warning" not in capsys.readouterr().err


def test_a_server_that_cannot_be_guarded_is_told(capsys):
    with guarded("127.0.0.1"):
        pass
    assert "warning: view: viser: expected a version whose server can be guarded" in capsys.readouterr().err


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


# Cameras.


def random_poses(count):
    generator = torch.Generator().manual_seed(3)
    quats = torch.randn(count, 4, generator=generator)
    return tf.rigid(tf.quaternion_to_matrix(quats), torch.randn(count, 3, generator=generator))


def test_browser_camera_there_and_back():
    for pose in random_poses(5):
        there = pose_of(pose, 0.9)
        back = browser_camera(there.wxyz, there.position, there.fov, 640, 360)
        torch.testing.assert_close(back.camera_to_world, pose, rtol=0, atol=1e-5)
        again = to_browser(back, 640 / 360)
        assert again.fov == pytest.approx(0.9, abs=1e-6)


def test_same_axes_as_the_browser():
    """viser says: look along +z, up is -y; fov is vertical. So a point in the middle of the top edge is there."""
    import viser.transforms

    pose = pose_of(random_poses(1)[0], 0.7)
    rotation = viser.transforms.SO3(np.array(pose.wxyz)).as_matrix()
    point = np.array(pose.position) + rotation @ np.array([0.0, -math.tan(0.35), 1.0]) * 3
    pixel, z_depth = browser_camera(pose.wxyz, pose.position, pose.fov, 80, 60).project(
        torch.tensor(point[None]).float()
    )
    torch.testing.assert_close(pixel, torch.tensor([[40.0, 0.0]]), rtol=0, atol=1e-3)
    assert float(z_depth) == pytest.approx(3, abs=1e-5)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 4 / 3, 3.0])
def test_whole_photograph_is_in_the_window(aspect):
    photo = camera(320, 240)
    pose = to_browser(photo, aspect)
    window = browser_camera(pose.wxyz, pose.position, pose.fov, round(600 * aspect), 600)
    corners = torch.tensor([[0.0, 0.0], [320, 0], [0, 240], [320, 240]])
    rays = photo.rays(corners)
    pixels, _ = window.project(rays.at(torch.ones(4)))
    low, high = pixels.min(0).values, pixels.max(0).values
    assert (low >= -0.5).all()
    assert (high <= torch.tensor([window.width, window.height]) + 0.5).all()
    assert (low.abs() < 0.5).any(), "and no smaller than it must be"


def test_lenses_that_see_more_than_a_window():
    K, pose = camera(64, 48).K, torch.eye(4)
    wide = Camera(K * torch.tensor([[0.2], [0.2], [1]]), pose, 64, 48, CameraModel.FISHEYE, torch.zeros(4))
    assert 1.0 < to_browser(wide, 1.0).fov <= WIDEST
    assert to_browser(Camera.equirectangular(64, 32, pose), 2.0).fov == pytest.approx(WIDEST)
    assert to_browser(Camera.perspective(64, 48, 3.0, pose), 0.1).fov == pytest.approx(WIDEST)


# The crop box.


def rays_of(origins, directions, near=0.0, far=math.inf):
    origins, directions = torch.tensor(origins), torch.tensor(directions)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    count = len(origins)
    return Rays(origins, directions, torch.full((count,), near), torch.full((count,), far))


def test_crop_closed_form():
    cube = Aabb.cube(1.0)
    through, inside, missed, behind, along_outside, along_inside, edge = range(7)
    rays = rays_of(
        [[-3.0, 0, 0], [0.0, 0, 0], [-3.0, 2, 0], [3.0, 0, 0], [-3.0, 1.5, 0], [-3.0, 0.5, -0.5], [-2.0, -2, 0]],
        [[1.0, 0, 0], [0.0, 1, 0], [1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [1.0, 1, 0]],
    )
    cut = clip_to_box(rays, cube)
    assert (float(cut.near[through]), float(cut.far[through])) == (2, 4)
    assert (float(cut.near[inside]), float(cut.far[inside])) == (0, 1)
    assert (float(cut.near[along_inside]), float(cut.far[along_inside])) == (2, 4)
    assert float(cut.near[edge]) == pytest.approx(math.sqrt(2))
    for ray in (missed, behind, along_outside):
        assert cut.near[ray] == cut.far[ray] == rays.near[ray]


def test_crop_keeps_near_and_far():
    rays = rays_of([[-3.0, 0, 0]] * 2, [[1.0, 0, 0]] * 2, near=2.5, far=3.0)
    cut = clip_to_box(rays, Aabb.cube(1.0))
    assert cut.near.tolist() == [2.5, 2.5]
    assert cut.far.tolist() == [3, 3]
    rays = rays_of([[-3.0, 0, 0]], [[1.0, 0, 0]], near=5.0)
    cut = clip_to_box(rays, Aabb.cube(1.0))
    assert cut.near.tolist() == cut.far.tolist() == [5]


def test_crop_is_what_a_mask_would_be():
    generator = torch.Generator().manual_seed(2)
    origins = torch.randn(2000, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(2000, 3, generator=generator), dim=-1)
    rays = Rays(origins, directions, torch.zeros(2000), torch.full((2000,), 10.0))
    cut = clip_to_box(rays, BOX)
    t = torch.rand(2000, 200, generator=generator) * 10
    points = origins[:, None] + directions[:, None] * t[..., None]
    kept = (t > cut.near[:, None]) & (t < cut.far[:, None])
    margin = 1e-5
    surely_in = Aabb(BOX.low + margin, BOX.high - margin).contains(points)
    surely_out = ~Aabb(BOX.low - margin, BOX.high + margin).contains(points)
    assert kept[surely_in].all()
    assert not kept[surely_out].any()
    assert surely_in.any()


def test_crop_of_a_picture():
    half = Aabb(torch.tensor([-1.0, -1, -1]), torch.tensor([1.0, 1, 0]))
    pixels = paint(stage(), camera(64, 48), box=half)
    points = pixels.colors - 0.5
    seen = pixels.alphas > 0
    assert seen.any()
    assert points[seen][:, 2].max() <= 1e-5
    assert (paint(stage(), camera(64, 48)).colors[..., 2] > 0.6).any()


def test_crop_of_nothing():
    assert len(clip_to_box(rays_of(torch.zeros(0, 3).tolist() or [[0.0, 0, 0]], [[1.0, 0, 0]])[:0], BOX)) == 0


# Painting.


def paint(stage, camera, pieces=10**9, **options):
    painting = Painting(stage, camera, **options)
    while not painting.done:
        painting.advance(pieces)
    return painting.pixels()


@pytest.mark.parametrize("pieces", [1, 7, 100, 10**6])
def test_pieces_make_the_whole(pieces):
    size = (13, 7) if pieces == 1 else (32, 24)
    whole, parts = paint(stage(), camera(*size)), paint(stage(), camera(*size), pieces, normals=True)
    assert whole.colors.shape == (size[1], size[0], 3)
    for name in ("colors", "alphas", "depths"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))
    assert whole.normals is None
    assert parts.normals.shape == whole.colors.shape


def test_large_pieces_are_cut():
    set_up = stage()
    paint(set_up, camera(200, 100))
    assert set_up.renderer.calls == 3


def test_painting_leaves_the_renderer_as_it_was():
    set_up = stage()
    for fitting in (True, False):
        set_up.renderer.train(fitting)
        paint(set_up, camera())
        assert set_up.renderer.training is fitting
    set_up.renderer.train(True)
    set_up.renderer.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        paint(set_up, camera())
    assert set_up.renderer.training


def test_z_depths():
    painting = Painting(stage(), camera(33, 25))
    painting.advance(10**6)
    pixels = painting.pixels()
    z = painting.z_depths(pixels)
    assert z[0, 0] == math.inf
    assert float(z[12, 16]) == pytest.approx(2.0, abs=1e-5), "2.5 to the middle of a ball of radius 1/2"
    seen = z.isfinite()
    assert (z[seen] <= pixels.depths[seen] + 1e-6).all()


def test_depth_for_the_browser_is_coarse_and_near_enough():
    z = torch.rand(300, 1000) * 5
    z[0, :10] = math.inf
    coarse = depth_for_browser(z)
    assert max(coarse.shape) <= 480
    assert np.isfinite(coarse).all()
    assert np.abs(depth_for_browser(z[:, :400]) - z[:, :400].clamp(max=160).numpy()).max() < 0.0013
    packed = (coarse * 100_000).astype(np.int64) % 256
    assert packed.min() > 100
    assert packed.max() < 156, "the low byte hardly changes, so that the picture of depths is small"


def test_png_is_the_picture():
    pixels = paint(stage(), camera(16, 12))
    image = np.asarray(Image.open(io.BytesIO(png_bytes(pixels, Channel.COLOR))))
    assert image.shape == (12, 16, 3)
    assert np.abs(image / 255 - pixels.colors.clamp(0, 1).numpy()).max() <= 0.5 / 255 + 1e-6


# Pace.


def test_pace_holds_the_frame_time():
    pace = Pace(1e-6)
    for seconds_per_pixel in (1e-8, 1e-7, 1e-6, 5e-6):
        for _ in range(40):
            pace.learn(1000, 1000 * seconds_per_pixel)
        assert pace.seconds_per_pixel == pytest.approx(seconds_per_pixel, rel=1e-3)
        divisor = pace.divisor(1280 * 720, 0.1)
        assert 1280 * 720 / divisor**2 * seconds_per_pixel <= 0.1
        finer = [d for d in LADDER if d < divisor]
        assert not finer or 1280 * 720 / finer[-1] ** 2 * seconds_per_pixel > 0.1
    for _ in range(60):
        pace.learn(1, 100.0)
    assert pace.divisor(1280 * 720) == LADDER[-1]
    assert pace.chunk() == 64


def test_ladder_leads_down_to_sharp():
    for start in LADDER:
        divisor, steps = start, 0
        while divisor > 1:
            assert sharper(divisor) in LADDER
            assert sharper(divisor) < divisor
            divisor, steps = sharper(divisor), steps + 1
        assert steps <= 5
    assert reduced(3, 1000, 16) == (1, 62)


# The loop.


@pytest.fixture
def painting_loop(request):
    """A loop whose renderer takes a hundredth of a second per call; closed when the test ends."""
    set_up = stage(seconds_per_call=getattr(request, "param", 0.0))
    loop = Loop(set_up, Turns(fitting=False), pace=Pace(1e-3))
    loop.start()
    yield loop
    set_up.renderer.during = lambda: None
    loop.turns.finish()
    loop.stop()


def test_sharpens_step_by_step(painting_loop):
    shown = []
    window = Window(shown.append)
    painting_loop.add(window)
    painting_loop.show(window, look(64, 48))
    soon(lambda: shown and shown[-1].sharpest)
    divisors = [s.divisor for s in shown]
    assert divisors[0] > 1
    assert divisors == sorted(divisors, reverse=True)
    assert divisors[-1] == 1
    assert shown[-1].pixels.colors.shape == (48, 64, 3)
    assert shown[0].pixels.colors.shape[1] == round(64 / divisors[0])
    calls = painting_loop.stage.renderer.calls
    time.sleep(0.1)
    assert painting_loop.stage.renderer.calls == calls, "nothing left to do"


def test_a_newer_view_aborts_the_sharpening(painting_loop):
    shown, renderer = [], painting_loop.stage.renderer
    rays = []  # painted so far, when each picture was shown: sharpening goes on meanwhile

    def show(frame):
        rays.append(renderer.rays)
        shown.append(frame)

    window = Window(show)
    painting_loop.pace.learn = lambda *_: None  # 64 pixels a piece
    painting_loop.add(window)
    painting_loop.show(window, look(64, 48))
    soon(lambda: shown and window.painting is not None and window.painting.total == 64 * 48)
    gate = Gate()
    renderer.during = gate
    gate.reached.wait(20)
    other = look(64, 48, channel=Channel.DEPTH)
    painting_loop.show(window, other)
    before, seen = renderer.rays, len(shown)
    renderer.during = lambda: None
    gate.open.set()
    soon(lambda: len(shown) > seen)
    assert shown[seen].look is other, "the old view was dropped, not finished"
    assert shown[seen].divisor > 1
    assert rays[seen] - before < 64 * 48 / 2
    soon(lambda: shown[-1].sharpest)
    assert all(s.look is other for s in shown[seen:])


def test_a_steady_motion_shows_pictures(painting_loop):
    shown = []
    window = Window(shown.append)
    painting_loop.add(window)
    painting_loop.pace.learn = lambda *_: None
    versions = set()
    for _ in range(400):
        painting_loop.show(window, look(64, 48))
        time.sleep(0.002)
        versions.add(window.shown_version)
        if len(versions) > 4:
            break
    assert len(versions) > 4
    assert shown[0].divisor > 1


def test_windows_and_saved_pictures_share(painting_loop):
    shown = {"a": [], "b": [], "saved": []}
    windows = {name: Window(pictures.append, once=name == "saved") for name, pictures in shown.items()}
    for name, window in windows.items():
        painting_loop.add(window)
        painting_loop.show(window, look(48, 36, channel=Channel.NORMAL if name == "saved" else Channel.COLOR))
    soon(lambda: shown["saved"] and all(shown[n] and shown[n][-1].sharpest for n in "ab"))
    (saved,) = shown["saved"]
    assert saved.pixels.normals.shape == (36, 48, 3)
    assert windows["saved"] not in painting_loop._windows


def test_removed_and_empty_windows_are_left_alone(painting_loop):
    window, blank = Window(lambda _: pytest.fail("removed")), Window(lambda _: pytest.fail("blank"))
    painting_loop.add(blank)
    painting_loop.add(window)
    painting_loop.remove(window)
    painting_loop.remove(window)
    painting_loop.show(window, look())
    painting_loop.show(blank, None)
    time.sleep(0.1)
    assert painting_loop.stage.renderer.calls == 0


def test_an_error_is_reported_and_survived(painting_loop, capsys):
    shown, failures, renderer = [], [], painting_loop.stage.renderer
    window, saved = Window(shown.append, failures.append), Window(shown.append, failures.append, once=True)
    renderer.error = RuntimeError("a fault in the field")
    for w in (window, saved):
        painting_loop.add(w)
        painting_loop.show(w, look())
    soon(lambda: len(failures) == 2)
    calls = renderer.calls
    time.sleep(0.1)
    assert renderer.calls == calls, "not tried again and again"
    assert capsys.readouterr().err.count("a fault in the field") == 1
    assert painting_loop._windows == [window]
    renderer.error = None
    painting_loop.show(window, look())
    soon(lambda: shown and shown[-1].sharpest)


def test_thread_count_is_the_starters():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        set_up, seen = stage(), []
        set_up.renderer.during = lambda: seen.append(torch.get_num_threads())
        loop = Loop(set_up, Turns(fitting=False))
    finally:
        torch.set_num_threads(threads)
    window = Window(lambda _: None)
    loop.start()
    loop.add(window)
    loop.show(window, look())
    soon(lambda: seen)
    loop.stop()
    assert set(seen) == {1}
    torch.set_num_threads(threads)


# Turns.


class Fit:
    """A fit that takes a few thousandths of a second a step, in its own thread."""

    def __init__(self, turns, watch=None):
        self.turns, self.watch = turns, watch or (lambda: None)
        self.steps, self.running, self.paused_seconds = 0, True, 0.0
        self.stepping = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while self.running:
            self.stepping = True
            time.sleep(0.004)
            self.stepping = False
            self.steps += 1
            self.watch()
            self.paused_seconds += self.turns.after_step(lambda: not self.running)
        self.turns.finish()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.running = False
        self.thread.join(10)
        assert not self.thread.is_alive()


def take(turns, fit, seconds, share):
    """Take every turn there is; returns the seconds spent in them and the number of steps meanwhile."""
    spent, steps, end = 0.0, fit.steps, time.perf_counter() + seconds
    while time.perf_counter() < end:
        with turns.viewer(share):
            started = time.perf_counter()
            assert not fit.stepping, "never both at once"
            time.sleep(0.004)
            assert not fit.stepping
            spent += time.perf_counter() - started
    return spent, fit.steps - steps


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_viewer_has_its_share_and_no_more(share):
    turns = Turns(fitting=True)
    with Fit(turns) as fit:
        take(turns, fit, 0.3, share)
        spent, steps = take(turns, fit, 1.5, share)
    assert steps > 0
    assert 0.4 * share < spent / 1.5 < share + 0.15


def test_pause_stops_the_fit_and_frees_the_viewer():
    turns = Turns(fitting=True)
    with Fit(turns) as fit:
        soon(lambda: fit.steps > 3)
        turns.pause(True)
        assert turns.paused
        assert not turns.fitting
        soon(lambda: not fit.stepping)
        time.sleep(0.05)
        spent, steps = take(turns, fit, 0.4, 0.2)
        assert steps == 0
        assert spent > 0.2
        turns.pause(False)
        before = fit.steps
        soon(lambda: fit.steps > before + 3)
        assert 0.3 < fit.paused_seconds < 5


def test_a_paused_fit_can_be_stopped():
    turns = Turns(fitting=True)
    with Fit(turns) as fit:
        turns.pause(True)
        time.sleep(0.05)
    assert not fit.thread.is_alive()


def test_a_fit_without_a_viewer_is_not_slowed():
    turns = Turns(fitting=True)
    started = time.perf_counter()
    for _ in range(1000):
        turns.after_step()
    assert time.perf_counter() - started < 1.0


def test_a_waiting_viewer_is_freed_when_the_fit_ends():
    turns, entered = Turns(fitting=True), threading.Event()

    def wait():
        with turns.viewer():
            entered.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not entered.wait(0.1), "the fit owns the first step"
    turns.finish()
    assert entered.wait(10)
    thread.join(10)


def test_live_pictures_follow_the_fit():
    turns, set_up, shown = Turns(fitting=True), stage(), []
    fit = Fit(turns)
    loop = Loop(set_up, turns, step=lambda: fit.steps)
    window = Window(lambda s: shown.append((fit.steps, s)))
    with fit:
        loop.start()
        loop.add(window)
        loop.show(window, look(64, 48))
        soon(lambda: len({step for step, _ in shown}) > 3)
        assert not any(s.sharpest for _, s in shown), "what still changes is not called sharp"
        turns.pause(True)
        loop.wake()
        soon(lambda: shown[-1][1].sharpest)
        turns.pause(False)
        loop.stop()


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


# During a fit.


def report(job, spent=0.5):
    colors = torch.full((4, 3), 0.5)
    step = SimpleNamespace(
        render=SimpleNamespace(pixels=Pixels(colors=colors)), target_colors=colors + 0.1, target=Pixels(masks=None)
    )
    return SimpleNamespace(job=job, step=step, spent=spent, terms={"photometric": 0.01})


def test_history_of_a_fit(monkeypatch):
    """A curve for each number; a point per second, and half as many when there are too many."""
    monkeypatch.setattr("polyfield.apps.viewer.history.POINTS", 8)
    with viewer() as page:
        history = History(page.server)
        job = SimpleNamespace(elapsed=0.0, field=[None] * 2000)
        for tick in range(30):
            job.elapsed, job.field = tick / 2, [None] * (2000 + 100 * tick)
            history.add(report(job), 20 + tick)
        seconds = [row[0] for row in history.rows]
        assert len(seconds) <= 8 and seconds[0] == 0 and seconds == sorted(seconds)
        assert min(b - a for a, b in itertools.pairwise(seconds)) >= 2
        psnr, memory, gaussians = history._charts
        assert [chart.title for chart in history._charts] == ["PSNR, dB", "memory, GB", "Gaussians, thousands"]
        np.testing.assert_allclose(gaussians.data[0], seconds)
        np.testing.assert_allclose(gaussians.data[1], [2 + 0.2 * s for s in seconds])
        np.testing.assert_allclose(psnr.data[1], [20 + 2 * s for s in seconds])
        assert (memory.data[1] > 0.05).all()
        alone = History(page.server)
        for job.elapsed, job.field in ((0.0, object()), (2.0, object())):
            alone.add(report(job), 30.0)
        assert len(alone._charts) == 2


def test_progress_of_a_fit():
    turns, job = Turns(fitting=True), SimpleNamespace(step=40, elapsed=30.0, field=None)
    with viewer(turns=turns) as page:
        progress = FitProgress(page.server, turns)
        progress(report(job))
        text = progress._text.content
        assert "step **40**" in text
        assert "PSNR **20.00 dB**" in text
        assert "**0:30 left**" in text
        assert progress._bar.value == 50
        progress.pause(True)
        assert turns.paused
        assert progress._pause.label == "Resume"
        progress.pause(False)
        assert progress._pause.label == "Pause"
        progress.finish("Fitted")
        assert progress._text.content.startswith("Fitted at step **40**")
        assert progress._pause.disabled


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65, "1:05"), (3665, "1:01:05")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_view_during_a_fit(tmp_path):
    from polyfield.apps.viewer import FitView

    set_up = stage()
    job = SimpleNamespace(field=set_up.field, renderer=set_up.renderer, step=0, elapsed=0.0, idle=0.0)
    watch = FitView(job, photographs(), tmp_path, port=0)
    running = threading.Event()

    def step():
        job.step += 1
        job.renderer.train()
        time.sleep(0.003)
        assert job.renderer.training, "the viewer does not touch the renderer during a step"
        watch(report(job))

    def run():
        while not running.is_set():
            step()

    thread = threading.Thread(target=run, daemon=True)
    with watch:
        client = Client(watch.viewer.server)
        panel = Panel(watch.viewer, client)
        thread.start()
        soon(lambda: len(client.pictures) > 4)
        assert "step **" in watch.progress._text.content
        watch.progress.pause(True)
        watch.viewer.loop.wake()
        soon(lambda: settled(panel) and watch.turns._owner is not Owner.FIT)
        at = job.step
        time.sleep(0.1)
        assert job.step == at
        watch.progress.pause(False)
        soon(lambda: job.step > at + 3)
        assert job.idle > 0.05
        running.set()
        thread.join(20)
        assert not thread.is_alive()
        panel.close()
