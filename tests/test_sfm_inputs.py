"""What people's folders hold: every kind of picture among the others, odd names, loops, videos whole and broken."""

import sys

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image
from polyfield.apps.__main__ import main
from polyfield.datasets import photos
from polyfield.datasets.scene import LoadOptions, SceneError, open_scene
from polyfield.datasets.sfm.reconstruct import SfmOptions, reconstruct
from polyfield.datasets.sfm.sharpness import blur, sharpness
from polyfield.datasets.sfm.survey import result_folder, survey
from polyfield.datasets.sfm.video import sharpest_frames

from tests.photo_makers import HEIGHT, WIDTH, around, camera, draw, pose, save, write_photos
from tests.test_sfm import assert_poses, silent, smeared

QUICK = SfmOptions(max_features=1000)


def grey(pixels):
    return np.asarray(Image.fromarray(pixels).convert("L"))


def mixed_bag(folder):
    """Ten photographs, each stored in another way, among files of other kinds; their cameras by name."""
    cameras = around(10)
    pictures = [draw(c) for c in cameras]
    turned = Image.Exif()
    turned[0x0112] = 6  # stored lying on its left side
    names = [
        "Ein Bild.JPG", "ünï/photo ß.PNG", "deep.png", "grey.png", "cmyk.jpg", "palette.png", "moving.png",
        "turned.jpg", "small.webp", "a/b/c/plain.TIFF",
    ]  # fmt: skip
    cameras[8] = camera(cameras[8].camera_to_world, WIDTH * 3 // 4, HEIGHT * 3 // 4, 230 * 0.75)
    save(folder / names[0], pictures[0], quality=95)
    save(folder / names[1], pictures[1])
    save(folder / names[2], grey(pictures[2]).astype(np.uint16) * 257)
    save(folder / names[3], grey(pictures[3]))
    Image.fromarray(pictures[4]).convert("CMYK").save(folder / names[4], quality=95)
    Image.fromarray(pictures[5]).quantize(256).save(folder / names[5])
    save(folder / names[6], pictures[6], save_all=True, append_images=[Image.fromarray(pictures[0])])
    save(folder / names[7], np.rot90(pictures[7], 1), exif=turned, quality=95, subsampling=0)
    save(folder / names[8], draw(cameras[8]), quality=95)
    save(folder / names[9], pictures[9])
    (folder / "notes.txt").write_text("by me")
    (folder / "broken.jpg").write_bytes((folder / names[0]).read_bytes()[:900])
    (folder / "text.jpg").write_text("not a picture")
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "a/loop").symlink_to(folder, target_is_directory=True)
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    save(folder / "masks/Ein Bild.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    return dict(zip(names, cameras, strict=True))


def test_every_kind_of_picture_gets_its_pose(tmp_path):
    truth = mixed_bag(tmp_path)
    report = reconstruct(tmp_path, QUICK, silent)[1]
    assert report.registered == 10
    assert report.photographs == 12
    assert len(report.cameras) == 2, "one per size"
    left_out = [w for w in report.warnings if w.startswith("left out: ")]
    assert len(left_out) == 2
    assert "broken.jpg: expected a complete image" in left_out[0]
    assert "text.jpg: expected an image, got a file of no known image format" in left_out[1]
    capture = photos.read(tmp_path, LoadOptions())
    by_name = {s.name: s.camera for s in capture.shots}
    assert set(by_name) == set(truth)
    for name, got in by_name.items():
        assert (got.width, got.height) == (truth[name].width, truth[name].height), name
    assert_poses([by_name[n] for n in truth], list(truth.values()))
    scene = open_scene(tmp_path)
    turned = next(f for f in scene.frames if f.name == "turned.jpg")
    shown = draw(truth["turned.jpg"])
    assert float((turned.colors.float() - torch.from_numpy(shown.copy()).float()).abs().mean()) < 8, "as it was seen"


def test_a_loop_of_links_is_walked_once(tmp_path):
    mixed_bag(tmp_path)
    names = survey(tmp_path).names
    assert len(names) == len(set(names)) == 12
    assert list(names) == sorted(names, key=lambda n: tmp_path / n)


def test_photographs_below_images_are_taken_before_others(tmp_path):
    write_photos(tmp_path / "images", around(2))
    write_photos(tmp_path / "images_4", around(2))
    save(tmp_path / "preview.png", draw(around(1)[0]))
    found = survey(tmp_path)
    assert (found.folder, found.names) == (tmp_path / "images", ("photo_000.png", "photo_001.png"))


def test_what_is_passed_over_is_named(tmp_path):
    write_photos(tmp_path, around(2))
    (tmp_path / "a.CR2").write_bytes(b"raw")
    (tmp_path / "clip.mp4").write_bytes(b"video")
    notes = survey(tmp_path).notes
    assert notes == (
        "1 raw files are left out, such as a.CR2; convert them to JPEG or PNG",
        "videos are left out: clip.mp4; process each by its own name",
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"expected two photographs or more, found 0; put photographs there"),
        (("a.txt", "b.doc"), r"found 0, but 2 other files \(.doc, .txt\); put photographs there"),
        (("a.nef",), r"found 0, but 1 raw files such as a.nef; convert them to JPEG or PNG"),
        (("a.mp4",), r"found 0; for the video: polyfield process .*a.mp4"),
    ],
)
def test_folders_without_photographs(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(SceneError, match=message):
        survey(tmp_path)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(SceneError, match=r"expected a folder of photographs or a video, found none; check the path"):
        survey(tmp_path / "nowhere")


def test_only_broken_photographs(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text("no picture")
    with pytest.raises(SceneError, match=r"expected two photographs or more that can be read, got 0; copy them again"):
        reconstruct(tmp_path, QUICK, silent)


def test_heic_opens_where_it_can(tmp_path):
    import pillow_heif

    for i, view in enumerate(around(2)):
        heif = pillow_heif.from_pillow(Image.fromarray(draw(view)))
        heif.save(tmp_path / f"{i}.HEIC", quality=95)
    found = survey(tmp_path)
    assert len(found.names) == 2
    from polyfield.datasets.images import image_facts, read_image

    assert image_facts(tmp_path / "0.HEIC")[:3] == (WIDTH, HEIGHT, 3)
    off = grey(read_image(tmp_path / "0.HEIC")[0].numpy()) - grey(draw(around(2)[0])).astype(float)
    assert float(np.abs(off).mean()) < 6, "but for the chroma, which is stored at half size"


def test_heic_is_refused_by_name_where_it_cannot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 60)
    from polyfield.datasets.images import image_facts

    with pytest.raises(SceneError, match=r"a.heic: expected a format that is installed, got HEIC; pip install pil"):
        image_facts(tmp_path / "a.heic")


def test_without_pycolmap(tmp_path, monkeypatch):
    write_photos(tmp_path, around(2))
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(SceneError, match=r"expected the package pycolmap, which finds poses, found none; pip install"):
        reconstruct(tmp_path, QUICK, silent)


# --- videos -----------------------------------------------------------------------------------------------------------


def write_video(path, pictures, fps=10):
    with imageio.get_writer(str(path), fps=fps, codec="libx264", quality=9, macro_block_size=2) as writer:
        for picture in pictures:
            writer.append_data(picture)


def clip(path, count=24, sharp_every=3):
    """A way around the corner of which every third frame is sharp; returns the cameras."""
    cameras = [camera(pose((i / (count - 1) - 0.5) * 40)) for i in range(count)]
    write_video(path, [draw(c) if i % sharp_every == 1 else smeared(draw(c), 15) for i, c in enumerate(cameras)])
    return cameras


def test_a_video_to_a_scene(tmp_path):
    video = tmp_path / "My Clip.mp4"
    cameras = clip(video)
    assert main(["process", str(video), "--frames", "8", "--max-features", "1000"]) == 0
    folder = result_folder(video)
    assert folder == tmp_path / "My Clip.polyfield"
    numbers = [int(p.stem.rpartition("_")[2]) for p in sorted((folder / "images").iterdir())]
    assert numbers == list(range(1, 24, 3)), "the sharp ones"
    capture = photos.read(video, LoadOptions())
    assert len(capture.shots) == 8
    assert_poses([s.camera for s in capture.shots], [cameras[n] for n in numbers], tolerance=0.03)
    scene = open_scene(video, downscale=2)
    assert scene.name == "My Clip"
    assert [f.name for f in scene.test] == ["frame_000013.jpg"]


def test_fewer_frames_than_asked_for(tmp_path):
    write_video(tmp_path / "a.mp4", [draw(c) for c in around(3)])
    names = sharpest_frames(tmp_path / "a.mp4", tmp_path, 120, lambda *_: None)
    assert names == ["frame_000000.jpg", "frame_000001.jpg", "frame_000002.jpg"]


@pytest.mark.parametrize("data", [b"", b"no video at all" * 100])
def test_what_is_no_video(tmp_path, data):
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(SceneError, match=r"a.mp4: expected a video that ffmpeg decodes, could not read a frame of it"):
        reconstruct(tmp_path / "a.mp4", QUICK, silent)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_cut_short(tmp_path):
    clip(tmp_path / "whole.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(SceneError, match=r"cut.mp4: expected a video that ffmpeg decodes, .* may be cut short"):
        reconstruct(tmp_path / "cut.mp4", QUICK, silent)


def test_a_video_of_one_frame(tmp_path):
    write_video(tmp_path / "a.mp4", [draw(around(1)[0])])
    with pytest.raises(SceneError, match=r"expected a video of two frames or more, got 1; record more of the scene"):
        reconstruct(tmp_path / "a.mp4", QUICK, silent)


def test_videos_of_phones_are_turned(tmp_path):
    """A video stored lying, with a matrix that turns it: frames are as people see them."""
    import subprocess

    import imageio_ffmpeg

    write_video(tmp_path / "a.mp4", [draw(c) for c in around(3)])
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", str(tmp_path / "a.mp4")]
    subprocess.run([*ffmpeg, "-c", "copy", str(tmp_path / "b.mp4")], check=True)
    (tmp_path / "out").mkdir()
    names = sharpest_frames(tmp_path / "b.mp4", tmp_path / "out", 3, lambda *_: None)
    frame = np.asarray(Image.open(tmp_path / "out" / names[0]))
    assert frame.shape == (WIDTH, HEIGHT, 3)
    assert float(np.abs(grey(frame).astype(float) - grey(np.rot90(draw(around(3)[0])))).mean()) < 12


# --- sharpness --------------------------------------------------------------------------------------------------------


def test_sharpness_falls_and_blur_rises_with_motion():
    pictures = [draw(around(1)[0]), *(smeared(draw(around(1)[0]), n) for n in (3, 7, 15))]
    sharp, soft = [sharpness(grey(p)) for p in pictures], [blur(grey(p)) for p in pictures]
    assert sharp == sorted(sharp, reverse=True)
    assert soft == sorted(soft)
    assert soft[0] < 0.4
    assert soft[-1] > 0.55
    assert blur(grey(pictures[-1]).T) == pytest.approx(soft[-1]), "whatever the direction"
    assert blur(np.full((32, 32), 7, np.uint8)) == 1.0
    assert blur(np.zeros((4, 4), np.uint8)) == 0.0
