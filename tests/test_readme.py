"""The README shows what the committed records say; ``python tests/test_readme.py --write`` renews it from them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from harness.record import read_study
from harness.report.best import tables
from harness.report.table import document

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
TEXT = README.read_text(encoding="utf-8")


def rendered(study: str) -> str:
    folder = ROOT / "results" / study
    records, problems = read_study(folder)
    assert records, f"no records of {study}"
    assert not problems
    return document(tables(records, folder), "md")


@pytest.mark.parametrize("study", [found[2] for found in BLOCK.finditer(TEXT)])
def test_readme_shows_the_table_of_the_records(study):
    shown = next(found[0] for found in BLOCK.finditer(TEXT) if found[2] == study)
    assert shown == f"<!-- table: {study} -->\n{rendered(study)}<!-- end -->"


@pytest.mark.parametrize("study", [found[2] for found in BLOCK.finditer(TEXT)])
def test_committed_table_is_that_of_the_records(study):
    assert (ROOT / "results" / study / "TABLE.md").read_text(encoding="utf-8") == rendered(study)


def test_readme_has_both_tables():
    assert [found[2] for found in BLOCK.finditer(TEXT)] == ["reference/quickstart", "reference/gsm8k"]


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    for study in [found[2] for found in BLOCK.finditer(TEXT)]:
        (ROOT / "results" / study / "TABLE.md").write_text(rendered(study), encoding="utf-8")
    README.write_text(BLOCK.sub(lambda found: found[1] + rendered(found[2]) + found[3], TEXT), encoding="utf-8")
