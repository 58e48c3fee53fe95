"""Recipes go to JSON and back unchanged; what does not fit is named."""

import json
from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
from polyfield.apps import discover
from polyfield.apps.config_io import from_json, to_json
from polyfield.apps.errors import UserError
from polyfield.apps.run import RECIPES


@pytest.mark.parametrize("name", discover.names(RECIPES))
def test_every_recipe_survives(name):
    config = discover.load(RECIPES, name, "recipe").Config
    assert from_json(config, json.loads(json.dumps(to_json(config())))) == config()


@pytest.mark.parametrize("name", discover.names(RECIPES))
def test_every_setting_of_a_recipe_says_what_it_is(name):
    def walk(kind):
        assert kind.__doc__, kind
        for f in fields(kind):
            if is_dataclass(value := getattr(kind(), f.name)):
                walk(type(value))

    walk(discover.load(RECIPES, name, "recipe").Config)


@dataclass(frozen=True)
class Inner:
    size: int = 3
    rate: float | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    name: str = "x"


def test_changed_values_come_back():
    asked = replace(Outer(), inner=Inner(5, 0.25))
    assert from_json(Outer, to_json(asked)) == asked


def test_absent_entries_take_their_defaults():
    assert from_json(Outer, {}) == Outer()


def test_unknown_and_mistyped_entries_are_named():
    with pytest.raises(UserError, match=r"config\.inner: unknown entries sise"):
        from_json(Outer, {"inner": {"sise": 4}})
    with pytest.raises(UserError, match=r"config\.inner\.size: expected int, got 'four'"):
        from_json(Outer, {"inner": {"size": "four"}})
    with pytest.raises(UserError, match=r"config\.inner: expected an object, got int"):
        from_json(Outer, {"inner": 3})
