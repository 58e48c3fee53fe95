"""What is wrong with a data set is said by name, in every format."""

import json
import re
import zipfile

import numpy as np
import pytest
from polyfield.datasets.scene import SceneError, open_scene

from tests.capture_writers import WRITERS, write_opensfm, write_panoramas


def change(path, edit) -> None:
    """Rewrite a JSON file."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def spoil_npz(path, **arrays) -> None:
    np.savez(path, **{**dict(np.load(path)), **arrays})


def spoil_npy(path, column: int, value: float) -> None:
    rows = np.load(path)
    rows[2, column] = value
    np.save(path, rows)


def replace_in(path, old: str, new: str, count: int = -1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def spoil_middle(path) -> None:
    """Other bytes in the first photograph."""
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(data)


def rezip(path, without: str, bomb: bool = False) -> None:
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if name != without}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
        if bomb:
            archive.writestr("rgbd/99.png", bytes(4 << 20))


MISTAKES = [
    ("neus", lambda r: spoil_npz(r / "cameras_sphere.npz", world_mat_3=np.zeros((4, 4))),
     r"world_mat_3: expected a projection matrix K \[R \| t\], got .*; export it again"),
    ("neus", lambda r: spoil_npz(r / "cameras_sphere.npz", world_mat_3=np.zeros((3, 4))),
     r"expected matrices world_mat_0, world_mat_1, ... of 4 x 4, got world_mat_3 of shape \(3, 4\)"),
    ("neus", lambda r: spoil_npz(r / "cameras_sphere.npz", world_mat_20=np.eye(4)),
     r"expected matrices world_mat_0, .*, got numbers \[0, 1, 2, 3, 4, 5, 6, 7, 8, 20\]"),
    ("neus", lambda r: spoil_npz(r / "cameras_sphere.npz", scale_mat_0=np.zeros((4, 4))),
     r"scale_mat_0: expected a scale and a shift, got"),
    ("neus", lambda r: (r / "cameras_sphere.npz").write_bytes(b"PK"),
     r"cameras_sphere.npz: expected arrays world_mat_i and scale_mat_i, got .*; copy it again"),
    ("neus", lambda r: (r / "image/000003.png").unlink(),
     r"expected as many photographs as cameras \(9\), found 8 in .*image; restore"),
    ("neus", lambda r: (r / "image").rename(r / "pictures"), r"expected photographs in a folder `image` beside it"),
    ("llff", lambda r: (r / "poses_bounds.npy").write_bytes(b"\x93NUMPY"),
     r"poses_bounds.npy: expected an array of 17 columns, got .*; run LLFF's imgs2poses again"),
    ("llff", lambda r: np.save(r / "poses_bounds.npy", np.zeros((9, 15))),
     r"expected finite numbers in 17 columns, got shape \(9, 15\)"),
    ("llff", lambda r: spoil_npy(r / "poses_bounds.npy", 15, -1.0), r"row 2: expected a size, a focal length"),
    ("llff", lambda r: spoil_npy(r / "poses_bounds.npy", 0, 3.0), r"row 2: expected a rotation and a shift"),
    ("llff", lambda r: (r / "images_4/002.png").unlink(), r"expected as many photographs as cameras \(9\), found 8"),
    ("llff", lambda r: (r / "images_4").rename(r / "x"), r"expected photographs in a folder `images` or `images_8`"),
    ("opensfm", lambda r: (r / "reconstruction.json").write_text("{"), r"reconstruction.json: expected JSON, got"),
    ("opensfm", lambda r: (r / "reconstruction.json").write_text("[]"),
     r"expected a list of reconstructions with shots, found none; run OpenSfM again"),
    ("opensfm", lambda r: replace_in(r / "reconstruction.json", '"brown"', '"dual"'),
     r"projection_type: expected one of perspective, .*, got 'dual'; undistort"),
    ("opensfm", lambda r: change(r / "reconstruction.json", lambda d: d[1]["shots"]["3.png"].update(rotation=[1, 2])),
     r"3.png: rotation: expected 3 numbers, got \[1, 2\]; export the file again"),
    ("opensfm", lambda r: change(r / "reconstruction.json", lambda d: d[1]["shots"]["3.png"].update(camera="z")),
     r"3.png: expected a camera of the file, got 'z'; run OpenSfM again"),
    ("opensfm", lambda r: change(r / "reconstruction.json", lambda d: d[1]["cameras"]["c"].update(focal_x=0)),
     r"camera: expected a focal length above 0, got 0"),
    ("opensfm", lambda r: change(r / "reconstruction.json", lambda d: d[1]["points"].update(x={"color": [1, 2, 3]})),
     r"points: expected coordinates and colours"),
    ("opensfm", lambda r: (r / "images/3.png").unlink(), r"3.png: expected an image, found no such file"),
    ("polycam", lambda r: change(r / "keyframes/cameras/103.json", lambda d: d.pop("fx")),
     r"103.json: fx, fy, cx, cy, width, height: expected 6 numbers, got"),
    ("polycam", lambda r: change(r / "keyframes/cameras/103.json", lambda d: d.update(t_11=9.0)),
     r"103.json: t_00 to t_23: expected a rotation and a shift, got scales"),
    ("polycam", lambda r: (r / "keyframes/cameras/103.json").write_text("[]"), r"103.json: expected an object"),
    ("polycam", lambda r: (r / "keyframes/images/103.png").unlink(), r"expected an image images/103.jpg, found none"),
    ("record3d", lambda r: change(r / "metadata.json", lambda d: d.pop("poses")), r"expected an object with poses"),
    ("record3d", lambda r: change(r / "metadata.json", lambda d: d["poses"].pop()),
     r"expected as many photographs as poses \(11\), found 12 in"),
    ("record3d", lambda r: change(r / "metadata.json", lambda d: d["poses"][4].__setitem__(slice(0, 4), [0, 0, 0, 0])),
     r"poses: 4: expected a rotation, got"),
    ("record3d", lambda r: change(r / "metadata.json", lambda d: d["K"].__setitem__(0, 0)),
     r"expected focal lengths above 0, got \[0.0, 27.0\]"),
    ("record3d", lambda r: change(r / "metadata.json", lambda d: d.update(w="wide")), r"w, h: expected 2 numbers"),
    ("scannet", lambda r: (r / "intrinsic/intrinsic_color.txt").unlink(), r"expected intrinsic/intrinsic_color.txt"),
    ("scannet", lambda r: (r / "pose/3.txt").write_text("1 2 x"), r"3.txt: expected a matrix as text, got"),
    ("scannet", lambda r: (r / "pose/3.txt").write_text("1 2 3"), r"3.txt: expected 4 x 4 numbers, got \(1, 3\)"),
    ("scannet", lambda r: (r / "pose/3.txt").unlink(), r"3.txt: expected a matrix as text, got .*not found"),
    ("metashape", lambda r: replace_in(r / "cameras.xml", "</document>", ""), r"cameras.xml: expected whole XML, got"),
    ("metashape", lambda r: replace_in(r / "cameras.xml", "<transform>", "<was>", 9),
     r"expected whole XML"),
    ("metashape", lambda r: replace_in(r / "cameras.xml", "<k1>", "<b2>1e-3</b2><k1>"),
     r"camera IMG 0: expected a frame lens without b2; optimize the cameras without them"),
    ("metashape", lambda r: replace_in(r / "cameras.xml", "<k1>", "<k4>0.1</k4><k1>"),
     r"camera IMG 0: expected a frame lens without k4"),
    ("metashape", lambda r: replace_in(r / "cameras.xml", 'sensor id="0" type="frame"', 'sensor id="0" type="rpc"'),
     r"expected a calibrated frame, fisheye or spherical camera, got rpc"),
    ("metashape", lambda r: replace_in(r / "cameras.xml", 'id="2" sensor_id="0"', 'id="2" sensor_id="5"'),
     r"camera IMG 2: expected a sensor of the file, got 5"),
    ("metashape", lambda r: replace_in(r / "cameras.xml", 'label="IMG 2"', 'label="IMG 77"'),
     r"camera IMG 77: expected its photograph in .*images, found none"),
    ("mvsnet", lambda r: (r / "blended_images").rename(r / "x"), r"expected photographs in blended_images or images"),
    ("mvsnet", lambda r: (r / "blended_images/00000003.png").unlink(),
     r"expected a photograph for each camera, found none for 00000003 in .*blended_images; restore"),
    ("mvsnet", lambda r: (r / "cams/00000003_cam.txt").write_text("extrinsic\n1 0"),
     r"00000003_cam.txt: expected extrinsic with 16 numbers, intrinsic with 9 and a depth range, got"),
    ("mvsnet", lambda r: replace_in(r / "cams/00000003_cam.txt", "26.0", "0.0"),
     r"00000003_cam.txt: intrinsic: expected focal lengths above 0 and a principal point inside the image of 24 x 20"),
    ("mvsnet", lambda r: replace_in(r / "cams/00000003_cam.txt", "0.0 0.0 0.0 1.0", "0.0 0.0 0.0 2.0"),
     r"00000003_cam.txt: extrinsic: expected a rotation and a shift"),
    ("mvsnet", lambda r: (r / "rendered_depth_maps/00000003.pfm").write_bytes(b"Pf\n24 20\n-1\n1234"),
     r"00000003.pfm: expected a complete grey .pfm, got"),
    ("mvsnet", lambda r: (r / "rendered_depth_maps/00000003.pfm").write_bytes(b"PF\n24 20\n-1\n"),
     r"00000003.pfm: expected a complete grey .pfm, got another header"),
    ("seven_scenes", lambda r: (r / "camera-intrinsics.txt").unlink(),
     r"expected camera-intrinsics.txt or info.txt for an image of 24 x 20, found neither"),
    ("seven_scenes", lambda r: (r / "camera-intrinsics.txt").write_text("585 0 320\n0 585 240\n0 0 1"),
     r"frame-000000.color.png: expected focal lengths above 0 and a principal point inside the image of 24 x 20"),
    ("seven_scenes", lambda r: ((r / "camera-intrinsics.txt").unlink(), (r / "info.txt").write_text("m_a = 1\n")),
     r"info.txt: m_calibrationColorIntrinsic: expected 16 numbers, got none"),
    ("seven_scenes", lambda r: ((r / "camera-intrinsics.txt").unlink(),
                                (r / "info.txt").write_text("m_calibrationColorIntrinsic = 1 2 x\n")),
     r"info.txt: m_calibrationColorIntrinsic: expected 16 numbers, got 1 2 x"),
    ("seven_scenes", lambda r: (r / "seq-01/frame-000003.color.png").unlink(),
     r"frame-000003.pose.txt: expected its photograph frame-000003.color.png, found none"),
    ("seven_scenes", lambda r: (r / "seq-01/frame-000003.pose.txt").write_text("1 2"),
     r"frame-000003.pose.txt: expected 4 x 4 numbers, got \(1, 2\)"),
    ("r3d", lambda r: r.write_bytes(r.read_bytes()[:-30]), r"a scan.r3d: expected a whole .r3d archive, got"),
    ("r3d", spoil_middle, r"a scan.r3d: expected a whole .r3d archive, got"),
    ("r3d", lambda r: rezip(r, "metadata"), r"expected metadata and rgbd/0.jpg in it, found neither"),
    ("r3d", lambda r: rezip(r, "rgbd/3.png"), r"expected as many photographs as poses \(12\), found 11"),
    ("r3d", lambda r: rezip(r, "", bomb=True), r"expected photographs, got what unpacks to over 20 times its size"),
    ("transforms_json", lambda r: (r / "sparse.ply").unlink(), r"sparse.ply: expected a .ply file of points"),
    ("transforms_json", lambda r: (r / "sparse.ply").write_text("ply\n"), r"sparse.ply: expected a PLY header"),
    ("transforms_json", lambda r: replace_in(r / "sparse.ply", "property double y\n", ""), r"sparse.ply: expected"),
    ("transforms_json", lambda r: change(r / "transforms.json", lambda d: d.update(ply_file_path="../points.ply")),
     r"ply_file_path: expected a path inside"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "message"), MISTAKES, ids=[f"{i}-{m[0]}" for i, m in enumerate(MISTAKES)])
def test_mistakes(tmp_path, name, spoil, message):
    written = WRITERS[name][0](tmp_path / "data")
    spoil(written.root)
    with pytest.raises(SceneError) as caught:
        open_scene(written.root)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    assert str(tmp_path) in str(caught.value), "the message names the file"


def test_photographs_without_cameras_say_how_to_find_them(tmp_path):
    write_panoramas(tmp_path)
    (tmp_path / "reconstruction.json").unlink()
    with pytest.raises(SceneError, match=r"expected photographs with poses, found none .*; find them: polyfield"):
        open_scene(tmp_path)


def test_a_reconstruction_by_its_file(tmp_path):
    written = write_opensfm(tmp_path / "a")
    assert len(open_scene(written.root / "reconstruction.json").frames) == 9
