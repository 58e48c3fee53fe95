"""Render a run: held-out views, an orbit, a spiral or a recorded camera path, to PNG or MP4."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..parse import Up, parse


class Views(Enum):
    """Where to look from."""

    TEST = "test"
    TRAIN = "train"
    ORBIT = "orbit"
    SPIRAL = "spiral"
    PATH = "path"


class Drawing(Enum):
    """What draws a run."""

    AUTO = "auto"
    TRACE = "trace"

    def of(self, run: Any, shadows: bool, occlusion: bool, verb: str) -> Any:
        """The run with what draws it. Raises UserError for options that it does not take."""
        from ...renderers.shading import Lighting
        from ..errors import UserError
        from ..tracing import drawn

        if (shadows or occlusion) and not (run.of_shape or self is Drawing.TRACE):
            name = "shadows" if shadows else "occlusion"
            raise UserError(f"{verb}: --{name}: expected --renderer trace as well, got {self.value}; add it")
        return drawn(run, trace=self is Drawing.TRACE, lighting=Lighting(shadows=shadows, occlusion=occlusion))


class Channel(Enum):
    """What to show."""

    COLOR = "color"
    DEPTH = "depth"
    NORMAL = "normal"
    ALPHA = "alpha"
    SHADED = "shaded"


def main(arguments: list[str]) -> None:
    parse(run, "render", arguments)


def run(
    run: Annotated[Path, tyro.conf.Positional],
    output: Path | None = None,
    views: Views | None = None,
    path: Path | None = None,
    channels: tuple[Channel, ...] = (Channel.COLOR,),
    frames: int | None = None,
    fps: int = 30,
    width: int | None = None,
    height: int | None = None,
    renderer: Drawing = Drawing.AUTO,
    shadows: bool = False,
    occlusion: bool = False,
    oversampling: int | None = None,
    up: Up = "-y",
    device: str = "auto",
) -> None:
    """Render RUN to a folder of PNG files, or to one MP4 per channel if the output ends in .mp4.

    Args:
        run: folder that ``polyfield fit`` made, or a file of Gaussians, whoever made it.
        output: folder or .mp4 file; by default RUN/renders, of FILE.ply FILE/renders.
        views: held-out or training views, an orbit around the scene, a spiral about a view, or a recorded path; by
            default the held-out views, an orbit where there are no photographs.
        path: camera path recorded in the viewer, with --views path.
        channels: any of color, depth, normal, alpha, and shaded where surfaces are traced.
        frames: number of pictures of an orbit, spiral or path; by default 120, or 8 without photographs and film.
        fps: of the MP4.
        width: of the pictures; by default the photographs'.
        height: of the pictures.
        renderer: auto is the fit's own, or for a shape trace, which draws a distance's surface by sphere tracing.
        shadows: of a traced surface: let it stand in the sun's way.
        occlusion: of a traced surface: darken what neighbours surround.
        oversampling: rays along a pixel, whose mean it shows; by default 2 (so 4 rays), of Gaussians 1.
        up: which axis points up in a file of Gaussians.
        device: auto (the GPU if it can be used), cpu, cuda or cuda:N.
    """
    from ..devices import enough_memory
    from ..errors import UserError, check_least
    from ..run import open_run

    if path is not None:
        views = Views.PATH
    if views is Views.PATH and path is None:
        raise UserError("render: --views path: expected --path FILE as well; record one with `polyfield view`")
    check_least("render", frames=(frames, 1), oversampling=(oversampling, 1))
    opened = renderer.of(open_run(run, device, up=up), shadows, occlusion, "render")
    if Channel.SHADED in channels and not hasattr(opened.renderer, "lighting"):
        raise UserError("render: --channels shaded: expected --renderer trace as well, got auto; add it")
    output = output or opened.folder / "renders"
    views = views or (Views.TEST if opened.has_photographs else Views.ORBIT)
    frames = frames or (8 if not opened.has_photographs and output.suffix.lower() != ".mp4" else 120)
    cameras = _sized(_cameras(opened, views, path, frames), width, height)
    with enough_memory("render", opened.device, "lower --width or --height"):
        written = _write(opened, cameras, output, channels, fps, oversampling)
    print("\n".join(str(p) for p in written))


def _cameras(run: Any, views: Views, path: Path | None, frames: int) -> list[tuple[str, Any]]:
    import torch

    from .. import camera_path
    from ..errors import UserError
    from ..tracing import orbit_around

    if views is Views.PATH and path is not None:
        cameras = camera_path.load_camera_path(path, frames, run.asked.facts.matrix)
        return _numbered(cameras)
    if not run.has_photographs:
        if views is not Views.ORBIT:
            raise UserError(
                f"render: --views {views.value}: expected photographs, got a run without any; use orbit, or record a "
                "path with `polyfield view` and give it by --path"
            )
        return _numbered(orbit_around(torch.tensor(run.asked.facts.up), frames))
    scene = run.scene()
    if views in (Views.TEST, Views.TRAIN):
        return [(Path(f.name).stem, f.camera) for f in (scene.test if views is Views.TEST else scene.train)]
    around = camera_path.orbit_of if views is Views.ORBIT else camera_path.spiral_of
    return _numbered(around(scene, frames))


def _numbered(cameras: list[Any]) -> list[tuple[str, Any]]:
    return [(f"{i:04d}", camera) for i, camera in enumerate(cameras)]


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
    if channel is Channel.SHADED:
        return pixels.shades[..., None].expand(-1, -1, 3)
    return pixels.alphas[..., None].expand(-1, -1, 3)


def _write(
    run: Any,
    cameras: list[tuple[str, Any]],
    output: Path,
    channels: tuple[Channel, ...],
    fps: int,
    rays: int | None,
) -> list[Path]:
    from rich.progress import track

    from ...renderers.oversampling import oversampled
    from ..images import VideoWriter, save_png

    movie = output.suffix.lower() == ".mp4"
    (output.parent if movie else output).mkdir(parents=True, exist_ok=True)
    suffix = {c: "" if len(channels) == 1 else f"_{c.value}" for c in channels}
    files = {c: output.with_name(output.stem + suffix[c] + ".mp4") for c in channels}
    writers = {c: VideoWriter(files[c], fps) for c in channels} if movie else {}
    try:
        for name, camera in track(cameras, "rendering"):
            pixels = oversampled(run.renderer, run.field, camera, rays, normals=Channel.NORMAL in channels)
            for channel in channels:
                if movie:
                    writers[channel].add(picture(pixels, channel))
                else:
                    save_png(output / f"{name}{suffix[channel]}.png", picture(pixels, channel))
    finally:
        for writer in writers.values():
            writer.close()
    return list(files.values()) if movie else [output]
