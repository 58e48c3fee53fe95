"""Render a run: held-out views, an orbit, a spiral or a recorded camera path, to PNG or MP4."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..parse import parse


class Views(Enum):
    """Where to look from."""

    TEST = "test"
    TRAIN = "train"
    ORBIT = "orbit"
    SPIRAL = "spiral"
    PATH = "path"


class Channel(Enum):
    """What to show."""

    COLOR = "color"
    DEPTH = "depth"
    NORMAL = "normal"
    ALPHA = "alpha"


def main(arguments: list[str]) -> None:
    parse(run, "render", arguments)


def run(
    run: Annotated[Path, tyro.conf.Positional],
    output: Path | None = None,
    views: Views = Views.TEST,
    path: Path | None = None,
    channels: tuple[Channel, ...] = (Channel.COLOR,),
    frames: int = 120,
    fps: int = 30,
    width: int | None = None,
    height: int | None = None,
    device: str = "auto",
) -> None:
    """Render RUN to a folder of PNG files, or to one MP4 per channel if the output ends in .mp4.

    Args:
        run: folder that ``polyfield fit`` made.
        output: folder or .mp4 file; by default RUN/renders.
        views: held-out or training views, an orbit around the scene, a spiral about a view, or a recorded path.
        path: camera path recorded in the viewer, with --views path.
        channels: any of color, depth, normal, alpha.
        frames: number of pictures of an orbit, spiral or path.
        fps: of the MP4.
        width: of the pictures; by default the photographs'.
        height: of the pictures.
        device: auto (the GPU if it can be used), cpu, cuda or cuda:N.
    """
    from ..devices import enough_memory
    from ..errors import UserError
    from ..run import open_run, refuse_shape

    if path is not None:
        views = Views.PATH
    if views is Views.PATH and path is None:
        raise UserError("render: --views path: expected --path FILE as well; record one with `polyfield view`")
    if frames < 1:
        raise UserError(f"render: --frames: expected at least 1, got {frames}")
    opened = open_run(run, device)
    refuse_shape(opened, "render")
    output = output or run / "renders"
    cameras = _sized(_cameras(opened, views, path, frames), width, height)
    with enough_memory("render", opened.device, "lower --width or --height"):
        written = _write(opened, cameras, output, channels, fps)
    print("\n".join(str(p) for p in written))


def _cameras(run: Any, views: Views, path: Path | None, frames: int) -> list[tuple[str, Any]]:
    from .. import camera_path

    if views is Views.PATH and path is not None:
        cameras = camera_path.load_camera_path(path, frames, run.asked.facts.matrix)
        return [(f"{i:04d}", camera) for i, camera in enumerate(cameras)]
    scene = run.scene()
    if views in (Views.TEST, Views.TRAIN):
        return [(Path(f.name).stem, f.camera) for f in (scene.test if views is Views.TEST else scene.train)]
    around = camera_path.orbit_of if views is Views.ORBIT else camera_path.spiral_of
    return [(f"{i:04d}", camera) for i, camera in enumerate(around(scene, frames))]


def _sized(cameras: list[tuple[str, Any]], width: int | None, height: int | None) -> list[tuple[str, Any]]:
    if width is None and height is None:
        return cameras
    resized = []
    for name, camera in cameras:
        w = width or max(1, round(camera.width * height / camera.height))  # type: ignore[operator]
        h = height or max(1, round(camera.height * w / camera.width))
        resized.append((name, camera.resized(w, h)))
    return resized


def picture(pixels: Any, channel: Channel) -> Any:
    """One channel of rendered pixels as an image (H, W, 3) in [0, 1]."""
    from ..images import depth_picture, normal_picture

    if channel is Channel.COLOR:
        return pixels.colors.clamp(0, 1)
    if channel is Channel.DEPTH:
        return depth_picture(pixels.depths, pixels.alphas)
    if channel is Channel.NORMAL:
        return normal_picture(pixels.normals, pixels.alphas)
    return pixels.alphas[..., None].expand(-1, -1, 3)


def _write(
    run: Any, cameras: list[tuple[str, Any]], output: Path, channels: tuple[Channel, ...], fps: int
) -> list[Path]:
    from rich.progress import track

    from ..images import VideoWriter, save_png

    movie = output.suffix.lower() == ".mp4"
    (output.parent if movie else output).mkdir(parents=True, exist_ok=True)
    suffix = {c: "" if len(channels) == 1 else f"_{c.value}" for c in channels}
    files = {c: output.with_name(output.stem + suffix[c] + ".mp4") for c in channels}
    writers = {c: VideoWriter(files[c], fps) for c in channels} if movie else {}
    try:
        for name, camera in track(cameras, "rendering"):
            pixels = run.renderer.render(run.field, camera, normals=Channel.NORMAL in channels).pixels
            for channel in channels:
                if movie:
                    writers[channel].add(picture(pixels, channel))
                else:
                    save_png(output / f"{name}{suffix[channel]}.png", picture(pixels, channel))
    finally:
        for writer in writers.values():
            writer.close()
    return list(files.values()) if movie else [output]
