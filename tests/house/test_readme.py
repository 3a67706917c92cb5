"""The README shows what the committed records say; ``python tests/house/test_readme.py --write`` renews it from them."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pytest

from harness.articles.beyond_lora import claims
from harness.record import read_study
from harness.report.best import best, tables
from harness.report.table import document

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- (table|best): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
TEXT = README.read_text(encoding="utf-8")
BLOCKS = [(found[2], found[3]) for found in BLOCK.finditer(TEXT)]
MADE = {
    "table": tables,
    "best": lambda records, folder: [best(records, folder)],
    "claims": lambda records, folder: [claims.table(claims.verdicts(records, folder))],
}


@functools.cache
def rendered(kind: str, study: str) -> str:
    folder = ROOT / "results" / study
    records, problems = read_study(folder)
    assert records, f"no records of {study}"
    assert not problems
    return document(MADE[kind](records, folder), "md")


def documents() -> list[tuple[Path, str, str]]:
    """What is committed beside the records: file, kind, study."""
    studies = dict.fromkeys(study for _, study in BLOCKS)
    found = [(ROOT / "results" / study / "TABLE.md", "table", study) for study in studies]
    return [*found, (ROOT / "results" / "reference" / "smollm2" / "CLAIMS.md", "claims", "reference/smollm2")]


@pytest.mark.parametrize(("kind", "study"), BLOCKS)
def test_readme_shows_the_table_of_the_records(kind, study):
    shown = next(found[0] for found in BLOCK.finditer(TEXT) if found[3] == study)
    assert shown == f"<!-- {kind}: {study} -->\n{rendered(kind, study)}<!-- end -->"


@pytest.mark.parametrize(("path", "kind", "study"), documents())
def test_committed_documents_are_those_of_the_records(path, kind, study):
    assert path.read_text(encoding="utf-8") == rendered(kind, study)


def test_readme_has_all_tables():
    assert BLOCKS == [("table", "reference/quickstart"), ("best", "reference/smollm2"), ("table", "reference/gsm8k")]


def test_the_committed_study_is_whole():
    records, _ = read_study(ROOT / "results" / "reference" / "smollm2")
    assert len(records) == 164
    assert {record.status for record in records} <= {"ok", "diverged"}


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    for path, kind, study in documents():
        path.write_text(rendered(kind, study), encoding="utf-8")
    renewed = BLOCK.sub(lambda found: found[1] + rendered(found[2], found[3]) + found[4], TEXT)
    README.write_text(renewed, encoding="utf-8")
