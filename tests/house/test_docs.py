"""The pages in docs/: the catalogue has every method as its file says, what is quoted is there, what is linked too."""

from __future__ import annotations

import re
import sys

import pytest

from harness.config import CONF, ROOT
from harness.sweep import planner

sys.path.append(str(ROOT / "docs"))
import catalogue

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TEXT = catalogue.TARGET.read_text(encoding="utf-8")


def test_the_catalogue_has_every_method_as_its_file_says():
    files = sorted((CONF / "method").glob("*.yaml"))
    assert re.findall(r"^## (.+)$", TEXT, re.MULTILINE) == [path.stem for path in files]
    for path in files:
        about = "\n".join(catalogue.about(path.read_text(encoding="utf-8")))
        assert about
        assert f"## {path.stem}\n\n{about}\n" in TEXT


def test_the_catalogue_tells_what_plan_counts():
    some = [entry for entry in catalogue.entries() if entry.name in ("lora", "galore", "frod")]
    planned = planner.make([(entry.name, entry.cell) for entry in some], {}, None, None).points
    for entry, point in zip(some, planned, strict=True):
        assert catalogue.section(entry, point.prediction) in TEXT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        target, _, anchor = " ".join(link.split()).partition("#")
        found = page.parent / target if target else page
        assert found.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, link


def test_the_method_that_is_shown_is_a_file():
    shown = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "method.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    assert shown == (CONF / "method" / "rslora.yaml").read_text(encoding="utf-8")
