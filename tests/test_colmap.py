"""COLMAP models: every lens, text and binary alike and back without loss, shrunk images, masks; and broken ones."""

import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from polyfield.datasets import colmap, export, llff, neus, transforms_json
from polyfield.datasets.colmap_model import MODELS, ModelPoints, read_model, write_text
from polyfield.datasets.scene import LoadOptions, MaskUse, SceneError, find_format, open_scene

from tests.capture_writers import HEIGHT, LENSES, WIDTH, WRITERS, paint, some_points, truth, write_colmap

OPTIONS = LoadOptions()


def cameras_of(capture) -> dict:
    return {s.name.rpartition("/")[2]: s.camera for s in capture.shots}


def off(a, b, count: int = 40) -> float:
    """Pixels by which two captures' cameras of the same names differ, at points that the first sees."""
    generator = torch.Generator().manual_seed(0)
    left, right = cameras_of(a), cameras_of(b)
    assert left.keys() == right.keys()
    worst = 0.0
    for name, camera in left.items():
        size = torch.tensor([camera.width, camera.height], dtype=torch.float64)
        pixels = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size
        pixels = pixels[camera.sees(pixels)]
        rays = camera.rays(pixels)
        points = rays.origins + rays.directions * float(camera.position.norm() + 1)
        got, _ = right[name].project(points)
        worst = max(worst, float((got - camera.project(points)[0]).abs().nan_to_num(999).max()))
    return worst


def same(a, b) -> None:
    assert a.cameras == b.cameras
    assert list(a.images) == list(b.images)
    for x, y in zip(a.images.values(), b.images.values(), strict=True):
        assert (x.name, x.camera, x.quat, x.translation) == (y.name, y.camera, y.quat, y.translation)
        assert np.array_equal(x.pixels, y.pixels)
        assert np.array_equal(x.points, y.points)
    for field in fields(ModelPoints):
        assert np.array_equal(getattr(a.points, field.name), getattr(b.points, field.name))


@pytest.mark.parametrize("model", LENSES)
def test_every_lens_in_text_and_binary(tmp_path, model):
    text = write_colmap(tmp_path / "text", model)
    binary = write_colmap(tmp_path / "binary", model, binary=True)
    same(read_model(text.root / "sparse/0"), read_model(binary.root / "sparse/0"))
    capture = colmap.read(text.root, OPTIONS)
    for shot in capture.shots:
        true = text.cameras[shot.name]
        assert (shot.camera.width, shot.camera.height) == (true.width, true.height)
        points = torch.from_numpy(some_points())
        torch.testing.assert_close(shot.camera.project(points)[0], true.project(points)[0], equal_nan=True)


def test_text_is_exact(tmp_path):
    written = write_colmap(tmp_path / "a", binary=True)
    model = read_model(written.root / "sparse/0")
    write_text(model, tmp_path / "out")
    again = read_model(tmp_path / "out")
    same(model, again)
    assert model.points.tracks.tolist() == again.points.tracks.tolist() != []


@pytest.mark.parametrize("inside", ["sparse/0", "sparse", "colmap/sparse/0", "dense/sparse", "0", ""])
def test_where_a_model_may_lie(tmp_path, inside):
    written = write_colmap(tmp_path / "x", inside=inside)
    assert len(open_scene(written.root).frames) == 9
    assert len(open_scene(written.root / inside).frames) == 9
    assert open_scene(written.root / inside).name == "x"


def test_of_two_reconstructions_the_larger(tmp_path):
    written = write_colmap(tmp_path / "x", inside="sparse/1")
    shutil.copytree(written.root / "sparse/1", written.root / "sparse/0")
    lines = (written.root / "sparse/0/images.txt").read_text().splitlines()
    (written.root / "sparse/0/images.txt").write_text("\n".join(lines[:7]))
    capture = colmap.read(written.root, OPTIONS)
    assert len(capture.shots) == 9
    assert any("further reconstructions are left out: 0" in w for w in capture.warnings)


