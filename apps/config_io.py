"""Recipes as JSON: dataclasses of numbers, enums, paths, tuples and dataclasses, there and back by their types."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from pathlib import Path
from typing import Any

from .errors import UserError


def to_json(value: Any) -> Any:
    """A dataclass (or what one holds) as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value


def from_json(kind: Any, data: Any, where: str = "config") -> Any:
    """The value of type ``kind`` that ``to_json`` wrote. Raises UserError naming the entry that does not fit.

    An entry that is absent takes its default, so that runs of an older version still open.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(data, dict):
            raise UserError(f"{where}: expected an object, got {type(data).__name__}")
        hints = typing.get_type_hints(kind)
        unknown = set(data) - {f.name for f in dataclasses.fields(kind)}
        if unknown:
            raise UserError(
                f"{where}: unknown entries {', '.join(sorted(unknown))}; the run may come from a newer polyfield"
            )
        return kind(**{name: from_json(hints[name], value, f"{where}.{name}") for name, value in data.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return from_json(next(a for a in arguments if a is not type(None)), data, where)
    if origin is tuple:
        return tuple(from_json(arguments[0], v, where) for v in data)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError:
            known = ", ".join(str(choice.value) for choice in kind)
            raise UserError(f"{where}: expected one of {known}, got {data!r}") from None
    if isinstance(kind, type) and issubclass(kind, Path):
        return kind(data)
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if isinstance(kind, type) and not isinstance(data, kind):
        raise UserError(f"{where}: expected {kind.__name__}, got {data!r}")
    return data
