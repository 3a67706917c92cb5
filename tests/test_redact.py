"""Secrets and places of this machine: refused in settings, and in nothing that is written.

One real sweep with planted secrets, one of whose cells does its best to tell them; everything it leaves is searched.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from command_line import called, own_server
from planted_secrets import SECRETS, TELLTALE, TINY

from harness import redact
from harness.config import ROOT
from harness.errors import UserError
from harness.record import read, read_study, write

TINY += ["train.validation_items=2", "infer.repeats=0"]


def call(folder, *arguments):
    """Run a command with the planted secrets."""
    found = f"{folder / 'lib'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return called(folder, *arguments, PYTHONPATH=found, **SECRETS)


@pytest.fixture(scope="module")
def server():
    """One for all commands with secrets."""
    with own_server():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, server):
    """Where a sweep of two cells ran: one that is fine, and one that tells secrets wherever it can."""
    folder = tmp_path_factory.mktemp("private")
    (folder / "lib").mkdir()
    (folder / "lib" / "telltale.py").write_text(TELLTALE)
    run = call(
        folder,
        "sweep",
        *TINY,
        "method=full",
        "method.optim._target_=harness.job.methods.optimizers.build,telltale.build",
    )
    (folder / "sweep.out").write_text(run.stdout + run.stderr)
    assert run.returncode == 1, run.stderr
    (folder / "config.out").write_text(call(folder, "run", *TINY, "--cfg", "job").stdout)
    for line in ("table --columns all", "table --format html", "lint", "status", "status --format json", "report"):
        said = call(folder, *line.split())
        (folder / f"{line}.out").write_text(said.stdout + said.stderr)
    return folder


def by_status(folder):
    records, problems = read_study(folder / "results" / "adhoc")
    assert problems == []
    return {record.status: record for record in records}


@pytest.mark.slow
def test_nothing_that_is_written_holds_a_secret(folder):
    log = (folder / "results" / "adhoc" / f"{by_status(folder)['failed'].cell.name}.log").read_text()
    assert all(word in log for word in ("stdout", "stderr", "descriptor", "RuntimeError", redact.HIDDEN))
    written = [path for path in folder.rglob("*") if path.is_file() and "lib" not in path.parts]
    assert {path.suffix for path in written} == {".json", ".jsonl", ".log", ".parquet", ".out", ".txt"}
    assert all(path.stat().st_size for path in written if path.suffix == ".out")
    for path in written:
        content = path.read_bytes()
        assert b"planted" not in content, path
        for secret in SECRETS.values():
            assert secret.encode() not in content, path


@pytest.mark.slow
def test_records_hold_no_place_of_this_machine(folder):
    records = by_status(folder)
    assert records["failed"].failure.reason.startswith("RuntimeError: file ~/file ***")
    for record in records.values():
        text = (folder / "results" / "adhoc" / f"{record.cell.name}.json").read_text()
        for place in (folder, Path.home(), ROOT, Path(sys.prefix)):
            assert f"{place}/" not in text


@pytest.mark.long
@pytest.mark.slow
def test_a_cell_is_run_again_from_its_record_alone(folder):
    """Also: one that would call what this harness's settings don't name is not."""
    records, study = by_status(folder), folder / "results" / "adhoc"
    refused = call(folder, "retry", "--failed")
    assert refused.returncode == 2
    assert "=telltale.build" in refused.stderr
    call(folder, "rm", records["failed"].cell.name, "--yes")

    first = records["ok"]
    path = study / f"{first.cell.name}.json"
    broken = read(path)
    broken.status, broken.train = "diverged", None
    write(broken, path)
    run = call(folder, "retry", "--failed", "--format", "json")
    assert run.returncode == 0, run.stderr
    (said,) = json.loads(run.stdout)
    assert (said["cell"], said["status"]) == (first.cell.name, "ok")
    again = read(path)
    assert again.started > first.started
    assert [p.loss for p in again.train.loss] == [p.loss for p in first.train.loss]
    assert "No cell failed." in call(folder, "retry", "--failed").stderr


# Settings


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+method.load.token=abc", "method.load.token"),
        ("+data.load.api_key=abc", "data.load.api_key"),
        ("+method.load.note=hf_abcdefghijklmnopqrstuvwx", "method.load.note"),
        ("+method.load.note=${oc.env:WANDB_API_KEY}", "method.load.note"),
        ("model.path='https://user:password@host/model'", "model.path"),
        ("model.path='user:password@host/model'", "model.path"),
        ("data_root='https://token@host/data'", "data_root"),
        ("results_dir='ssh://user:password@host/data'", "results_dir"),
    ],
)
def test_a_setting_that_holds_a_secret_is_refused_unsaid(cell, monkeypatch, override, key):
    monkeypatch.setenv("WANDB_API_KEY", "planted5wandb")
    with pytest.raises(UserError, match=f"^{key} holds what looks like a secret") as error:
        cell(override)
    for secret in ("abc", "planted", "password", "token@"):
        assert secret not in str(error.value)


def test_ordinary_settings_are_no_secrets(cell, monkeypatch):
    monkeypatch.setenv("SHORT_TOKEN", "lora")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "everything")
    for choice in ("gsm8k", "metamath", "facts", "wordmath"):
        cell(f"data={choice}")
    cell("data.prompt='Q: {question}@home A:everything'")
    cell("infer.prompt_tokens=8")


def test_the_folder_of_a_model_is_recorded_from_where_one_works(cell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    relative = cell("model.path=models/one")
    assert relative.settings.model.path == "models/one"
    for path in (f"{tmp_path}/models/one", f"{tmp_path}/models/one/", "'~/models/one'"):
        assert cell(f"model.path={path}").id == relative.id
    assert not os.path.isabs(cell("model.path=/nowhere/at/all").settings.model.path)


def test_another_place_of_this_machine_is_no_setting(cell, tmp_path):
    with pytest.raises(UserError, match=r"data\.load\.path=.* is a place on this machine.* relative to data_root"):
        cell("data=gsm8k", f"data.load.path={tmp_path}")
    cell("data=gsm8k", "data.prompt='/'")


# Text


def test_a_key_that_ends_in_a_line_is_hidden_where_it_does_not(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "key-of-a-file\n")
    assert redact.redact("refused key-of-a-file, it says") == "refused ***, it says"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://user:pw@host/x", "at https://***@host/x"),
        ("at https://pw@host/x", "at https://***@host/x"),
        ("user:pw@host", "***@host"),
        ("hf_abcdefghijklmnopqrstuvwx.", "***."),
        ("say planted5wandb and planted5wandb/6", "say *** and ***/6"),
        ("github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz rest", "*** rest"),
        ("token glpat-abcdefghij0123456789, rest", "token ***, rest"),
        ("xoxb-123456789012-abcdefghijkl xoxp-1234567890 xapp-1-A0123456789", "*** *** ***"),
        ("key=AIzaSyA0123456789abcdefghijklmnopqrstuv&x", "key=***&x"),
        ("AKIAIOSFODNN7EXAMPLE: denied", "***: denied"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl is expired", "*** is expired"),
        ('"Authorization": "Bearer abc123def456"', '"Authorization": "Bearer ***"'),
        ("authorization: bearer abcdefghijklmnopqrstuvwx==", "authorization: bearer ***"),
        ("Bearer authentication failed; a bearer of news", "Bearer authentication failed; a bearer of news"),
        ("eyJust.a.sentence, AIza, AKIA, xoxb-, glpat-, github_pat_", None),
        ("a:b, c@d: e", "a:b, c@d: e"),
        ("ratio 1:2", "ratio 1:2"),
    ],
)
def test_secrets_are_taken_out_of_text(monkeypatch, text, shown):
    monkeypatch.setenv("WANDB_API_KEY", "planted5wandb")
    assert redact.redact(text) == (text if shown is None else shown)


@pytest.mark.parametrize("part", [";:", ";", ":", ";a:b", "eyJ-", "a@b:", "://", "bearer ", "hf_-", "sk-"])
def test_a_very_long_line_takes_a_bounded_time(part):
    begun = time.process_time()
    redact.redact(part * 50_000)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "name",
    ["DBPASS", "SMTP_PASS", "SSHPASS", "NETRC_PWD", "MYSQL_PWD", "DBPWD", "GITHUB_PAT", "PAT", "AZURE_PAT_READ"],
)
def test_the_name_of_a_variable_says_that_it_holds_a_secret(monkeypatch, name):
    monkeypatch.setenv(name, "planted-password")
    assert redact.redact("it is planted-password.") == "it is ***."


@pytest.mark.parametrize(
    "name", ["PWD", "OLDPWD", "PATH", "MY_PATH", "GIT_ASKPASS", "SSH_ASKPASS", "COMPASS", "BYPASS"]
)
def test_other_variables_hold_none(monkeypatch, name):
    monkeypatch.setenv(name, "/ordinary/place")
    assert redact.redact("at /ordinary/place") == "at /ordinary/place"


def test_a_folder_is_no_secret_whatever_its_variable_is_called(monkeypatch, tmp_path):
    monkeypatch.setenv("ORIGINAL_PWD", str(tmp_path))
    assert redact.redact(f"{tmp_path}/file") == f"{tmp_path}/file"


def test_nothing_in_the_published_records_looks_like_a_secret():
    """Their names, hashes, versions, prompts and reasons are ordinary text."""
    paths = sorted((ROOT / "results" / "reference").glob("*/*.json"))
    strings = {text for path in paths for text in _strings(json.loads(path.read_text()))}
    assert len(paths) > 900
    assert len(strings) > 4_000
    assert [text for text in strings if redact.redact(text) != text] == []


def _strings(value):
    """All keys and texts of a JSON value."""
    if isinstance(value, dict):
        yield from value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(part)
    if isinstance(value, str):
        yield value


def test_a_file_without_secrets_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted5wandb")
    path = tmp_path / "log"
    path.write_bytes(b"\xff\r\nok")
    before = path.stat().st_mtime_ns
    redact.scrub(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (b"\xff\r\nok", before)
    path.write_bytes(b"\xff\r\nplanted5wandb\r\n")
    redact.scrub(path)
    assert path.read_bytes() == b"\xff\r\n***\r\n"
