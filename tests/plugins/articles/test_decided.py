"""What README.md, docs/ and results/ show of claims is what the records say; `make publish` renders it anew."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from harness import plugin
from harness.__main__ import main
from harness.config import ROOT
from harness.config_folders import published_sweeps
from harness.plugins.articles import PLUGIN, decided
from harness.plugins.articles.article import find
from harness.plugins.articles.designed import DECIDED_BY

sys.path.append(str(ROOT / "docs"))
import design
import published

BLOCKS = [
    (page, kind, argument)
    for page in published.PAGES
    for kind, argument in published.blocks(page)
    if kind in PLUGIN.doc_blocks
]
DESIGN = design.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "kind", "argument"), BLOCKS, ids=lambda value: getattr(value, "name", value))
def test_pages_show_what_the_studies_decided(page, kind, argument):
    text = page.read_text(encoding="utf-8")
    shown = next(found[0] for found in published.BLOCK.finditer(text) if (found[2], found[3]) == (kind, argument))
    assert shown == f"<!-- {kind}: {argument} -->\n{published.rendered(kind, argument)}<!-- end -->"


@pytest.mark.parametrize("article", DECIDED_BY)
def test_the_design_shows_the_claims(article):
    assert f"<!-- claims: {article} -->\n{design.rendered('claims', article)}<!-- end -->" in DESIGN


def test_every_block_has_a_kind_and_every_kind_a_block():
    kinds = {kind for page in published.PAGES for kind, _ in published.blocks(page)}
    kinds |= {found[2] for found in design.BLOCK.finditer(DESIGN)}
    of_plugins = {kind for part in plugin.installed() for kind in part.doc_blocks}
    assert kinds <= {*published.KINDS, *design.KINDS, *of_plugins}
    assert {*PLUGIN.doc_blocks} <= kinds


def test_the_committed_verdicts_are_those_of_the_records():
    path = "results/reference/smollm2/CLAIMS.md"
    assert (ROOT / path).read_text(encoding="utf-8") == plugin.load(PLUGIN.doc_files[path])()


def test_the_picture_shows_the_records():
    path = "docs/figures/verdicts.svg"
    pictures = (ROOT / path).read_text(encoding="utf-8"), plugin.load(PLUGIN.doc_files[path])()
    texts, expected = (re.findall(r"<text[^>]*>([^<]+)</text>", svg) for svg in pictures)
    assert len(texts) > 10
    assert texts == expected


@pytest.mark.long
def test_the_committed_report_has_the_verdicts():
    shown, expected = published.report_file().read_text(encoding="utf-8"), published.report_page()
    part = re.compile(r'<section id="(?:beyond_lora|lora_without_regret)">.*?</section>', re.DOTALL)
    assert len(part.findall(shown)) == 2
    assert part.findall(shown) == part.findall(expected)


def test_the_list_of_all_claims_is_what_the_command_says_of_the_same_records(tmp_path, capsys):
    """`harness claims` over the published studies on SmolLM2-135M: as many claims, with these verdicts and effects."""
    for _, folder in decided.published():
        copy = tmp_path / "results" / folder.name
        copy.mkdir(parents=True)
        for path in folder.iterdir():
            (copy / path.name).symlink_to(path)
    assert main(["claims", "--results-dir", str(tmp_path / "results"), "--format", "md"]) == 0
    rows = re.findall(r"^\| ([\w-]+) +\| ([\w ]+?) +\| +([^|]+?) +\|", capsys.readouterr().out, re.MULTILINE)[1:]
    assert len(rows) > 20
    claims = find("beyond_lora").claims
    shown = _block(ROOT / "docs" / "verdicts.md", "summary")
    _, *parts = re.split(r"^- \*\*([\w ]+)\*\*", shown, flags=re.MULTILINE)
    listed = dict(zip(parts[::2], parts[1::2], strict=True))
    heads = {"depends": "Depends on the setting"}
    for name, verdict, effect in rows:
        lines = listed[heads.get(verdict, verdict.capitalize())].splitlines()
        whole = re.escape(claims[name].text)
        pattern = re.sub(r"(\\ \\\([^)]*\\\))", r"(?:\1)?", whole)  # what is in brackets may be left out
        assert [line for line in lines if re.match(rf" +- {pattern}: {re.escape(effect)}, ", line)], name
    assert sum(part.count("\n    - ") for part in listed.values()) == len(rows)
    bullets = re.findall(r"^- (.+): \*\*([\w ]+)\*\*, (.+)\.$", _block(ROOT / "README.md", "headline"), re.MULTILINE)
    verdicts = {claims[name].text.partition(" (")[0]: (verdict, effect) for name, verdict, effect in rows}
    assert len(bullets) == 4
    assert {text: (verdict, effect) for text, verdict, effect in bullets}.items() <= verdicts.items()


def _block(page: Path, kind: str) -> str:
    return next(block[0] for block in published.BLOCK.finditer(page.read_text(encoding="utf-8")) if block[2] == kind)


def test_every_claim_is_decided_by_a_sweep_that_is_there_or_has_a_reason():
    for article, studies in DECIDED_BY.items():
        assert studies.keys() == find(article).claims.keys()
        for by in studies.values():
            assert by.startswith("not decided: ") or by in published_sweeps(), by
