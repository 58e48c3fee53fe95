"""Photographs without their lens: a distorted checkerboard becomes straight, as a pinhole would have seen it."""

from dataclasses import replace

import pytest
import torch
from polyfield.datasets.cube_faces import cube_faces
from polyfield.datasets.scene import Frame, open_scene
from polyfield.datasets.undistort import is_straight, straightened, undistorted
from polyfield.geometry import Camera, CameraModel
from polyfield.geometry import transforms as tf

from .capture_writers import write_panoramas
from .viewer_fakes import photographs

SIZE = (120, 90)
POSE = tf.orbit(torch.zeros(3), 2.0, 1, 0.4, torch.tensor([0.0, 0, 1]))[0]
PINHOLE = Camera.perspective(*SIZE, 1.1, POSE)
LENSES = [
    (CameraModel.OPENCV, [-0.25, 0.08, 2e-3, -1e-3]),  # barrel: the photograph shows more than the pinhole
    (CameraModel.OPENCV, [0.2, 0.0, 0.0, 0.0]),  # pincushion: it shows less
    (CameraModel.FISHEYE, [0.02, -0.01, 0.0, 0.0]),
]
lenses = pytest.mark.parametrize(("model", "coefficients"), LENSES, ids=["barrel", "pincushion", "fisheye"])


