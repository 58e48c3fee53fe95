"""Photographs decoded once: what is kept, when it is used again, and that nothing but the cache is lost without it."""

import errno
import json
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image, features
from polyfield.apps.batches import PixelBatches
from polyfield.datasets import image_cache, images
from polyfield.datasets.scene import MaskUse, SceneError, open_scene

from tests.test_datasets import capture


@pytest.fixture(autouse=True)
def every_capture(monkeypatch, tmp_path):
    """However small, it is worth keeping; the user's own cache folder is a new one."""
    monkeypatch.setattr(image_cache, "WORTH", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def root(tmp_path):
    """Nine photographs with alpha, with masks for all."""
    folder = tmp_path / "data"
    capture(folder, rgba=True)
    (folder / "masks").mkdir()
    for i in range(9):
        Image.fromarray(np.tri(24, k=i, dtype=np.uint8) * 255).save(folder / f"masks/{i:03d}.png")
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """Which files have been decoded."""
    found = []
    read = images.read_image
    monkeypatch.setattr(images, "read_image", lambda path, factor=1: found.append(path.name) or read(path, factor))
    return found


def kept(root, downscale=1):
    return root / f".polyfield/photographs_{downscale}.pixels"


def same(a, b):
    for x, y in zip(a.frames, b.frames, strict=True):
        for plane in ("colors", "alphas", "mask"):
            assert torch.equal(getattr(x, plane), getattr(y, plane)), plane
        assert torch.equal(x.camera.camera_to_world, y.camera.camera_to_world)


def test_the_second_start_decodes_nothing(root, decoded, monkeypatch):
    first = open_scene(root, downscale=2)
    assert len(decoded) == 9
    assert str(kept(root, 2)) in first.notes[0]
    second = open_scene(root, downscale=2)
    assert len(decoded) == 9
    assert second.notes == ()
    same(first, second)
    monkeypatch.setattr(image_cache, "WORTH", 1 << 40)
    plain = open_scene(root, downscale=2)
    assert len(decoded) == 18
    assert plain.notes == ()
    same(plain, second)


def test_small_captures_are_not_kept(root, monkeypatch):
    monkeypatch.setattr(image_cache, "WORTH", 9 * 24 * 24 * 3 + 1)
    open_scene(root)
    assert not (root / ".polyfield").exists()
    monkeypatch.setattr(image_cache, "WORTH", 9 * 24 * 24 * 3)
    open_scene(root)
    assert kept(root).is_file()


def test_another_size_or_use_of_masks_is_another_start(root, decoded):
    for options in ({}, {"downscale": 2}, {"masks": MaskUse.ALPHA}, {"masks": MaskUse.NONE}):
        count = len(decoded)
        scene = open_scene(root, **options)
        assert len(decoded) == count + 9, options
        assert scene.frames[0].camera.width == 24 // options.get("downscale", 1)
    assert kept(root).is_file() and kept(root, 2).is_file()


@pytest.mark.parametrize("part", ["images", "masks"])
def test_changed_photographs_replace_it(root, decoded, part):
    before = open_scene(root)
    path = root / f"{part}/003.png"
    with Image.open(path) as image:
        inverse = image.point(lambda v: 255 - v)
    inverse.save(path)
    os.utime(path, ns=(0, 10**18))
    after = open_scene(root)
    assert len(decoded) == 18
    for plane in ("colors", "mask"):
        found = [f.name for f, g in zip(after.frames, before.frames, strict=True)
                 if not torch.equal(getattr(f, plane), getattr(g, plane))]  # fmt: skip
        assert found == (["images/003.png"] if plane == ("colors" if part == "images" else "mask") else [])
    open_scene(root)
    assert len(decoded) == 18


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b"x" + b[1:], lambda b: b"", lambda b: b + b"\0"])
def test_a_spoilt_file_is_replaced(root, decoded, spoil):
    whole = open_scene(root)
    content = kept(root).read_bytes()
    kept(root).unlink()  # rather than cut short what is mapped
    kept(root).write_bytes(spoil(content))
    same(open_scene(root), whole)
    assert len(decoded) == 18
    assert kept(root).read_bytes() == content


def test_a_moved_folder_keeps_it(root, decoded, tmp_path):
    open_scene(root)
    root.rename(tmp_path / "elsewhere")
    open_scene(tmp_path / "elsewhere")
    assert len(decoded) == 9


def test_a_folder_that_cannot_be_written_to(root, decoded, tmp_path):
    (root / ".polyfield").write_text("in the way")
    first = open_scene(root)
    (path,) = (tmp_path / "home").rglob("*.pixels")
    assert str(path) in first.notes[0]
    same(first, open_scene(root))
    assert len(decoded) == 9


def test_a_full_disk_costs_nothing_but_the_cache(root, decoded, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_cache, "_allocate", full)
    scene = open_scene(root)
    assert len(decoded) == 9
    assert scene.notes == ()
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".part", ".pixels")]


def test_room_is_taken_before_it_is_written_to(tmp_path, monkeypatch):
    sizes = []
    for _ in range(2):
        with open(tmp_path / "x", "wb") as file:
            file.write(b"head")
            image_cache._allocate(file, 3 << 20)
        sizes.append((tmp_path / "x").stat().st_size)
        assert (tmp_path / "x").stat().st_blocks * 512 >= 3 << 20
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert sizes == [4 + (3 << 20)] * 2


