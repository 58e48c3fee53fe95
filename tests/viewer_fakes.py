"""A scene that takes no fitting, and a browser window without a browser, for the viewer's tests."""

import math
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from polyfield.apps.viewer.painting import Stage
from polyfield.apps.viewer.photos import Photos
from polyfield.apps.viewer.server import Viewer
from polyfield.geometry import Aabb, Camera, Pixels
from polyfield.geometry import transforms as tf
from polyfield.renderers.protocols import Render

SCENE_TO_WORLD = tf.similarity(2.0, torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0]).double())
HOME = tf.orbit(torch.zeros(3), 2.5, 1, 0.3, torch.tensor([0.0, 0.0, 1.0]))[0]


class Ball:
    """A sphere of radius 1/2, drawn where near and far let it; it counts, and can be made slow or wrong."""

    def __init__(self, seconds_per_call=0.0):
        self.training = True
        self.seconds_per_call = seconds_per_call
        self.calls = self.rays = 0
        self.error = None
        self.during = lambda: None

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.train(False)

    def render(self, field, rays, *, normals=False):
        assert not self.training, "what is shown is not what is fitted"
        self.calls += 1
        self.rays += len(rays)
        self.during()
        if self.error is not None:
            raise self.error
        time.sleep(self.seconds_per_call)
        along = -(rays.origins * rays.directions).sum(-1)
        square = along**2 - (rays.origins**2).sum(-1) + 0.25
        root = square.clamp(min=0).sqrt()
        first, second = along - root, along + root
        t = torch.where(first >= rays.near, first, second)
        hit = (square > 0) & (t >= rays.near) & (t <= rays.far)
        points = rays.origins + rays.directions * t[:, None]
        colors = torch.where(hit[:, None], points + 0.5, 0.0)
        normals = points * 2 * hit[:, None] if normals else None
        return Render(Pixels(colors=colors, alphas=hit.float(), depths=torch.where(hit, t, 0.0), normals=normals))


def stage(**options):
    return Stage(SimpleNamespace(bounds=Aabb.cube(1.0)), Ball(**options), near=0.0)


def camera(width=32, height=24):
    return Camera.perspective(width, height, 0.8, HOME)


def photographs(count=3):
    poses = tf.orbit(torch.zeros(3), 2.5, count, 0.3, torch.tensor([0.0, 0.0, 1.0]))
    colors = torch.randint(256, (48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    frames = tuple(
        SimpleNamespace(
            name=f"{i:03d}.png",
            split=SimpleNamespace(value="test" if i == 0 else "train"),
            camera=Camera.perspective(64, 48, 0.8, pose),
            colors=colors,
            alphas=None,
        )
        for i, pose in enumerate(poses)
    )
    return SimpleNamespace(
        frames=frames, name="ball", near=0.0, scene_to_world=SCENE_TO_WORLD, up=torch.tensor([0.0, 0, 1])
    )


def viewer(run=None, open_scene=photographs, **options):
    return Viewer(
        options.pop("stage", None) or stage(),
        name="ball",
        scene_to_world=SCENE_TO_WORLD,
        photos=Photos(open_scene),
        run=run,
        home=HOME,
        port=options.pop("port", 0),
        **options,
    )


class Client:
    """A browser window: viser's own controls and scene, and a camera that does as it is told."""

    def __init__(self, server, width=32, height=24):
        pose = tf.matrix_to_quaternion(HOME[:3, :3])
        self.client_id = id(self)
        self.gui = server.gui
        self.pictures, self.downloads, self.notes = [], [], []
        self.scene = _Scene(server.scene, self.pictures)
        self._moved = []
        self.camera = SimpleNamespace(
            wxyz=pose.numpy(),
            position=HOME[:3, 3].numpy(),
            fov=0.8,
            image_width=width,
            image_height=height,
            aspect=width / height,
            up_direction=np.zeros(3),
            on_update=self._moved.append,
        )

    def moved(self):
        for call in self._moved:
            call(self.camera)

    def flush(self):
        pass

    @contextmanager
    def atomic(self):
        yield

    def add_notification(self, title, body, **_):
        self.notes.append((title, body))
        return SimpleNamespace(remove=lambda: None)

    def send_file_download(self, name, content, **_):
        self.downloads.append((name, content))


class _Scene:
    """A server's scene that remembers the pictures behind it."""

    def __init__(self, scene, pictures):
        self._scene, self._pictures = scene, pictures

    def set_background_image(self, image, **options):
        self._pictures.append((image, options))
        self._scene.set_background_image(image, **options)

    def __getattr__(self, name):
        return getattr(self._scene, name)


def soon(condition, seconds=20.0):
    """Wait until a condition holds; the machine that runs the tests may be busy."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def settled(panel):
    """Whether a window shows the sharpest picture of what it is asked for now, and not one of before."""
    window = panel.window
    with panel.viewer.loop._condition:
        return window.shown_version == window.version and window.shown_sharpest


class Gate:
    """Something that a painting thread can be held at."""

    def __init__(self):
        self.open, self.reached = threading.Event(), threading.Event()

    def __call__(self):
        self.reached.set()
        assert self.open.wait(20)


def look(width=32, height=24, **options):
    from polyfield.apps.viewer.loop import Look

    return Look(camera(width, height), **options)


def degrees(radians):
    return radians * 180 / math.pi
