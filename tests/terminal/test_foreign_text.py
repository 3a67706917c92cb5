"""Nothing that others wrote commands a terminal or a spreadsheet: records, logs, names of files, answers, errors.

Control sequences stand in every text of a record that may hold some, and all commands that print records print them.
"""

from __future__ import annotations

import copy
import csv
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pandas as pd
import pytest
from foreign_text import EVIL, OWN, Screen, assert_harmless, said
from records import make_study, measured, sound
from rich.text import Text

from harness import terminal
from harness.cli.commands import command_line
from harness.config import ROOT
from harness.record import Record, decode, encode, read, write
from harness.record.ranges import check
from harness.report.tables.formats import render
from harness.report.tables.table import Table
from harness.terminal.streams import Filtered, cleaned, cleaned_streams


def poisoned(record: Record) -> Record:
    """`record` with EVIL in each text and key that may be any text."""
    value = encode(record)

    def spoil(part, put):
        if isinstance(part, dict):
            for key in list(part):
                spoil(part[key], lambda new, key=key: part.__setitem__(key, new))
                part[key + EVIL] = part.pop(key)
                if not fits(value):
                    part[key] = part.pop(key + EVIL)
        elif isinstance(part, list):
            for i, one in enumerate(part):
                spoil(one, lambda new, i=i: part.__setitem__(i, new))
        elif isinstance(part, str):
            put(part + EVIL)
            if not fits(value):
                put(part)

    spoil(value, None)
    return decode(Record, value)


