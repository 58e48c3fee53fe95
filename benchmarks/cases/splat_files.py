"""Every file of Gaussians that other programs wrote, to every format and back to its own: size, and largest changes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from polyfield.geometry import Gaussians
from polyfield.geometry.gaussian_differences import largest_differences
from polyfield.geometry.gaussian_transforms import with_degree
from polyfield.geometry.splat_io import file_order, format_of, load_gaussians, save_gaussians, suffixes

from ..measure import Row
from ..scenes import data_root


def run(device: str) -> Iterator[Row]:
    root = data_root()
    if root is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((root / "gaussians").iterdir()):
            if source.suffix not in suffixes():
                continue
            start = load_gaussians(source)
            for suffix in suffixes():
                paths = [Path(folder) / f"there{suffix}", Path(folder) / f"back{source.suffix}"]
                expected = current = start
                for path in paths:
                    expected, current = _through(path, expected, current)
                size = paths[0].stat().st_size / 1e6
                lost = "" if current.degree == start.degree else f" (degree {start.degree} to {current.degree})"
                name = f"{source.name} to {suffix} and back"
                yield Row(name, None, size, "MB", f"{largest_differences(expected, current)}{lost}")


def _through(path: Path, expected: Gaussians, current: Gaussians) -> tuple[Gaussians, Gaussians]:
    """What was meant and what is read, in the order of a file that holds no more bands than its format does."""
    form = format_of(path, "benchmark")
    order, degree = file_order(form, current), min(current.degree, form.DEGREE)
    save_gaussians(path, with_degree(current, degree))
    return with_degree(expected[order], degree), load_gaussians(path)
