"""The YAML files of word problems are checked when loaded: a wrong template is one sentence with its file and name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.job.data.generators.wordmath_templates import loading

GIFT = """
- name: gift
  numbers: a=2..20 b=2..20
  words: {thing: small}
  questions: ["{n} has {a} {thing}. {m} gives {n} {b} more. How many {thing} does {n} have now?"]
  lines: ["{n} has [x=a+b] {thing}."]
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the shipped files, with one template in one_step.yaml."""
    for file in loading.FOLDER.glob("*.yaml"):
        shutil.copy(file, tmp_path)
    (tmp_path / "one_step.yaml").write_text(GIFT)
    return tmp_path


def test_a_template_is_what_its_file_says(folder):
    (gift,) = loading.templates(folder)[1]
    assert (gift.name, gift.steps, gift.size) == ("gift", 1, 19 * 19)
    assert gift.words == {"thing": loading.word_lists()["small"]}
    assert gift.values((3, 4)) == {"a": 3, "b": 4, "x": 7}


def test_the_files_are_read_once():
    assert loading.templates() is loading.templates()
    assert {file.name for file in loading.FOLDER.glob("*.yaml")} == {*loading.FILES.values(), loading.WORDS}


@pytest.mark.parametrize(
    ("text", "other", "message"),
    [
        ("{n} has {a}", "{n} has {c}", "{c} is neither a number, a word nor a person"),
        ("{n} has {a}", "{n} has {x}", "{x} is neither"),  # the result would give the answer away
        ("[x=a+b] {thing}", "[x=a+b] {things}", "{things} is neither"),
        ("{n} has {a}", "{n} has {a", "has a { that belongs to no field"),
        ("{n} has {a}", "{n} has [a]", "has a [ that belongs to no field"),
        ("[x=a+b]", "[x=a+c]", "x is computed from c, which is no earlier number"),
        ("[x=a+b]", "[a=a+b]", "the number a occurs twice"),
        ("[x=a+b]", "{a}", "a line must compute one number, like [x=a+b], got '{n} has {a} {thing}.'"),
        ("[x=a+b]", "[x=a+b] or [y=b+a]", "a line must compute one number"),
        ("b=2..20", "b=2-20", "a number must be like a=2..20, a=2|4|5 or a=b+c, got b=2-20"),
        ("b=2..20", "b=20..2", "the range of b is empty"),
        ("b=2..20", "b=2..9 b=3|4", "a number occurs twice in a=2..20 b=2..9 b=3|4"),
        ("b=2..20", "b=2..20 n=2..3", "n must be a number, a word or a person, not two of them"),
        ("thing: small", "a: small", "a must be a number, a word or a person"),
        ("thing: small", "thing: tiny", "words must map fields to lists of words.yaml, got thing: tiny"),
        ("thing: small", "thing: [pens]", "words must map fields to lists of words.yaml, got thing: ['pens']"),
        ("{thing: small}", "small", "words must map fields to lists of words.yaml, got small"),
        ("numbers: a=2..20 b=2..20", "numbers: 2", "numbers must be a text, got 2"),
        ("lines: [", "lines: [no, ", "lines must be a list of texts, got [False, "),
        ("lines: [", "lines: ['[y=a+b]', ", "a template of this file must have 1 lines, got 2"),
        ("numbers:", "number:", "a template must have lines, name, numbers, questions, and may have words"),
    ],
)
def test_a_wrong_template_is_named_with_its_file(folder, text, other, message):
    assert text in GIFT
    (folder / "one_step.yaml").write_text(GIFT.replace(text, other))
    with pytest.raises(UserError) as error:
        loading.templates(folder)
    assert str(error.value).startswith("one_step.yaml, template gift: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("one_step.yaml", "- name: gift\n  lines: [x=a+b] {thing}\n", "one_step.yaml, line 2, is not valid YAML: "),
        ("one_step.yaml", "", "one_step.yaml must be a list of templates."),
        ("one_step.yaml", "- gift\n", "one_step.yaml, template 1: a template must have "),
        ("two_steps.yaml", GIFT, "two_steps.yaml, template gift: a template of this file must have 2 lines, got 1."),
        ("words.yaml", "- apples\n", "words.yaml must map names to lists of words."),
        ("words.yaml", "small: apples\n", "words.yaml: small must be a list of texts, got apples."),
        ("words.yaml", "names: [Ada, Ben]\n", "words.yaml must have a list names of at least three names."),
    ],
)
def test_a_wrong_file_is_named(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(UserError) as error:
        loading.templates(folder)
    assert str(error.value).startswith(message)


def test_names_of_templates_are_unique_in_all_files(folder):
    (folder / "one_step.yaml").write_text(GIFT.replace("gift", "stock"))  # as one of three steps is called
    with pytest.raises(UserError, match="must be unique, but several are called stock"):
        loading.templates(folder)
