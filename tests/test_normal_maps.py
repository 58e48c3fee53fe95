"""Normal maps of transforms.json: the axes that they may be in, what is unknown, shrinking, and mistakes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from polyfield.datasets.normals import read_normals
from polyfield.datasets.scene import SceneError, open_scene
from polyfield.geometry.transforms import opengl_to_opencv

from .test_datasets import capture, write


def encoded(normals):
    return ((np.asarray(normals) + 1) / 2 * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("axes", [None, "opengl", "opencv", "world"])
def test_axes(tmp_path, axes):
    """All cameras look at a plane whose normal is (0.6, 0, 0.8) in the file's world."""
    data = capture(tmp_path, applied_scale=2.0)
    wanted = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    for number, frame in enumerate(data["frames"]):
        pose = torch.tensor(frame["transform_matrix"], dtype=torch.float64)  # OpenGL
        pose = opengl_to_opencv(pose) if axes == "opencv" else pose
        normal = wanted if axes == "world" else pose[:3, :3].T @ wanted
        pixels = encoded(normal.expand(24, 24, 3))
        pixels[0, 0] = 0
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        frame["normal_file_path"] = f"{number}.png"
    write(tmp_path, data if axes is None else {**data, "normal_axes": axes})
    scene = open_scene(tmp_path, downscale=2)
    to_world = scene.scene_to_world[:3, :3].float()
    for frame in scene.frames:
        assert frame.normals.shape == (12, 12, 3) and frame.normals.dtype == torch.float16
        turned = torch.nn.functional.normalize(frame.normals.float() @ to_world.T, dim=-1)
        torch.testing.assert_close(turned, wanted.float().expand(12, 12, 3), atol=0.01, rtol=0)
        assert frame.memory_bytes == frame.colors.numel() + frame.normals.numel() * 2


def test_what_is_unknown(tmp_path):
    pixels = np.full((1, 4, 4), 255, np.uint8)
    pixels[0, :, :3] = encoded([[0, 0, 1], [0, 0, 1], [0.1, 0.1, 0.1], [-1, -1, -1]])
    pixels[0, 1, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "n.png")
    read = read_normals(tmp_path / "n.png")[0]
    torch.testing.assert_close(read[0], torch.tensor([0.0, 0.0, 1.0]), atol=0.01, rtol=0)
    assert (read[1:] == 0).all()
    np.save(tmp_path / "n.npy", np.array([[[0, 3.0, 0], [np.nan, 0, 1], [np.inf, 0, 0], [0, 0, 0]]]))
    assert read_normals(tmp_path / "n.npy").tolist() == [[[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]]


def test_shrinking(tmp_path):
    x, z = [1.0, 0, 0], [0, 0, 1.0]
    minus, nothing = [0, 0, -1.0], [0.0, 0, 0]
    block = np.array([[x, z, z, minus, nothing, z], [x, z, z, minus, nothing, nothing]], np.float32)
    np.save(tmp_path / "n.npy", block)
    read = read_normals(tmp_path / "n.npy", 2)
    half = 0.5**0.5
    torch.testing.assert_close(read, torch.tensor([[[half, 0, half], [0, 0, 0], [0, 0, 1.0]]]))


def test_mistakes(tmp_path):
    data = capture(tmp_path)

    def refused(match, **entries):
        write(tmp_path, {**data, "frames": [dict(f, **entries) for f in data["frames"]]})
        with pytest.raises(SceneError, match=match):
            open_scene(tmp_path)

    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "cut.npy").write_bytes(b"no array")
    np.save(tmp_path / "flat.npy", np.zeros((24, 24)))
    refused(r"none.png: expected normals, found no such file", normal_file_path="none.png")
    refused(r"normal_file_path: expected a path inside", normal_file_path="/etc/n.png")
    refused(r"grey.png: expected normals as RGB, got an image of mode L", normal_file_path="grey.png")
    refused(r"small.png: expected the image's size 24 x 24, got 8 x 8", normal_file_path="small.png")
    refused(r"cut.npy: expected normals as a .npy array", normal_file_path="cut.npy")
    refused(r"flat.npy: expected normals of shape \(H, W, 3\), got \(24, 24\)", normal_file_path="flat.npy")
    refused(
        r"normal_axes: expected one of opengl, opencv, world, got 'blender'",
        normal_file_path="small.png",
        normal_axes="blender",
    )
    assert json.loads((tmp_path / "transforms.json").read_text())["frames"][0]["normal_axes"] == "blender"