def test_a_damaged_photograph_is_named_and_nothing_is_left(root):
    path = root / "images/004.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SceneError, match=r"004.png: expected a complete image"):
        open_scene(root)
    assert not list((root / ".polyfield").iterdir())


def test_a_missing_mask_is_named(tmp_path):
    data = capture(tmp_path)
    data["frames"][0]["mask_path"] = "masks/none.png"
    (tmp_path / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(SceneError, match=r"none.png: expected an image, found no such file"):
        open_scene(tmp_path)


def test_what_was_abandoned_is_cleared_away(root):
    (root / ".polyfield").mkdir()
    old, new = (root / f".polyfield/.photographs_1.pixels.{i}.part" for i in (1, 2))
    old.touch()
    new.touch()
    os.utime(old, (0, time.time() - 2 * image_cache.ABANDONED))
    open_scene(root)
    assert not old.exists() and new.exists()


def test_changes_in_memory_do_not_reach_the_file(root):
    scene = open_scene(root)
    content = kept(root).read_bytes()
    scene.frames[0].colors.zero_()
    assert kept(root).read_bytes() == content
    assert int(open_scene(root).frames[0].colors.max()) > 0


@pytest.mark.parametrize("worth", [0, 1 << 40])
def test_batches_draw_from_where_photographs_are(root, monkeypatch, worth):
    monkeypatch.setattr(image_cache, "WORTH", worth)
    frames = open_scene(root).train
    alone = [f.__class__(**{**vars(f), "colors": f.colors.clone()}) for f in frames]
    batches, copied = (PixelBatches(f, near=0.1, rays=512, seed=3) for f in (frames, alone))
    assert batches.colors.untyped_storage().data_ptr() == frames[0].colors.untyped_storage().data_ptr()
    for _ in range(3):
        (_, a, _), (_, b, _) = batches.draw(), copied.draw()
        for plane in ("colors", "alphas", "masks"):
            assert torch.equal(getattr(a, plane), getattr(b, plane))


def test_decoders_are_as_many_as_memory_holds(root, monkeypatch):
    asked = []
    in_threads = image_cache.in_threads
    monkeypatch.setattr(image_cache, "in_threads", lambda w, i, most: asked.append(most) or in_threads(w, i, most))
    monkeypatch.setattr(image_cache, "WORKING", 3 * image_cache.PER_PIXEL * 24 * 24)
    open_scene(root)
    monkeypatch.setattr(image_cache, "WORKING", 1)
    open_scene(root, downscale=3)
    assert asked == [3, 1]


@pytest.mark.parametrize("orientation", [1, 6])
def test_jpegs_are_shrunk_by_their_decoder(tmp_path, orientation):
    """As by averaging, but for its filter, which shows most where colours change from pixel to pixel as here."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    small.resize((256, 192), Image.Resampling.BICUBIC).save(tmp_path / "x.jpg", quality=95, exif=exif)
    full, _ = images.read_image(tmp_path / "x.jpg")
    for factor in (3, 4, 8, 12, 16):
        got, _ = images.read_image(tmp_path / "x.jpg", factor)
        true, _ = images.shrink(full.numpy(), None, factor)
        off = (got.float() - torch.from_numpy(true).float()).abs()
        assert got.shape == true.shape
        assert float(off.mean()) < 0.75 and float(off.max()) <= 6, factor


@pytest.mark.parametrize(
    ("size", "downscale", "turbo", "other"),
    [
        ((256, 192), 2, 1, 1),
        ((256, 192), 4, 4, 2),
        ((256, 192), 6, 1, 1),
        ((256, 192), 8, 8, 4),
        ((256, 192), 12, 4, 2),
        ((256, 192), 16, 8, 8),
        ((255, 192), 4, 1, 1),
        ((252, 192), 8, 4, 4),
    ],
)
def test_by_how_much_jpegs_are_shrunk_by_their_decoder(tmp_path, monkeypatch, size, downscale, turbo, other):
    Image.new("RGB", size).save(tmp_path / "y.jpg")
    for means, wanted in ((True, turbo), (False, other)):
        monkeypatch.setattr(features, "check_feature", lambda name, means=means: means)
        with Image.open(tmp_path / "y.jpg") as image:
            assert images._decode_smaller(image, downscale) == wanted
            assert image.size == (size[0] // wanted, size[1] // wanted)


@pytest.mark.skipif(not features.check_feature("libjpeg_turbo"), reason="other decoders leave a little more out")
@pytest.mark.parametrize("downscale", [4, 8])
def test_decoders_shrink_grain_to_its_mean(tmp_path, downscale):
    """Grey grain, which all but averaging alters: means of it are off by rounding alone."""
    grain = np.random.default_rng(0).normal(128, 25, (192, 256)).clip(40, 216).astype(np.uint8)
    Image.fromarray(grain).convert("RGB").save(tmp_path / "x.jpg", quality=95)
    true, _ = images.shrink(images.read_image(tmp_path / "x.jpg")[0].numpy(), None, downscale)
    got = images.read_image(tmp_path / "x.jpg", downscale)[0].numpy()
    off = got.astype(int) - true.astype(int)
    assert abs(off).max() <= 1 and abs(off.mean()) < 0.2 and true.std() > 2
