"""Say what is understood of a data set: format, cameras, lens, splits, masks, points; and draw its cameras."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ...datasets.scene import MaskUse, Scene
from ..parse import parse

if TYPE_CHECKING:
    from collections.abc import Iterator


def main(arguments: list[str]) -> None:
    parse(run, "inspect", arguments)


def run(
    data: Annotated[Path, tyro.conf.Positional],
    output: Path | None = None,
    downscale: int | None = None,
    masks: MaskUse = MaskUse.IGNORE,
) -> None:
    """Open DATA as `polyfield fit` would and print what was found; every image is decoded.

    Args:
        data: a data set, or `demo`.
        output: a .png to draw the cameras into, from above and from the side.
        downscale: as for fit; by default, as far as it makes this quick.
        masks: black pixels do not count (ignore), are empty (alpha), white ones do not count, or nothing (none).
    """
    from ...datasets.capture import build
    from ...datasets.scene import LoadOptions, find_format
    from ..checkpoint import write_whole

    module = find_format(data)
    options = LoadOptions(downscale=downscale or 1, masks=masks)
    capture = module.read(data, options) if hasattr(module, "read") else None
    if capture is None:
        scene = module.load(data, options)
    else:
        if downscale is None:
            longest = max((max(s.camera.width, s.camera.height) for s in capture.shots), default=1)
            options = LoadOptions(downscale=max(1, longest // 320), masks=masks)
        scene = build(capture, options, data)
    for name, text in report(capture, scene):
        print(f"{name:<9} {text}")
    if output is not None:
        from ..camera_picture import camera_picture

        picture = camera_picture(scene)
        write_whole(output, lambda path: picture.save(path, format="PNG"))
        print(f"{'picture':<9} {output}")


def report(capture: Any, scene: Scene) -> Iterator[tuple[str, str]]:
    """Name and text of each line. ``capture`` None: a scene without files."""
    from ...geometry.transforms import similarity_scale

    yield "scene", scene.name
    yield "format", "built in" if capture is None else capture.format
    cameras = [f.camera for f in scene.frames] if capture is None else [s.camera for s in capture.shots]
    yield "images", f"{len(cameras)}: {_counted(f'{c.width}x{c.height}' for c in cameras)}"
    yield "splits", _splits(capture, scene)
    yield "lens", _lenses(cameras)
    yield "masks", _masks(scene)
    yield "alpha", ("yes" if scene.has_alpha else "none") if scene.background is None else (
        f"cut out of the plain background of colour {_numbers(scene.background * 255, '.0f')}")  # fmt: skip
    yield "depths", _depths(scene)
    yield "points", "none" if scene.points is None else f"{len(scene.points)}"
    unit = float(similarity_scale(scene.scene_to_world))
    center, up = scene.scene_to_world[:3, 3], scene.up
    yield "frame", f"1 scene unit is {unit:.4g} of the data set's, about its ({_numbers(center)}); up ({_numbers(up)})"
    reach = 2 ** (scene.cascades - 1)
    yield "bounds", f"[-{reach}, {reach}]^3 scene units, nothing nearer to a camera than {scene.near:.3g}"
    for text in [*([] if capture is None else capture.warnings), *warnings(scene)]:
        yield "warning", text


def warnings(scene: Scene) -> list[str]:
    """What will make a fit poor, seen from the cameras alone."""
    import torch

    found = []
    if len(scene.train) < 10:
        found.append(f"{len(scene.train)} photographs to fit are few; 30 or more usually show a scene from all sides")
    positions = torch.stack([f.camera.position for f in scene.frames])
    distance = (positions - positions.median(0).values).norm(dim=-1)
    usual = float(distance.median())
    far = [f.name for f, d in zip(scene.frames, distance.tolist(), strict=True) if d > 8 * usual > 0]
    if far:
        found.append(f"{len(far)} cameras lie far from all others: {', '.join(far[:3])}; their poses may be wrong")
    if float(distance.max()) == 0:
        found.append("all cameras are in one place: there is no depth to be found")
    upside = [f.name for f in scene.frames if float(f.camera.up @ scene.up) < 0]
    if upside:
        found.append(f"{len(upside)} cameras are upside down: {', '.join(upside[:3])}")
    return found


def _counted(words: Iterator[str]) -> str:
    from collections import Counter

    return ", ".join(f"{n} of {word}" for word, n in Counter(words).most_common(6))


def _splits(capture: Any, scene: Scene) -> str:
    from ...datasets.scene import Split

    counts = ", ".join(f"{len(scene.of(s))} {s.value}" for s in Split if scene.of(s))
    stated = capture is None or capture.splits_stated or any(s.split is not Split.TRAIN for s in capture.shots)
    return counts + (" (stated by the data set)" if stated else " (every 8th held out)")


def _lenses(cameras: list[Any]) -> str:
    import math

    from ...datasets.capture import lens_key

    distinct = {lens_key(c): c for c in cameras}
    first = next(iter(distinct.values()))
    text = f"{len(distinct)} camera{'s' if len(distinct) > 1 else ''}, {_counted(c.model.value for c in cameras)}"
    if first.model.value == "equirectangular":
        return text
    K = first.K.double()
    text += f"; fx {K[0, 0]:.2f}, fy {K[1, 1]:.2f}, centre ({K[0, 2]:.2f}, {K[1, 2]:.2f}) px"
    if first.distortion is not None:
        text += f", distortion {_numbers(first.distortion)}"
    halves = (first.width / (2 * float(K[0, 0])), first.height / (2 * float(K[1, 1])))
    angles = [2 * math.degrees(math.atan(half)) for half in halves]
    text += f", {angles[0]:.0f} x {angles[1]:.0f} degrees" if first.model.value != "fisheye" else ""
    return text + (" (the first)" if len(distinct) > 1 else "")


def _masks(scene: Scene) -> str:
    masked = [f for f in scene.frames if f.mask is not None]
    if not masked:
        return "none"
    share = sum(float(f.mask.float().mean()) for f in masked if f.mask is not None) / len(masked)
    return f"{len(masked)} of {len(scene.frames)}, {share:.0%} of their pixels count"


def _depths(scene: Scene) -> str:
    import torch

    maps = [f.depths for f in scene.frames if f.depths is not None]
    if not maps:
        return "none"
    known = torch.cat([m[m > 0][::97] for m in maps])
    ends = torch.quantile(known, torch.tensor([0.01, 0.99])) if len(known) else torch.zeros(2)
    return f"{len(maps)} of {len(scene.frames)}, from {ends[0]:.3g} to {ends[1]:.3g} scene units"


def _numbers(values: Any, form: str = ".4g") -> str:
    return ", ".join(f"{x:{form}}" for x in values.tolist())
