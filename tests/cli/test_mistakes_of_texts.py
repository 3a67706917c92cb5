"""Mistakes of data=text: each gets one sentence before a job has loaded any library."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import assert_refused, forbid_jobs

from harness.__main__ import main


@pytest.fixture(autouse=True)
def no_job(tmp_path, monkeypatch):
    """A folder with the files of the mistakes, in which no job may start."""
    monkeypatch.chdir(tmp_path)
    forbid_jobs(monkeypatch)
    for folder in ("empty", "one", "binary", "pictures", "docs"):
        Path(folder).mkdir()
    Path("one/a.md").write_text("A text.")
    Path("pictures/a.png").write_bytes(b"\x89PNG\0")
    for number in range(4):
        Path(f"docs/{number}.txt").write_text(f"Text {number}.")
        Path(f"binary/{number}.txt").write_text(f"Text {number}.")
    Path("binary/9.txt").write_bytes(b"\x7fELF\0\1\2\3")
    Path("one.txt").write_text("A text.\n\nAnother one.")
    Path("two.jsonl").write_text('{"text": "A"}\n{"text": "B"}\n\n')


@pytest.mark.parametrize(
    ("settings", "culprits"),
    [
        ("data.path=empty", ["got the empty folder empty"]),
        ("data.path=one", ["one has one document; data=text requires three"]),
        ("data.path=one.txt", ["one.txt has one document; data=text requires three"]),
        ("data.path=two.jsonl", ["two.jsonl has 2 documents; data=text requires three"]),
        ("data.path=binary", ["data.path=binary/9.txt is binary, not text"]),
        ("data.path=pictures", ["data.path=pictures has no file with one of the suffixes", ".txt, .md"]),
        ("data.path=nowhere", ["There is no file nowhere; check data.path"]),
        (
            "data.path=docs data.noise=0.1",
            ["can't be combined with data.noise=0.1: documents have no answers"],
        ),
        ("data.path=docs data.answers=exact", ["data=text can't be combined with data.answers=exact"]),
        ("data.path=docs data.too_long=cut", ["data=text can't be combined with data.too_long=cut", "into blocks of"]),
        ("data.path=docs train.objective=dpo", ["train.objective=dpo requires pairs", "got data=text."]),
    ],
)
def test_a_mistake_of_texts_is_refused_at_once(capsys, settings, culprits):
    assert main(["run", "model=tiny", "data=text", *settings.split()]) == 2
    assert_refused(capsys.readouterr().err.splitlines()[-1] + "\n", *culprits)
    assert not Path("results").exists()