def fits(value) -> bool:
    """Whether `value` is of a record that says the same."""
    try:
        record = decode(Record, copy.deepcopy(value))
        check(record)
    except ValueError:
        return False
    return encode(record) == value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results with a study of poisoned records, their logs, and a file that is no record."""
    folder = tmp_path_factory.mktemp("foreign")
    study = folder / "results" / "demo"
    for record in make_study():
        path = sound(measured(record), study)
        worse = poisoned(read(path))
        worse.started = record.started
        path.unlink()
        beside = path.with_suffix(".items.parquet")
        if beside.exists():
            beside.rename(study / f"{worse.cell.name}.items.parquet")
        write(worse, study / f"{worse.cell.name}.json")
        (study / f"{worse.cell.name}.log").write_text(f"a line {EVIL}\nlast\n")
    (study / os.fsdecode(b"bad\x9b31m\x1b[2J\xff.json")).write_text("{")
    assert sum("evil" in path.name for path in study.iterdir()) > 2 * len(make_study())
    return folder


CELL, OTHER = "lora-r16", "full-"
TABLES = [[], *(["--format", one] for one in ("text", "md", "csv", "html", "latex"))]
PLAIN_OR_JSON = [[], ["--format", "json"]]
# By command: what it is given, each with each of its formats.
PRINTED = {
    "table": ([[], ["--wide"], ["--article"]], TABLES),
    "claims": ([[], ["--article", "lora_without_regret"]], TABLES),
    "forgetting": ([[], ["--cells"]], [*TABLES, ["--json"]]),
    "report": ([[]], [[]]),
    "figures": ([["--out", "drawn"]], [[]]),
    "power": ([["demo", "--effect", "0.02", "--seeds", "3"]], [[]]),
    "lint": ([[], ["demo"]], [[]]),
    "diff": ([[CELL, OTHER]], PLAIN_OR_JSON),
    "status": ([[], ["--wide"]], PLAIN_OR_JSON),
    "logs": ([[CELL], [CELL, "--follow"]], [[]]),
    "verify": ([[]], PLAIN_OR_JSON),
    "merge": ([["results", "--into", "merged"]], PLAIN_OR_JSON),
    "export": ([["--out", "exported"]], PLAIN_OR_JSON),
    "retry": ([["--failed"]], [[]]),
    "reproduce": ([["demo", "--cells", "1"]], [[]]),
    "score": ([["demo", "--tasks", EVIL]], [[]]),
    "judge": ([["demo", "--judge", EVIL, "--base-url", "http://127.0.0.1:9/v1"]], [[]]),
    "push": ([[CELL, EVIL]], [[]]),
    "push-study": ([["demo", EVIL]], [[]]),
    "export-model": ([["demo", "--to", "merged", "--out", "model"], [CELL, "--to", "gguf", "--out", EVIL]], [[]]),
    "import": ([["lm-eval", EVIL]], [[]]),
    "run": ([[f"method={EVIL}"], [f"model.path={EVIL}", f"data={EVIL}"]], [[]]),
    "sweep": ([[EVIL], [f"study={EVIL}", "method=lora,dora"]], [[]]),
    "plan": ([[f"method={EVIL}"]], [[]]),
    "rm": ([[EVIL]], [[]]),
    "ask": ([[EVIL, "--study", EVIL], ["--prompts", EVIL]], [[]]),
    "synthesize": (
        [["--source", f"{EVIL}.jsonl", "--n", "1", "--base-url", EVIL, "--model", "m", "--eval", "none"]],
        [[]],
    ),
    "completion": ([["bash"], [EVIL]], [[]]),
}
NAMES = command_line("harness").names()
PRINTED = {command: given for command, given in PRINTED.items() if command in NAMES}  # some are of plug-ins
ELSEWHERE = {"calibrate", "doctor", "view"}  # which print no records
LINES = [
    (command, [*given, *format_])
    for command, (all_, formats) in PRINTED.items()
    for given in all_
    for format_ in formats
]


def test_every_command_is_given_foreign_text():
    assert PRINTED.keys() | ELSEWHERE == set(NAMES)


@pytest.mark.parametrize("stream", [io.StringIO, Screen])
@pytest.mark.parametrize(("command", "arguments"), LINES)
def test_nothing_that_is_printed_commands(folder, command, arguments, stream):
    status, text = said(folder, command, *arguments, stream=stream)
    assert status in (0, 1, 2)
    assert text
    assert "Traceback" not in text
    assert_harmless(OWN.sub("", text) if stream is Screen else text)


@pytest.mark.parametrize(
    "command", ["table", "lint", "status", "verify", "report", f"diff {CELL} {OTHER}", f"logs {CELL}"]
)
def test_what_others_wrote_is_shown_as_text(folder, command):
    assert "evil" in said(folder, *command.split())[1]


def test_rm_names_what_it_removes(folder):
    name = next((folder / "results" / "demo").glob("galore*.json")).stem
    status, text = said(folder, "rm", name, "--yes")
    assert (status, "evil" in text) == (0, True)
    assert_harmless(text)


@pytest.mark.parametrize("kind", ["text", "md", "csv", "html", "latex"])
def test_files_of_tables_are_clean_too(folder, tmp_path, kind):
    said(folder, "table", "--format", kind, "--out", str(tmp_path / "table"))
    text = (tmp_path / "table").read_text(encoding="utf-8")
    assert "evil" in text
    assert_harmless(text)


# Streams


def test_nothing_between_two_texts_of_others_is_hidden():
    """The end of a sequence may be written by another field: what lies between is ours."""
    for begin in ("\x1b]0;", "\x1bP", "\x9d", "\x1b_", "\x1b["):
        assert "REFUSED 1 of 2" in cleaned(f"{begin}\nREFUSED 1 of 2 \x07\x1b\\"), begin
        assert "REFUSED 1 of 2" in cleaned(f"{begin} REFUSED 1 of 2 \x07\x1b\\"), begin
    assert cleaned("safe\rover\r\nnext\ttab") == "safe\nover\nnext\ttab"


def test_sequences_split_over_writes_are_no_sequences(capsys):
    with cleaned_streams():
        print("a\x1b", "[2J", sep="")
        sys.stderr.writelines(["b\x1b", "]0;t\x07"])
    out, err = capsys.readouterr()
    assert (out, err) == ("a[2J\n", "b]0;t")


def test_streams_are_as_they_were_after_a_command():
    own = sys.stdout, sys.stderr
    with cleaned_streams():
        assert sys.stdout.isatty() == own[0].isatty()
        assert sys.stdout is not own[0]
    assert (sys.stdout, sys.stderr) == own


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_a_character_gets_its_escape(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with redirect_stdout(stream), cleaned_streams():
        print("10 \u2192 \u6570")
        terminal.show(terminal.console(), [Text("\u258c")])
    assert stream.errors == "strict"
    stream.flush()
    assert stream.buffer.getvalue() == b"10 \\u2192 \\u6570\n\\u258c\n"


@pytest.mark.slow
def test_a_traceback_is_clean():
    raises = f"with cleaned_streams(): raise ValueError({EVIL!r})"
    python = [sys.executable, "-c", f"from harness.terminal.streams import cleaned_streams\n{raises}"]
    run = subprocess.run(python, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 1
    assert "ValueError: evil" in run.stderr
    assert_harmless(run.stderr)


def test_what_is_printed_during_a_live_display_has_no_colours_and_links_of_its_own():
    out, link = Screen(), "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\"
    with redirect_stdout(out), redirect_stderr(out), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        with cleaned_streams():
            live = terminal.live(terminal.console(), auto_refresh=False)
            live.start()
            print(f"\x1b[95mwarning {link}", file=sys.stderr)
            live.update(Text(f"\x1b[95m{EVIL}", style="bold red"), refresh=True)
            live.stop()
            assert isinstance(sys.stderr, Filtered)
            assert sys.stderr.target is out
    text = out.getvalue()
    assert "\x1b[1;31m" in text, "our own colours"
    assert "warning" in text
    assert "\x1b[95m" not in text
    assert "\x1b]8" not in text
    assert "\x1b]0" not in text


# Spreadsheets


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-x", "'-x"),
        ("@SUM(1)", "'@SUM(1)"),
        (" =1", "' =1"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\n=1"),
        ("＝1", "'＝1"),
        ("-1.5e-3", "-1.5e-3"),
        ("+2", "+2"),
        ("a=1", "a=1"),
        (f"x{EVIL}", None),
    ],
)
def test_a_text_of_a_csv_is_no_formula(text, cell):
    data = pd.DataFrame({text: [1.5, -2.0], "note": [text, None]})
    made = render(Table("t", [], [], [], data), "csv")
    assert_harmless(made)
    head, first, second = csv.reader(io.StringIO(made))
    if cell is not None:
        assert (head[0], first[1]) == (cell, cell)
    assert (first[0], second[0]) == ("1.5", "-2.0")
    assert f'"{first[1]}"' in made.replace('""', '"')
    assert made.endswith("\n-2.0,\n"), "what is missing is no text"
