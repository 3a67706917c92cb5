"""Loads the templates and word lists of the YAML files beside this file, and checks them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.job.data.generators.wordmath_templates.template import Template
from harness.job.data.generators.yaml_files import text, texts
from harness.yaml_file import read_yaml

FOLDER = Path(__file__).parent
FILES = {1: "one_step.yaml", 2: "two_steps.yaml", 3: "three_steps.yaml", 4: "four_steps.yaml"}
WORDS = "words.yaml"
NAMES = "names"  # the list of words.yaml that people are called by
REQUIRED, OPTIONAL = {"name", "numbers", "questions", "lines"}, {"words"}

WordLists = Mapping[str, tuple[str, ...]]


@functools.cache
def word_lists(folder: Path = FOLDER) -> WordLists:
    """The lists of words.yaml by name. Raises UserError if the file is malformed."""
    lists = read_yaml(folder / WORDS)
    if not isinstance(lists, dict):
        raise UserError(f"{WORDS} must map names to lists of words.")
    try:
        words = {name: texts(lists, name) for name in lists}
    except ValueError as error:
        raise UserError(f"{WORDS}: {error}.") from None
    if len(words.get(NAMES, ())) < 3:
        raise UserError(f"{WORDS} must have a list {NAMES} of at least three names.")
    return words


@functools.cache
def templates(folder: Path = FOLDER) -> Mapping[int, tuple[Template, ...]]:
    """The templates by their number of steps, in the order of the files.

    Raises UserError, with the file and the template, for one that makes no problem.
    """
    words = word_lists(folder)
    by_steps = {steps: _templates(folder / file, steps, words) for steps, file in FILES.items()}
    names = Counter(template.name for group in by_steps.values() for template in group)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise UserError(f"Names of templates must be unique, but several are called {', '.join(repeated)}.")
    return by_steps


def _templates(path: Path, steps: int, words: WordLists) -> tuple[Template, ...]:
    entries = read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path.name} must be a list of templates.")
    group = []
    for place, entry in enumerate(entries, start=1):
        try:
            template = _template(entry, words)
            if template.steps != steps:
                raise ValueError(f"a template of this file must have {steps} lines, got {template.steps}")
        except ValueError as error:
            name = entry.get("name", place) if isinstance(entry, dict) else place
            raise UserError(f"{path.name}, template {name}: {error}.") from None
        group.append(template)
    return tuple(group)


def _template(entry: Any, words: WordLists) -> Template:
    """Raises ValueError if `entry` is no template."""
    if not isinstance(entry, dict) or not REQUIRED <= entry.keys() <= REQUIRED | OPTIONAL:
        raise ValueError(f"a template must have {', '.join(sorted(REQUIRED))}, and may have {', '.join(OPTIONAL)}")
    choices = entry.get("words", {})
    if not isinstance(choices, dict):
        raise ValueError(f"words must map fields to lists of {WORDS}, got {choices}")
    for slot, listed in choices.items():
        if not isinstance(slot, str) or not isinstance(listed, str) or listed not in words:
            raise ValueError(f"words must map fields to lists of {WORDS}, got {slot}: {listed}")
    return Template(
        name=text(entry, "name"),
        numbers=text(entry, "numbers"),
        questions=texts(entry, "questions"),
        lines=texts(entry, "lines"),
        names=words[NAMES],
        words={slot: words[listed] for slot, listed in choices.items()},
    )
