"""Records with any values, under a hash that fits: each is shown or named in a sentence, and no command breaks down."""

from __future__ import annotations

import copy
import functools
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from command_line import called
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from records import make_answered, make_record, make_study, measured, reseal, sound

from harness.cli.commands import command_line
from harness.config import ROOT
from harness.record import RecordError, read

pytestmark = [pytest.mark.slow, pytest.mark.long]

STUDIES, A_STUDY = 20, 24
SETTINGS = settings(
    max_examples=STUDIES, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
)
PUBLISHED = ("quickstart", "smollm2", "study_skill", "study_stability", "memory", "gsm8k", "peft_llama_3_2_3b")
COMMANDS = (
    *(["table"], ["table", "--format", "csv"], ["table", "--columns", "all"], ["lint"], ["status"], ["verify"]),
    *(["claims"], ["claims", "--article", "lora_without_regret"], ["forgetting"], ["report", "--out", "page.html"]),
    *(["figures", "--out", "drawn"], ["export", "--out", "exported"], ["power", "--effect", "0.02", "--seeds", "3"]),
)
COMMANDS = [typed for typed in COMMANDS if typed[0] in command_line("harness").names()]  # some are of plug-ins
NUMBERS = (0, 1, -1, 3, 100, 2**31, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 0.0, 0.5, 1e-308, 1e30, 1e99, 1e308)
OTHERS = (None, True, False, "", "x", "nan", "é" * 50, "a|b<script>", "\x1b[2J", "\u202e", [], {}, [0], {"a": 1})
OTHERS += ("2026-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+23:59", "yesterday")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> list[Path]:
    """Records of all kinds: published ones of many methods, and those that no published study has."""
    folder, draw = tmp_path_factory.mktemp("made"), random.Random(0)
    paths = [sound(record, folder) for record in (*make_study(), make_answered())]
    paths.append(sound(measured(make_record("lora", 8, 16.0, 1e-4)), folder))
    for status in ("failed", "diverged", "unfit"):
        paths.append(sound(make_record("dora", 8, 16.0, 1e-4, status=status), folder))
    for study in PUBLISHED:
        paths += draw.sample(sorted((ROOT / "results" / "reference" / study).glob("*.json")), 5)
    return paths


def ways(value: Any, way: tuple = ()):
    """The ways to all parts of a JSON value."""
    if way:
        yield way
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from ways(part, (*way, key))


def at(value: Any, way: Iterable) -> Any:
    """The part of a JSON value to which `way` leads."""
    return functools.reduce(lambda part, key: part[key], way, value)


def mutate(value: dict[str, Any], draw: random.Random) -> None:
    """Change one field of a record, each field as likely as another, however many numbers a list has."""
    by_field = defaultdict(list)
    for way in ways(value):
        by_field[tuple(key for key in way if not isinstance(key, int))].append(way)
    *inner, last = draw.choice(by_field[draw.choice(sorted(by_field, key=str))])
    holder = at(value, inner)
    old, kind = holder[last], draw.random()
    if kind < 0.1 and isinstance(holder, dict):
        del holder[last]
    elif kind < 0.5 and isinstance(old, list):
        holder[last] = draw.choice([[], old[:1], old[: len(old) // 2], old + old])
    elif kind < 0.9 and isinstance(old, int | float):
        number = draw.choice(NUMBERS)
        holder[last] = float(number) if isinstance(old, float) and draw.random() < 0.5 else number
    else:
        holder[last] = draw.choice((*OTHERS, *NUMBERS))


def refusal(path: Path) -> str | None:
    try:
        read(path)
    except RecordError as error:
        return str(error)
    return None


def all_commands_hold(folder: Path, records: int) -> None:
    """Run each command over the study `any`: it shows its records, or has a sentence on each that it can't read."""
    for command in COMMANDS:
        run = called(folder, *command, "--study", "any")
        assert run.returncode in (0, 1, 2), command
        assert all(line.startswith("error: ") for line in run.stderr.splitlines()), (command, run.stderr)
        if run.returncode == 2:
            assert len(run.stderr.splitlines()) <= records + 1
            assert command[0] in ("power", "forgetting"), run.stderr


def lora_record() -> dict[str, Any]:
    return json.loads(min((ROOT / "results" / "reference" / "smollm2").glob("lora-*.json")).read_text())


def lay_changed(path: Path, original: dict[str, Any], way: tuple, value: Any) -> str | None:
    """Write `original` with `value` at `way` to `path`; why it is refused, if it is."""
    changed = copy.deepcopy(original)
    at(changed, way[:-1])[way[-1]] = value
    reseal(path, changed)
    return refusal(path)


def test_no_setting_of_zero_breaks_a_command_down(tmp_path):
    folder = tmp_path / "results" / "any"
    folder.mkdir(parents=True)
    original = lora_record()
    original["environment"]["device"]["matmul_flops_per_second"] = 1e12  # what the share of a GPU's peak needs
    original["cell"]["settings"]["train"]["nodes"] = 1  # a default, which records leave out
    settings = [
        way
        for way in ways(original["cell"]["settings"])
        if type(at(original["cell"]["settings"], way)) in (int, float) and not isinstance(way[-1], int)
    ]
    assert len(settings) > 20
    names = {way: ".".join(way) for way in settings}
    refused = {
        name
        for way, name in names.items()
        if lay_changed(folder / f"{name}.json", original, ("cell", "settings", *way), 0)
    }
    assert refused == {"train.devices", "train.nodes"}
    all_commands_hold(tmp_path, len(settings))


# Of other types, out of range, or empty: in any field that is free in form, or nearly.
@pytest.mark.parametrize("value", [0, 3, "x", [], [["a"]], {}, {"a": 1}, True, None])
def test_no_value_of_a_single_field_breaks_a_command_down(tmp_path, value):
    folder = tmp_path / "results" / "any"
    folder.mkdir(parents=True)
    original, shown = lora_record(), 0
    for number, way in enumerate(way for way in ways(original) if not any(isinstance(key, int) for key in way)):
        path = folder / f"{number}.json"
        if lay_changed(path, original, way, value):
            path.unlink()
        else:
            shown += 1
    assert shown > 10
    all_commands_hold(tmp_path, 0)


def test_no_record_breaks_a_command_down(originals, tmp_path, record_property):
    folder = tmp_path / "results" / "any"
    counts = {"shown": 0, "refused": 0}

    @SETTINGS
    @given(draw=st.randoms(use_true_random=False))
    def holds(draw):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for original in draw.sample(originals, A_STUDY):
            value = json.loads(original.read_text())
            for _ in range(draw.choice([1, 1, 2])):
                mutate(value, draw)
            path = folder / original.name
            reseal(path, value)
            if (items := original.with_suffix(".items.parquet")).exists():
                shutil.copy(items, folder)
            problem = refusal(path)
            assert problem is None or (problem.startswith(f"{path} ") and "\n" not in problem)
            counts["shown" if problem is None else "refused"] += 1
        all_commands_hold(tmp_path, A_STUDY)

    holds()
    assert sum(counts.values()) >= 400
    assert min(counts.values()) >= 100
    record_property("told", f"{counts['shown']} records with any values were shown, {counts['refused']} were named.")
