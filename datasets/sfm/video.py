"""A video as photographs: of each stretch of equal length its sharpest frame.

Frames are decoded once, in order, and turned as the video says; one is written when its stretch is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..scene import SceneError
from .sharpness import sharpness

WIDTH = 640  # pixels; sharpness is measured about this wide: finer than that it is the encoder's noise
QUALITY = 95  # of JPEG


def sharpest_frames(video: Path, folder: Path, count: int, tell: Callable[[int, int], None]) -> list[str]:
    """Write ``count`` frames (all, if there are fewer) to ``folder``; returns their names, which have frames' numbers.

    ``tell(done, total)`` hears of the frames decoded. Raises SceneError for what cannot be decoded.
    """
    from PIL import Image

    total, frames = _decode(video)
    stretches = min(count, total)
    names: list[str] = []
    best: tuple[float, int, np.ndarray] | None = None
    current = -1

    def keep() -> None:
        if best is not None:
            names.append(f"frame_{best[1]:06d}.jpg")
            Image.fromarray(best[2]).save(folder / names[-1], quality=QUALITY, subsampling=0)

    for number, frame in enumerate(frames):
        stretch = min(number * stretches // total, stretches - 1)
        if stretch != current:
            keep()
            best, current = None, stretch
        step = max(1, frame.shape[1] // WIDTH)
        score = sharpness(_green(frame, step))
        if best is None or score > best[0]:
            best = score, number, frame
        tell(number + 1, total)
    keep()
    if len(names) < 2:
        raise SceneError(f"{video}: expected a video of two frames or more, got {len(names)}; record more of the scene")
    return names


def _green(frame: np.ndarray, step: int) -> np.ndarray:
    """The green channel, blocks of ``step`` averaged."""
    height, width = (n // step * step for n in frame.shape[:2])
    green = frame[:height, :width, 1].reshape(height // step, step, width // step, step)
    return green.mean((1, 3))


def _decode(video: Path) -> tuple[int, Iterator[np.ndarray]]:
    """How many frames there are about, and the frames (H, W, 3) uint8."""
    import imageio_ffmpeg

    if not video.is_file():
        raise SceneError(f"{video}: expected a video, found no such file; check the path")
    try:
        total = imageio_ffmpeg.count_frames_and_secs(str(video))[0]
        frames = imageio_ffmpeg.read_frames(str(video), pix_fmt="rgb24")
        width, height = next(frames)["size"]
    except (OSError, RuntimeError, StopIteration, KeyError):
        total = 0
    if total < 1:
        raise SceneError(
            f"{video}: expected a video that ffmpeg decodes, could not read a frame of it; the file may be cut short: "
            "copy it again, or convert it (ffmpeg -i IN OUT.mp4)"
        )

    def decoded() -> Iterator[np.ndarray]:
        try:
            for data in frames:
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
        except (OSError, RuntimeError) as error:
            raise SceneError(f"{video}: expected a complete video, got {str(error)[-80:]}; copy it again") from None

    return total, decoded()