def checkerboard(camera, samples=4):
    """(H, W, 3) uint8: soft squares on the plane z = 0, faded towards the horizon; several samples per pixel."""
    ys, xs = torch.meshgrid(torch.arange(SIZE[1]), torch.arange(SIZE[0]), indexing="ij")
    total = torch.zeros(SIZE[1] * SIZE[0])
    for i in range(samples**2):
        inner = torch.tensor([i % samples + 0.5, i // samples + 0.5]) / samples
        rays = camera.rays(torch.stack([xs.reshape(-1), ys.reshape(-1)], 1) + inner)
        t = -rays.origins[:, 2] / rays.directions[:, 2]
        points = rays.origins + rays.directions * t[:, None]
        wave = (points[:, 0] * 6).sin() * (points[:, 1] * 6).sin() * (-points.square().sum(1)).exp()
        total += torch.where(t > 0, (4 * wave).tanh() * 0.4 + 0.5, 0.5)
    return (total / samples**2 * 255).round().byte().view(SIZE[1], SIZE[0], 1).expand(-1, -1, 3).contiguous()


def through(model, coefficients):
    return replace(PINHOLE, model=model, distortion=torch.tensor(coefficients))


@lenses
def test_a_checkerboard_becomes_straight(model, coefficients):
    camera = through(model, coefficients)
    frame = Frame("board", camera, checkerboard(camera))
    straight = undistorted(frame)
    assert is_straight(straight.camera) and not is_straight(camera)
    assert straight.camera.model is CameraModel.PINHOLE and straight.camera.distortion is None
    assert torch.equal(straight.camera.K, camera.K) and torch.equal(straight.camera.camera_to_world, POSE)
    wanted = checkerboard(PINHOLE).float()
    seen = torch.ones(wanted.shape[:2], dtype=torch.bool) if straight.mask is None else straight.mask
    error = (straight.colors.float() - wanted).abs()[seen].mean()
    before = (frame.colors.float() - wanted).abs()[seen].mean()
    assert seen.float().mean() > 0.6
    assert error < 3, "of 255: what interpolation blurs"
    assert error < before / 4


@lenses
def test_pixels_look_where_the_camera_projects(model, coefficients):
    """A picture of pixel positions, undistorted, holds what ``Camera.project`` says of each of its rays."""
    camera = through(model, coefficients)
    y, x = torch.meshgrid(torch.arange(SIZE[1]) + 0.5, torch.arange(SIZE[0]) + 0.5, indexing="ij")
    colors = torch.stack([x * 2, y * 2, 0 * x], -1).round().byte()
    straight = undistorted(Frame("ramp", camera, colors))
    rays = straight.camera.rays()
    pixels, _ = camera.project(rays.at(torch.full_like(rays.near, 1.7)))
    pixels = pixels.view(SIZE[1], SIZE[0], 2)
    inside = ((pixels > 1) & (pixels < torch.tensor(SIZE) - 1)).all(-1)
    error = straight.colors[..., :2].float() / 2 - pixels
    assert error[inside].abs().max() < 0.6


def test_what_the_photograph_does_not_show_is_masked():
    model, coefficients = LENSES[1]
    camera = through(model, coefficients)
    pixels, _ = camera.project(PINHOLE.rays().at(torch.ones(SIZE[0] * SIZE[1])))
    wanted = ((pixels >= 0) & (pixels <= torch.tensor(SIZE))).all(-1).view(SIZE[1], SIZE[0])
    assert 0.5 < wanted.float().mean() < 0.99
    plain = Frame("a", camera, torch.zeros(SIZE[1], SIZE[0], 3, dtype=torch.uint8))
    assert torch.equal(undistorted(plain).mask, wanted)
    own = torch.ones(SIZE[1], SIZE[0], dtype=torch.bool)
    own[:, : SIZE[0] // 2] = False
    both = undistorted(replace(plain, mask=own)).mask
    assert not (both & ~wanted).any()
    assert not both[:, : SIZE[0] // 2 - 3].any()
    assert (both | ~wanted)[:, SIZE[0] // 2 + 3 :].all()


def test_everything_that_belongs_to_a_pixel_comes_along():
    model, coefficients = LENSES[0]
    camera = through(model, coefficients)
    g = torch.Generator().manual_seed(0)
    shape = (SIZE[1], SIZE[0])
    frame = Frame(
        "a",
        camera,
        torch.full((*shape, 3), 7, dtype=torch.uint8),
        alphas=torch.full(shape, 99, dtype=torch.uint8),
        depths=torch.randint(1, 5, shape, generator=g).float(),
        normals=torch.tensor([0.0, 0.6, 0.8]).half().expand(*shape, 3),
    )
    straight = undistorted(frame)
    assert (straight.colors == 7).all() and (straight.alphas == 99).all()
    assert set(straight.depths.unique().tolist()) <= {1.0, 2.0, 3.0, 4.0}, "depths are not mixed"
    assert straight.normals.dtype == torch.float16
    assert torch.equal(straight.normals, frame.normals)
    assert straight.name == "a" and straight.split is frame.split


def test_straight_ones_stay_as_they_are():
    frame = Frame("a", PINHOLE, torch.zeros(SIZE[1], SIZE[0], 3, dtype=torch.uint8))
    assert undistorted(frame).colors is frame.colors
    nothing = replace(frame, camera=through(CameraModel.OPENCV, [0.0] * 4))
    assert undistorted(nothing).camera.model is CameraModel.PINHOLE
    scene = photographs()
    assert straightened(scene) is scene


def test_all_around_cannot_be_straight():
    camera = Camera.equirectangular(*SIZE, POSE)
    frame = Frame("sky.png", camera, torch.zeros(SIZE[1], SIZE[0], 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"undistorted: sky.png: expected a view forwards, got an equirectangular"):
        undistorted(frame)


def painted(directions):
    """(..., 3) uint8: colours that vary smoothly with the direction alone, world axes."""
    return (127 + 100 * (3 * directions).sin() * (2 * directions.roll(1, -1)).cos()).round().byte()


def test_a_panorama_becomes_six_faces_that_show_what_it_did():
    camera = Camera.equirectangular(360, 180, POSE)
    rays = camera.rays()
    colors = painted(rays.directions).view(180, 360, 3)
    mask = (rays.directions[:, 2] > -0.5).view(180, 360)
    depths = (2 + rays.directions[:, 0]).view(180, 360)
    normals = -rays.directions.view(180, 360, 3).half()
    frame = Frame("a b/pano.jpg", camera, colors, mask=mask, depths=depths, normals=normals, alphas=colors[..., 0])
    faces = cube_faces(frame)
    assert [f.name for f in faces] == [f"a b/pano_{n}.jpg" for n in ("front", "right", "back", "left", "up", "down")]
    torch.testing.assert_close(faces[0].camera.camera_to_world, POSE)
    area = 0.0
    for face in faces:
        assert (face.camera.width, face.camera.height) == (115, 115)
        torch.testing.assert_close(face.camera.position, camera.position)
        torch.testing.assert_close(torch.linalg.det(face.camera.camera_to_world[:3, :3]), torch.tensor(1.0))
        directions = face.camera.rays().directions
        wanted = painted(directions).view(115, 115, 3).float()
        error = (face.colors.float() - wanted).abs()
        assert float(error.mean()) < 0.5 and float(error.max()) <= 3
        assert float((face.alphas.float() - wanted[..., 0]).abs().max()) <= 3
        inside = (directions[:, 2] > -0.5).view(115, 115)
        assert float((face.mask == inside).float().mean()) > 0.98 and not bool((face.mask & ~inside).any())
        assert float((face.depths.view(-1) - 2 - directions[:, 0]).abs().max()) < 0.02
        assert float((face.normals.float().view(-1, 3) + directions).abs().max()) < 0.02
        along = directions @ face.camera.forward
        area += float((along**3).sum()) / (115 / 2) ** 2
    assert area == pytest.approx(4 * torch.pi, rel=1e-3), "together they see everything once"


def test_a_scene_of_panoramas_is_straightened_by_its_faces(tmp_path):
    scene = open_scene(write_panoramas(tmp_path / "a").root)
    straight = straightened(scene)
    assert len(straight.train) == 6 * len(scene.train) and len(straight.test) == 6 * len(scene.test)
    assert all(is_straight(f.camera) and f.camera.model is CameraModel.PINHOLE for f in straight.frames)
    assert len({f.name for f in straight.frames}) == 54
