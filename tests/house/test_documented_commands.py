"""Every command in README and docs works as far as its arguments go: targets, options and settings exist."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest
from plugin_list import some_needs_a_plugin

from harness.cli.commands import command_line
from harness.config_folders import CONF, PUBLISHED, ROOT, SWEEPS, named_sweeps
from harness.sweep.app.grid import points

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
PAGES.append(ROOT / "results" / "README.md")
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def commands(text: str) -> list[list[str]]:
    """The words of each command in the ```sh blocks of a page, up to a redirection."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line.partition(" > ")[0], comments=True) for line in lines]
    return [line for line in words if line]


FOUND = sorted({(words[0], *words[1:]) for text in TEXTS.values() for words in commands(text)})
HARNESS = [words[1:] for words in FOUND if words[0] == "harness"]
MAKE = [words[1] for words in FOUND if words[0] == "make"]


def test_prose_says_harness():
    """Pages, docstrings and comments do; of messages, those say otherwise that must work without the script."""
    sources = [path for folder in ("harness", "benchmarks", "sweeps", "conf") for path in (ROOT / folder).rglob("*")]
    texts = TEXTS | {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in sources
        if path.suffix in (".py", ".yaml", ".md")
    }
    prose = {name for name, text in texts.items() if re.search(r"python -m harness\b(?!\.)", text)}
    assert prose <= {"harness/program.py", "harness/__main__.py", "harness/cli/commands.py"}


def test_commands_are_found():
    assert {"run", "sweep", "plan", "table", "report", "doctor"} <= {words[0] for words in HARNESS}


@pytest.mark.parametrize("target", sorted(set(MAKE)))
def test_targets_exist(target):
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("words", HARNESS, ids=" ".join)
def test_arguments_are_those_of_the_command(words, compose):
    with some_needs_a_plugin():
        composes_or_parses(*words, compose=compose)


def composes_or_parses(name, *arguments, compose):
    options = command_line("harness").command(name).parse_intermixed_args(arguments, argparse.Namespace())
    if name not in ("run", "sweep", "plan"):
        return
    config, settings = "config", options.settings
    if settings and "=" not in settings[0]:
        config, *settings = settings
        assert config in named_sweeps()
    if config == "tune":
        return  # it composes where Optuna is installed
    # Hydra's own settings are those of plugins that may be missing.
    compose(*points([setting for setting in settings if not setting.startswith("hydra")])[0], config=config)


@pytest.mark.parametrize(
    ("page", "folder"),
    [
        ("docs/your-model.md", CONF / "method"),
        ("docs/sweeps.md", SWEEPS),
        ("docs/sweeps.md", PUBLISHED),
        ("docs/your-model.md", CONF / "model"),
        ("docs/your-data.md", CONF / "data"),
        ("docs/cards.md", CONF / "device"),
    ],
)
def test_a_page_names_every_choice(page, folder):
    for path in folder.glob("*.yaml"):
        assert re.search(rf"[`=]{path.stem}`", TEXTS[page]), path.stem
