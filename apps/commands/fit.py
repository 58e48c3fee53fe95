"""Fit a field to images or to a shape: polyfield fit RECIPE DATA --run DIR."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Annotated

from .. import discover
from ..errors import UserError
from ..parse import parse

USAGE = """usage: polyfield fit RECIPE DATA [options]    (polyfield fit RECIPE --help for all options)

DATA is a capture, a folder of photographs or a video (poses are found where there are none), or one of the built-in
scenes `demo`, `demo_bowl`, `demo_cloth`; for `shape`, a mesh or points. Recipes:"""


def main(arguments: list[str]) -> None:
    from ..run import RECIPES

    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        for name in discover.names(RECIPES):
            print(f"  {name:<10} {discover.summary(RECIPES, name)}")
        if not arguments:
            raise UserError("fit: recipe: expected one of the above, got nothing; e.g. polyfield fit ngp demo")
        return
    import tyro

    name = arguments[0]
    config = discover.load(RECIPES, name, "fit: recipe").Config
    from ..fit_run import Options, fit_run

    parsed = parse(
        make_dataclass(
            "Fit",
            [
                ("data", tyro.conf.Positional[str]),
                ("options", Annotated[Options, tyro.conf.arg(name="")], field(default_factory=Options)),
                ("recipe", Annotated[config, tyro.conf.arg(name="")], field(default_factory=config)),
            ],
            namespace={"__doc__": config.__doc__},
        ),
        f"fit {name}",
        arguments[1:],
    )
    fit_run(parsed.data, parsed.recipe, parsed.options)
