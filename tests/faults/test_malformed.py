"""Malformed records and overrides, drawn by hypothesis: one sentence for each, and good records are still rendered."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import string

import pytest
from command_line import installed
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException
from records import make_record, sound

from harness import __main__ as cli
from harness import record
from harness.config import ROOT
from harness.errors import UserError
from harness.sweep.app.messages import quoted

pytestmark = pytest.mark.faults

EXAMPLES = settings(max_examples=170, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
COMMANDS = installed("table", "lint", "status", "claims", "verify")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def said(*arguments: str) -> tuple[int, str, str]:
    """Exit status, output and complaints of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    GlobalHydra.instance().clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(list(arguments))
    return status, out.getvalue(), err.getvalue()


def places(value, way=()):
    """The ways to all parts of a JSON value."""
    yield way
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*way, key))


(COMMITTED,) = (ROOT / "results" / "reference" / "quickstart").glob("dora-*.json")  # all settings, a real environment
MADE = {"schema": record.SCHEMA} | dataclasses.asdict(make_record("dora", 16, 32, 1e-4))
ORIGINALS = [json.dumps(MADE).encode(), json.dumps(json.loads(COMMITTED.read_text())).encode()]


@st.composite
def damaged(draw) -> bytes:
    """A record's file that was cut, had bytes changed, or has another value somewhere, or a field less or more."""
    original = draw(st.sampled_from(ORIGINALS))
    kind = draw(st.sampled_from(["cut", "bytes", "value", "less", "more", "foreign"]))
    if kind == "cut":
        return original[: draw(st.integers(0, len(original) - 2))]
    if kind == "bytes":
        at = draw(st.integers(0, len(original) - 1))
        return original[:at] + draw(st.binary(min_size=1, max_size=4)) + original[at + 1 :]
    if kind == "foreign":
        return json.dumps(draw(VALUES)).encode()
    whole = json.loads(original)
    way = draw(st.sampled_from([way for way in places(whole) if way]))
    holder = whole
    for key in way[:-1]:
        holder = holder[key]
    if kind == "less":
        del holder[way[-1]]
    elif kind == "more" and isinstance(holder, dict):
        holder[draw(st.text(max_size=8))] = draw(VALUES)
    else:
        holder[way[-1]] = draw(VALUES)
    return json.dumps(whole).encode()


def test_a_malformed_record_is_named_and_the_good_ones_are_rendered(tmp_path, tell):
    study = tmp_path / "results" / "demo"
    for good in (make_record("base"), make_record("lora", 16, 32.0, 2e-4)):
        sound(good, study)
    bad = study / "zz-bad.json"
    tried, refused = set(), set()

    @EXAMPLES
    @given(content=damaged())
    def holds(content):
        bad.write_bytes(content)
        tried.add(content)
        for command in COMMANDS:
            status, out, err = said(command, "--results-dir", str(tmp_path / "results"))
            assert status in (0, 1), (command, status, err)
            assert "Traceback" not in out + err
            if command == "table":
                assert "| lora" in out
                assert "| base" in out
                if "zz-bad.json" in err:
                    refused.add(content)
            elif command == "verify":
                assert status == 1
            if status:
                assert all("zz-bad" in line for line in err.splitlines()), err
        assert said("merge", str(tmp_path / "results"), "--into", str(tmp_path / "all"))[0] == 1
        assert not (tmp_path / "all").exists()

    holds()
    tell(f"{len(tried)} malformed records, {len(refused)} of them refused by `table`; the good ones were rendered.")


KEYS = st.sampled_from(
    [
        *("rank", "alpha", "lr", "seed", "method", "model", "data", "eval", "study", "results_dir", "data_root"),
        *("train.max_steps", "train.batch_size", "train.precision", "eval.tasks", "eval.limit", "infer.repeats"),
        *("method.knobs.scale", "model.path", "retry.statuses", "speedups", "hydra.launcher", "+new", "~rank", "++x.y"),
    ]
) | st.text(string.ascii_letters + string.digits + "._+~@/", min_size=1, max_size=12)
TEXTS = st.text(max_size=12) | st.text(string.printable, max_size=12) | st.integers().map(str) | st.floats().map(str)


def test_a_malformed_override_is_one_sentence(tmp_path, monkeypatch, cell, tell):
    monkeypatch.chdir(tmp_path)
    tried, refused = set(), set()

    @EXAMPLES
    @given(key=KEYS, sign=st.sampled_from(["=", "=", "=", "", " = ", "==", ":"]), value=TEXTS)
    def holds(key, sign, value):
        argument = f"{key}{sign}{value}"
        assume(not argument.startswith("-") and "\0" not in argument)  # an option; no command line can hold a NUL
        tried.add(argument)
        status, out, err = said("run", argument, "--cfg", "job")
        assert "Traceback" not in out + err
        assert status in (0, 2), (argument, status, err)
        if status == 2:
            refused.add(argument)
            assert err.startswith("error: ")
            assert len(err.strip().splitlines()) <= 2, err
            return
        try:  # what could be composed is checked next, and written to the plan
            record.write_json(dataclasses.asdict(cell(quoted(argument))), tmp_path / "cell.json")
        except (UserError, OmegaConfBaseException):  # which `run` says in one sentence
            refused.add(argument)

    holds()
    tell(f"{len(tried)} malformed overrides, {len(refused)} of them refused in a sentence.")