def test_points_of_large_error_or_short_tracks_are_left_out(tmp_path):
    written = write_colmap(tmp_path)
    capture = colmap.read(written.root, OPTIONS)
    torch.testing.assert_close(capture.points, written.points)
    assert any("3 of 40 points left out" in w for w in capture.warnings)
    torch.testing.assert_close(capture.point_colors[0], torch.tensor([255, 3, 0]) / 255)


def test_where_tracks_are_short_they_are_not_asked_for(tmp_path):
    written = write_colmap(tmp_path)
    file = written.root / "sparse/0/points3D.txt"
    file.write_text("\n".join(" ".join(line.split()[:12]) for line in file.read_text().splitlines()))
    assert len(colmap.read(written.root, OPTIONS).points) == 39


def test_shrunk_images_are_taken_where_they_are(tmp_path):
    written = write_colmap(tmp_path)
    for name, camera in written.cameras.items():
        paint(tmp_path / "images_2" / name, camera.width // 2, camera.height // 2)
    for downscale, folder, size in ((1, "images", 24), (2, "images_2", 12), (4, "images_2", 6), (3, "images", 8)):
        scene = open_scene(tmp_path, downscale=downscale)
        frame = next(f for f in scene.frames if f.name.startswith("a"))
        assert frame.image_path.relative_to(tmp_path).parts[0] == folder
        assert (frame.camera.width, frame.colors.shape[1]) == (size, size)
        torch.testing.assert_close(frame.camera.K[0] * (24 / size), truth("OPENCV")[0].K[0].float())


def test_only_shrunk_images(tmp_path):
    written = write_colmap(tmp_path)
    shutil.rmtree(tmp_path / "images")
    for name, camera in written.cameras.items():
        paint(tmp_path / "images_4" / name, camera.width // 4, camera.height // 4)
    scene = open_scene(tmp_path)
    assert {f.camera.width for f in scene.frames} == {WIDTH // 4, HEIGHT // 4}


@pytest.mark.parametrize("ending", ["{name}.png", "{stem}.png"])
def test_masks_are_found(tmp_path, ending):
    written = write_colmap(tmp_path)
    for name, camera in written.cameras.items():
        path = tmp_path / "masks" / ending.format(name=name, stem=name.removesuffix(".png"))
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.full((camera.height, camera.width), 255, np.uint8)
        mask[:5] = 0
        Image.fromarray(mask).save(path)
    for use, row in ((MaskUse.IGNORE, False), (MaskUse.IGNORE_WHITE, True)):
        frame = open_scene(tmp_path, masks=use).frames[0]
        assert bool((frame.mask[:5] == row).all())
        assert bool((frame.mask[6:] != row).all())
    frame = open_scene(tmp_path, masks=MaskUse.ALPHA).frames[0]
    assert frame.mask is None
    assert int(frame.alphas[0, 0]) == 0
    frame = open_scene(tmp_path, masks=MaskUse.NONE).frames[0]
    assert frame.mask is None
    assert frame.alphas is None


def test_masks_of_the_images_before_they_were_shrunk(tmp_path):
    written = write_colmap(tmp_path)
    for name, camera in written.cameras.items():
        paint(tmp_path / "images_2" / name, camera.width // 2, camera.height // 2)
        mask = np.full((camera.height, camera.width), 255, np.uint8)
        mask[:4] = 0
        path = tmp_path / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    for downscale in (1, 2, 4):
        frame = open_scene(tmp_path, downscale=downscale).frames[0]
        rows = 4 // downscale
        assert not frame.mask[:rows].any()
        assert frame.mask[rows:].all()


def test_colmap_before_llff_unless_its_images_are_missing(tmp_path):
    WRITERS["llff"][0](tmp_path)
    write_colmap(tmp_path)
    assert find_format(tmp_path) is colmap
    (tmp_path / "sparse/0/images.txt").unlink()
    assert find_format(tmp_path) is llff
    shutil.rmtree(tmp_path / "images")
    assert len(llff.read(tmp_path, OPTIONS).points) == 37


def test_dynamic_masks_of_instant_ngp(tmp_path):
    WRITERS["transforms_json"][0](tmp_path)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:5] = 255
    Image.fromarray(mask).save(tmp_path / "images/dynamic_mask_003.png")
    frames = {f.name: f for f in open_scene(tmp_path, masks=MaskUse.IGNORE_WHITE).frames}
    assert not frames["images/003.png"].mask[:5].any()
    assert frames["images/003.png"].mask[5:].all()
    assert frames["images/001.png"].mask is None


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["colmap", "neus", "llff", "metashape", "transforms_json", "scannet"])
def test_exported_cameras_are_the_same(tmp_path, name):
    written = WRITERS[name][0](tmp_path / "data")
    capture = find_format(written.root).read(written.root, OPTIONS)
    out = written.root / "exported.json"
    assert export.write_transforms(capture, out, written.root) == written.root.resolve()
    again = transforms_json.read(out, OPTIONS)
    write_text(export.as_model(capture), tmp_path / "model")
    (tmp_path / "images").symlink_to(export.photo_folder(capture.shots))
    model = colmap.read(tmp_path / "model", OPTIONS)
    points = torch.from_numpy(some_points())
    for name_, camera in written.cameras.items():
        for found in (again, model):
            got = cameras_of(found)[name_.rpartition("/")[2]].project(points)[0]
            torch.testing.assert_close(got, camera.project(points)[0], atol=1e-7, rtol=0, equal_nan=True)
    assert len(again.shots) == len(model.shots) == len(capture.shots)
    if capture.points is not None:
        for found in (again, model):
            torch.testing.assert_close(found.points, written.points)


# --- broken models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["cameras", "images", "points3D"])
def test_binary_models_cut_short(tmp_path, part):
    written = write_colmap(tmp_path, binary=True)
    file = written.root / f"sparse/0/{part}.bin"
    whole = file.read_bytes()
    for length in sorted({0, 3, 8, 9, 20, len(whole) // 2, len(whole) - 1}):
        file.write_bytes(whole[:length])
        with pytest.raises(SceneError, match=rf"{part}.bin: expected a whole COLMAP file, got one cut short; copy"):
            open_scene(written.root)


def test_numbers_of_things_that_a_file_cannot_hold(tmp_path):
    written = write_colmap(tmp_path, binary=True)
    (written.root / "sparse/0/points3D.bin").write_bytes(b"\xff" * 64)
    with pytest.raises(SceneError, match=r"points3D.bin: expected a whole COLMAP file, got one cut short"):
        open_scene(written.root)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("cameras.txt", "OPENCV", "WONDERFUL", r"camera 1: expected one of COLMAP's models .* got WONDERFUL; undist"),
        ("cameras.txt", "0.06 ", "", r"cameras.txt: expected a COLMAP file, got 7 parameters instead of 8"),
        ("cameras.txt", "26.0 27.0", "0 0", r"camera 1: expected a size, focal lengths above 0 and finite numbers"),
        ("cameras.txt", "4 OPENCV", "5 OPENCV", r"images.txt: b/001.png: expected a camera of .*, got number 4"),
        ("cameras.txt", "24 20", "24 10", r"000.png: expected an image of 24 x 10 or that shape, got 24 x 20"),
        ("images.txt", "a a/000.png", "a a/nowhere.png", r"expected all 9 images .*, found no a a/nowhere.png; re"),
        ("images.txt", "\n", "\nx ", r"images.txt: expected a COLMAP file, got .*; export it again"),
        ("points3D.txt", "255", "none", r"points3D.txt: expected a COLMAP file, got .*none.*; export it again"),
    ],
)  # fmt: skip
def test_text_models_with_mistakes(tmp_path, file, old, new, message):
    written = write_colmap(tmp_path)
    path = written.root / "sparse/0" / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SceneError, match=message):
        open_scene(written.root)


@pytest.mark.parametrize(
    ("model", "count"), [("FOV", 5), ("THIN_PRISM_FISHEYE", 12), ("RAD_TAN_THIN_PRISM_FISHEYE", 16)]
)
def test_lenses_that_are_not_supported(tmp_path, model, count):
    written = write_colmap(tmp_path)
    assert MODELS[model] == count
    row = f"{model} 24 20 26 27 12 10 {' '.join(['0.1'] * (count - 4))}\n"
    (written.root / "sparse/0/cameras.txt").write_text("1 " + row + "4 " + row)
    with pytest.raises(SceneError, match=rf"camera 1: expected a lens without {model}'s terms.*; undistort the images"):
        open_scene(written.root)


def test_unknown_number_of_a_model(tmp_path):
    written = write_colmap(tmp_path, binary=True)
    file = written.root / "sparse/0/cameras.bin"
    data = bytearray(file.read_bytes())
    data[12] = 77
    file.write_bytes(data)
    with pytest.raises(SceneError, match=r"camera 1: expected one of COLMAP's models .*, got number 77; undistort"):
        open_scene(written.root)


def test_models_without_what_is_needed(tmp_path):
    written = write_colmap(tmp_path)
    model = written.root / "sparse/0"
    (model / "images.txt").write_text("# none\n")
    with pytest.raises(SceneError, match=r"expected registered images, got a model with none; run the reconstruction"):
        open_scene(written.root)
    (model / "images.txt").unlink()
    with pytest.raises(SceneError, match=r"expected a COLMAP model, found no images.bin or images.txt; export"):
        open_scene(written.root)
    (model / "cameras.txt").unlink()
    with pytest.raises(SceneError, match=r"expected a COLMAP model, found no cameras.bin or cameras.txt; export"):
        open_scene(written.root)


def test_models_without_points_or_photographs(tmp_path):
    written = write_colmap(tmp_path)
    (written.root / "sparse/0/points3D.txt").unlink()
    assert open_scene(written.root).points is None
    shutil.rmtree(written.root / "images")
    with pytest.raises(SceneError, match=r"expected the model's photographs in a folder `images` beside"):
        open_scene(written.root)


# --- the research scenes ----------------------------------------------------------------------------------------------


@pytest.mark.data
def test_can(data_root, tmp_path):
    scene = open_scene(data_root / "can_colmap", downscale=8)
    assert (len(scene.train), len(scene.test), len(scene.points)) == (62, 9, 3642)
    model = read_model(data_root / "can_colmap/sparse/0")
    write_text(model, tmp_path)
    same(model, read_model(tmp_path))
    first = model.images[min(model.images)]
    capture = colmap.read(data_root / "can_colmap", OPTIONS)
    shot = next(s for s in capture.shots if s.name == first.name)
    row = {p: i for i, p in enumerate(model.points.ids.tolist())}
    seen = first.points >= 0
    at = torch.from_numpy(model.points.positions[[row[p] for p in first.points[seen].tolist()]])
    error = (shot.camera.project(at)[0] - torch.from_numpy(first.pixels[seen])).norm(dim=-1)
    assert float(error.median()) < 1.0


@pytest.mark.data
def test_cameras_are_the_same_through_each_format(data_root):
    dtu, fern = data_root / "dtu_scan65", data_root / "fern_llff"
    assert off(transforms_json.read(dtu, OPTIONS), neus.read(dtu, OPTIONS)) < 1e-4
    assert off(transforms_json.read(fern, OPTIONS), llff.read(fern, OPTIONS)) < 1e-4
    assert len(llff.read(fern, OPTIONS).points) == 6808
