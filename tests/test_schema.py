"""A setting stands in one place: its values are checked by its field, and its part in a cell's id is what it says."""

from __future__ import annotations

import dataclasses

import pytest

from harness import schema
from harness.config import FullConfig
from harness.errors import UserError
from harness.schema import Rule, Setting, settings_of
from harness.settings import Settings

SETTINGS = {setting.key: setting for setting in settings_of(FullConfig)}
# Part of a cell by what other settings make of them: the method's slots, or a default.
THROUGH_OTHERS = {"rank", "alpha", "lr", "lr_scale", "method.lr", "method.adamw", "method.knobs"}
THROUGH_OTHERS |= {"model.gradient_checkpointing"}
OF_API = {"model.base_url", "model.tokenizer", "model.thinking"}


def of_a_cell() -> set[str]:
    """The dotted keys of the settings that a cell's id is made of."""
    groups = {part.name: part.default_factory for part in dataclasses.fields(Settings)}
    keys = {
        f"{name}.{part.name}"
        for name, group in groups.items()
        if dataclasses.is_dataclass(group)
        for part in dataclasses.fields(group)
    }
    return keys | {"speedups", "seed"}


def test_what_is_part_of_a_cell_is_what_its_id_is_made_of():
    said = {key for key, setting in SETTINGS.items() if setting.rule.in_cell} - THROUGH_OTHERS
    assert said == of_a_cell()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_default_is_one_of_the_values_that_a_setting_may_have(setting):
    default = None if setting.default == "???" else setting.default
    schema.check({setting.key: setting}, lambda key: default)
    assert setting.rule == Rule() or setting.rule.bounds or setting.rule.choices or not setting.rule.in_cell


@pytest.mark.parametrize(
    ("rule", "right", "wrong", "words"),
    [
        ({"least": 1}, [1, 2**40], [0, -1], "1 or more"),
        ({"least": 0}, [0, 0.0, 3], [-1, float("inf"), float("nan")], "0 or more"),
        ({"above": 0}, [1e-9, 3], [0, -0.5, float("inf"), float("nan")], "positive"),
        ({"least": 0, "below": 1}, [0, 0.99], [1, -0.1, float("nan")], "at least 0 and below 1"),
        ({"least": 0, "most": 1}, [0, 0.5, 1], [1.01, -0.1], "a share from 0 to 1"),
        (
            {"above": 0, "auto": True, "words": "a positive number or auto"},
            [1, "auto"],
            [0, "all"],
            "a positive number",
        ),
    ],
)
def test_a_number_out_of_its_bounds_is_refused_in_words(rule, right, wrong, words):
    settings = {"key": Setting("key", "float | None", None, Rule(**rule))}
    for value in [None, *right]:
        schema.check(settings, lambda key, value=value: value)
    for value in wrong:
        with pytest.raises(UserError, match=f"^key must be {words}.*, got "):
            schema.check(settings, lambda key, value=value: value)


def test_choices_are_of_a_value_or_of_each_of_a_list():
    settings = {"key": Setting("key", "list[str]", [], Rule(choices=("a", "b"), label="shown"))}
    for value in ("a", ["a", "b"], []):
        schema.check(settings, lambda key, value=value: value)
    for value in ("c", ["a", "c"]):
        with pytest.raises(UserError, match="shown"):
            schema.check(settings, lambda key, value=value: value)
