"""From words on the command line to a call of a typed function, by tyro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Up = Literal["-y", "y", "z"]  # the axis that points up in a file of Gaussians, as ``load_gaussians`` has it


def parse(target: Callable[..., Any], verb: str, arguments: list[str]) -> Any:
    """Call ``target`` (a function or a dataclass) with what ``arguments`` say; enums are named by their values."""
    import tyro

    return tyro.cli(target, prog=f"polyfield {verb}", args=arguments, config=(tyro.conf.EnumChoicesFromValues,))
