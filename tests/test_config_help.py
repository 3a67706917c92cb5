"""Every setting has one comment, and is told with its key, type and default."""

from __future__ import annotations

import dataclasses

import pytest

from harness.config import FullConfig
from harness.config_help import config_groups

GROUPS = {group.key: group for group in config_groups()}
FIELDS = {field.key: field for group in GROUPS.values() for field in group.fields}


def test_all_groups_are_told_with_what_they_are_for():
    nested = [f.name for f in dataclasses.fields(FullConfig) if dataclasses.is_dataclass(f.default_factory)]
    assert list(GROUPS) == ["", *nested]
    assert all(group.comment.endswith(".") for group in GROUPS.values())


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_a_comment_is_of_whole_sentences(field):
    assert field.comment[0].isalnum()
    assert field.comment.endswith(".")
    assert "  " not in field.comment


def test_keys_types_and_defaults_are_as_one_types_them():
    assert FIELDS["model.price.read"][:3] == ("model.price.read", "float | null", "null")
    assert FIELDS["train.batch_size"][:3] == ("train.batch_size", "int | str", "8")
    assert FIELDS["data.columns"][:3] == ("data.columns", "dict", "{}")
    assert FIELDS["eval.chat_template"].default == "false"
    assert FIELDS["retry.statuses"].default == "[failed]"


def test_defaults_of_the_config_file_go_before_those_of_the_schema():
    assert FIELDS["alpha"].default == "${mul:2,${rank}}"
    assert FIELDS["train.gradient_checkpointing"].default == "${model.gradient_checkpointing}"


def test_a_default_that_yields_to_another_setting_is_told_as_it_is_without_that():
    assert FIELDS["train.max_steps"].default == "200"


def test_settings_of_a_groups_file_have_no_default():
    assert [key for key, field in FIELDS.items() if field.default is None] == [
        "method.name",
        "model.name",
        "model.path",
        "data.name",
    ]
