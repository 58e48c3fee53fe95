"""A folder listing is the registry: the modules of a package, each under its own file's name.

Listing and the first lines of docstrings are read from the files, so that ``polyfield --help`` imports nothing heavy.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from types import ModuleType

from .errors import UserError


def names(package: str) -> list[str]:
    """Names of the modules in a package such as ``polyfield.apps.recipes``."""
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec is not None else None
    return sorted(m.name for m in pkgutil.iter_modules(locations or []) if not m.name.startswith("_"))


def summary(package: str, name: str) -> str:
    """First line of a module's docstring, without importing it."""
    spec = importlib.util.find_spec(f"{package}.{name}")
    if spec is None or spec.origin is None:
        return ""
    with open(spec.origin, encoding="utf-8") as file:
        return (ast.get_docstring(ast.parse(file.read())) or "").split("\n")[0]


def load(package: str, name: str, what: str) -> ModuleType:
    """Import one module of the package. Raises UserError listing the choices if there is none of that name."""
    known = names(package)
    if name not in known:
        raise UserError(f"{what}: expected one of {', '.join(known)}, got {name!r}")
    return importlib.import_module(f"{package}.{name}")
