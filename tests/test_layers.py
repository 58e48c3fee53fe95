"""Dependencies point one way: cuda <- geometry <- fields, datasets; fields <- renderers; apps on top."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "cuda": set(),
    "geometry": {"cuda"},
    "fields": {"cuda", "geometry"},
    "datasets": {"geometry"},
    "renderers": {"cuda", "geometry", "fields"},
    "apps": {"cuda", "geometry", "fields", "datasets", "renderers"},
}
LIGHT = {"torch", "numpy"}  # all that these layers import when they are imported
LIGHT_LAYERS = ("cuda", "geometry", "fields", "renderers")


def sources(layer):
    return [(layer, path) for path in sorted((ROOT / layer).rglob("*.py"))]


def imported_layers(layer, path):
    """Layers named by the imports of one file, relative ones resolved."""
    package = ["polyfield", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [".".join([*base, *(node.module.split(".") if node.module else ()), a.name]) for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "polyfield" and len(parts) > 1 and parts[1] in MAY_IMPORT:
                yield parts[1]


@pytest.mark.parametrize(
    ("layer", "path"), [s for layer in MAY_IMPORT for s in sources(layer)], ids=lambda x: getattr(x, "name", x)
)
def test_imports_point_down(layer, path):
    upward = set(imported_layers(layer, path)) - MAY_IMPORT[layer] - {layer}
    assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


@pytest.mark.parametrize(
    ("layer", "path"), [s for layer in LIGHT_LAYERS for s in sources(layer)], ids=lambda x: getattr(x, "name", x)
)
def test_lower_layers_need_only_torch_and_numpy(layer, path):
    import sys

    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            for name in names:
                root = name.split(".")[0]
                assert root in LIGHT or root in sys.stdlib_module_names, f"{path.relative_to(ROOT)} imports {root}"


def test_the_rule_is_not_vacuous():
    assert set(imported_layers("apps", ROOT / "apps" / "run.py")) >= {"datasets", "renderers"}
