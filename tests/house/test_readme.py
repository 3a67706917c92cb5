"""README and docs show what the committed records say; `make publish` renders them anew."""

from __future__ import annotations

import re
import sys

import pytest
from plugin_list import MISSING

from harness.config import ROOT
from harness.record import read_study

sys.path.append(str(ROOT / "docs"))
import published

README, STUDIES, VERDICTS, OTHERS = published.PAGES
BLOCKS = [
    (page, kind, study) for page in published.PAGES for kind, study in published.blocks(page) if kind in published.KINDS
]


@pytest.mark.parametrize(("page", "kind", "study"), BLOCKS, ids=lambda value: getattr(value, "name", value))
def test_pages_show_the_tables_of_the_records(page, kind, study):
    text = page.read_text(encoding="utf-8")
    shown = next(found[0] for found in published.BLOCK.finditer(text) if (found[2], found[3]) == (kind, study))
    assert shown == f"<!-- {kind}: {study} -->\n{published.rendered(kind, study)}<!-- end -->"


@pytest.mark.parametrize(("path", "kind", "study"), published.documents())
def test_committed_documents_are_those_of_the_records(path, kind, study):
    assert path.read_text(encoding="utf-8") == published.rendered(kind, study)


def test_pages_have_all_tables():
    assert published.blocks(README) == [("compact", "reference/quickstart"), ("headline", "beyond_lora")]
    assert published.blocks(STUDIES) == [
        ("table", "reference/quickstart"),
        ("best", "reference/study_skill"),
        ("best", "reference/study_facts"),
        ("table", "reference/study_numerics"),
        ("best", "reference/smollm2"),
        ("best", "reference/gsm8k_0_5b"),
        ("judged", "reference/gsm8k_0_5b"),
        ("table", "reference/gsm8k"),
        ("experiments", "reference/peft_llama_3_2_3b"),
    ]
    assert published.blocks(VERDICTS) == [
        ("summary", "beyond_lora"),
        ("decided", "beyond_lora"),
        ("decided", "lora_without_regret"),
        ("others", "beyond_lora"),
        ("said", "beyond_lora"),
        ("said", "lora_without_regret"),
        ("article", "reference/smollm2"),
    ]
    assert published.blocks(OTHERS) == [("published", "beyond_lora")]


def test_how_long_the_comparison_takes_is_what_its_records_say():
    expected = published.duration("reference/quickstart")
    for path, times in zip(published.TIMED, (1, 2), strict=True):
        assert published.DURATION.findall(path.read_text(encoding="utf-8")) == [expected] * times


def test_the_committed_study_is_whole():
    records, _ = read_study(ROOT / "results" / "reference" / "smollm2")
    assert len(records) == 164
    assert {record.status for record in records} <= {"ok", "diverged"}


def drawn(svg: str) -> tuple[list[str], list[float]]:
    """The texts of a figure, and where its marks are."""
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    return texts, [
        float(number) for place in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg) for number in place
    ]


@pytest.mark.parametrize("name", published.PICTURES)
def test_pictures_show_the_records(name):
    texts, marks = drawn(published.picture_file(name).read_text(encoding="utf-8"))
    expected_texts, expected_marks = drawn(published.picture(name))
    assert len(marks) > 10
    assert texts == expected_texts
    assert marks == pytest.approx(expected_marks, abs=2)  # points; versions of matplotlib differ a little in layout
    shown = [page.name for page in published.PAGES if f"figures/{name}.svg" in page.read_text(encoding="utf-8")]
    assert shown


def test_no_picture_is_left_behind():
    files = [*(ROOT / "docs" / "figures").iterdir(), *(ROOT / "results" / "reference").rglob("figures")]
    pages = [*published.PAGES, ROOT / "docs" / "quickstart.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    shown = set(re.findall(r"(?<!quickstart/)figures/([\w-]+)\.(?:svg|png)", text))
    assert {path.stem for path in files if path.suffix != ".sha256"} == shown >= {*published.PICTURES}


@pytest.mark.long
def test_the_committed_report_is_of_the_committed_records():
    """Its tables and figures; its scripts and style are not: they change without a word of the records changing."""
    shown, expected = published.report_file().read_text(encoding="utf-8"), published.report_page()
    for part in (r"<table\b.*?</table>", r"<figcaption\b.*?</figcaption>", r"<li\b.*?</li>"):
        found, wanted = (re.findall(part, text, re.DOTALL) for text in (shown, expected))
        assert len(wanted) > 3
        assert found == wanted or (MISSING and set(wanted) <= set(found))


def test_readme_is_short_and_its_table_narrow():
    text = README.read_text(encoding="utf-8")
    assert len(text.encode()) <= 9 * 1024
    table = published.rendered("compact", "reference/quickstart")
    assert max(len(line) for line in table.splitlines() if line.startswith("|")) <= 100
