"""A record's file tells whether it is as it was written: every bit of it, and every field."""

from __future__ import annotations

import copy
import json
import random

import pytest
from command_line import installed
from records import make_answered, make_record, measured, reseal

from harness.__main__ import main
from harness.config import ROOT
from harness.record import RecordError, read, write

FLIPS = 500
REFERENCE = ROOT / "results" / "reference"
PUBLISHED = {kind: next((REFERENCE / study).glob(f"{kind}-*.json")) for study, kind in (
    ("quickstart", "base"), ("quickstart", "dora"), ("study_facts", "galore"), ("peft_llama_3_2_3b", "full"),
)}  # fmt: skip


@pytest.fixture(params=[*PUBLISHED, "failed", "oom", "diverged", "unfit", "api", "measured"])
def path(request, tmp_path):
    """A record of each kind: published ones, and those that no published study has."""
    path = tmp_path / "record.json"
    if request.param in PUBLISHED:
        path.write_bytes(PUBLISHED[request.param].read_bytes())
    elif request.param in ("api", "measured"):
        write(make_answered() if request.param == "api" else measured(make_record("lora", 8, 16.0, 1e-4)), path)
    else:
        write(make_record("lora", 8, 16.0, 1e-4, status=request.param), path)
    assert read(path)
    return path


def test_every_flipped_bit_is_found(path):
    content, draw = path.read_bytes(), random.Random(0)
    for bit in (draw.randrange(8 * len(content)) for _ in range(FLIPS)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(RecordError):
            read(path)
    path.write_bytes(content)
    read(path)


def places(value, way=()):
    """The ways to all values, but of long lists to the first two and the last alone."""
    inner = value.items() if isinstance(value, dict) else None
    if isinstance(value, list):
        inner = [*enumerate(value)]
        inner[2:-1] = []
    if inner is None:
        yield way
    for key, part in inner or ():
        yield from places(part, (*way, key))


def test_every_edited_field_is_found(path):
    """As an editor would save it: pretty, complete, and under the hash that was there."""
    value = json.loads(path.read_text())
    ways = list(places(value))
    assert len(ways) > 50
    for way in ways:
        edited = copy.deepcopy(value)
        holder = edited
        for key in way[:-1]:
            holder = holder[key]
        old = holder[way[-1]]
        holder[way[-1]] = f"{old}x" if isinstance(old, str) else (old or 0) + 1
        path.write_text(json.dumps(edited, indent=1) + "\n")
        with pytest.raises(RecordError):
            read(path)
        if way[-1] != "sha256":
            holder[way[-1]] = None if old is not None else 0
            path.write_text(json.dumps(edited, indent=1) + "\n")
            with pytest.raises(RecordError):
                read(path)


def test_a_file_in_another_layout_is_not_as_it_was_written(path):
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(RecordError, match="is not as it was written: its hash differs; restore it from a copy, or del"):
        read(path)


@pytest.fixture
def study(tmp_path):
    """The results folder of a study of two records, and the path of one of them."""
    folder = tmp_path / "results" / "demo"
    for record in (make_record("base"), make_record("lora", 16, 32.0, 2e-4)):
        write(record, folder / f"{record.cell.name}.json")
    return tmp_path / "results", next(folder.glob("lora-*.json"))


COMMANDS = installed("table", "report", "lint", "claims", "status", "figures", "verify")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_edited_record_is_one_sentence_and_the_rest_is_shown(study, capsys, command):
    results, path = study
    path.write_text(path.read_text().replace('"seconds": 120.0', '"seconds": 60.0', 1))
    assert main([command, "--results-dir", str(results)]) == 1
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if path.stem in line]
    assert line.startswith("error: ")
    assert "its hash differs" in line
    assert "demo" in said.out or "base" in said.out


@pytest.mark.parametrize(
    ("way", "value", "said"),
    [
        ("started", "yesterday", "started is 'yesterday', which is no date and time with a time zone"),
        ("started", "2026-01-01T00:00:00", "started is '2026-01-01T00:00:00', which is no date"),
        ("seconds", -1.0, "seconds is -1.0, which is not between 0 and"),
        ("parameters.total", 0, "parameters.total is 0, which is not between 1 and"),
        ("cell.settings.train.devices", 0, "cell.settings.train.devices is 0, which is not between 1 and"),
        ("train.steps", 2**63, "train.steps is 9223372036854775808, which is not between 0 and"),
        ("train.step_seconds", [0.1, -0.1], "train.step_seconds is -0.1"),
        ("train.step_seconds", [1e300], "train.step_seconds is 1e+300"),
        ("cell.seed", 2**63 - 1, "cell.seed is 9223372036854775807, which is not between 0 and 4294967295"),
        ("cell.settings.seed", 2**32, "cell.settings.seed is 4294967296"),
        ("cell.settings.train.max_steps", 2**60, "cell.settings.train.max_steps is 1152921504606846976"),
        ("cell.knobs", {"scale": 1e300}, "cell.knobs.scale is 1e+300, beyond 1e+100"),
        ("validation", [{"step": 1, "tokens": 1, "loss": -1.0}], "validation[0].loss is -1.0"),
        ("phases.train.memory.allocated_peak", -5, "phases.train.memory.allocated_peak is -5"),
        ("scores", [], None),
        ("environment.device", "H100", "environment.device should be an object"),
        ("environment.versions", {"torch": 2}, "environment.versions.torch should be a text"),
        ("environment.cpu", {"name": ["Xeon"]}, "environment.cpu.name should be of type str, not list"),
        ("environment.cpu", {"flags": ["avx"]}, "environment.cpu should be a plain value, or an object of them"),
        ("environment.git", {"commit": 5}, "environment.git.commit should be of type str, not int"),
    ],
)
def test_a_value_out_of_its_range_is_named_and_the_rest_is_shown(study, capsys, way, value, said):
    """Also under a hash that fits."""
    results, path = study
    told = json.loads(path.read_text())
    holder = told
    *inner, last = way.split(".")
    for key in inner:
        holder = holder[key]
    holder[last] = value
    reseal(path, told)
    for command in ("table", "lint", "status"):
        assert main([command, "--results-dir", str(results)]) == (1 if said or command == "lint" else 0)
        shown = capsys.readouterr()
        assert "base" in shown.out or "demo" in shown.out
        if said:
            (line,) = [line for line in shown.err.splitlines() if path.stem in line]
            assert f"is a damaged record ({said}" in line
