"""The verdicts on a study's page: its rows, its data, and how they are used in a real browser."""

from __future__ import annotations

import re

import pytest
from chromium import column, in_a_browser
from records import make_study

from harness.config import ROOT
from harness.plugins.articles.page_block import page_block
from harness.record import read_study
from harness.report.figures.study_results import StudyResults
from harness.report.pages.page import render

REFERENCE = ROOT / "results" / "reference"
GSM8K = REFERENCE / "gsm8k"


@pytest.fixture(scope="module")
def reference():
    records, _ = read_study(GSM8K)
    return render(records, GSM8K, where="--study gsm8k")


def test_every_claim_is_there_with_the_commands_that_judge_it(reference):
    section = reference.partition('<section id="beyond_lora">')[2].partition("</section>")[0]
    table, verdicts = re.findall(r"<tbody>.*?</tbody>", section, re.DOTALL)
    assert table.count("<tr>") > 4
    assert verdicts.count("<tr>") == 17
    assert "low-rank-spread, " in section
    assert section.index('id="beyond_lora-table"') < section.index('<div id="beyond_lora-forest" class="interactive"')
    assert "6 supported, 5 refuted, 6 not decided" in reference.partition('id="summary"')[2].partition("</section>")[0]
    for command in ("table --article beyond_lora", "claims --article beyond_lora"):
        assert f"harness {command} --study gsm8k" in reference
    assert '<li><a href="#beyond_lora">“Beyond LoRA”</a></li>' in reference


def test_an_article_that_the_records_say_nothing_about_is_not_there(tmp_path):
    assert "beyond_lora" not in render([record for record in make_study() if record.cell.method == "base"], tmp_path)


def test_verdicts_come_with_the_range_that_the_claim_gives():
    records, _ = read_study(GSM8K)
    (article, *_) = page_block(StudyResults(records, GSM8K)).data["verdicts"]
    claims = {claim["name"]: claim for claim in article["claims"]}
    assert claims["dora-memory"]["range"] == [pytest.approx(1 / 1.1), pytest.approx(1.1)]
    for claim in claims.values():
        if claim["effect"] and claim["range"] and None not in claim["effect"] and claim["decision"] == "supported":
            low, high = claim["range"]
            assert low is None or claim["effect"][1] >= low
            assert high is None or claim["effect"][2] <= high


@pytest.mark.long
@in_a_browser
def test_a_filter_shows_the_claims_that_are_wanted_and_their_effects_are_drawn(shown, reference):
    page = shown(reference)

    def wanted(text):
        page.ask(
            "(() => { const input = document.getElementById('beyond_lora-verdicts-filter');"
            f"input.value = '{text}'; input.dispatchEvent(new Event('input')); }})()"
        )
        return column(page, "beyond_lora-verdicts", "Verdict")

    assert wanted("supported") == ["supported"] * 6
    assert wanted("REFUTED dora-memory") == ["refuted"]
    assert wanted("no such claim") == []
    assert len(wanted("")) == 17
    assert page.ask("document.querySelectorAll('#beyond_lora-forest svg').length") > 0
    assert page.complaints() == []


@in_a_browser
def test_effects_are_written_in_full_beside_their_intervals(shown):
    skill = REFERENCE / "study_skill"
    page = shown(render(read_study(skill)[0], skill, where="--study study_skill"))
    page.ask("document.getElementById('beyond_lora-forest').scrollIntoView(); new Promise((d) => setTimeout(d, 300))")
    texts = "[...document.querySelectorAll('#beyond_lora-forest svg text')]"
    assert "bits per byte" in page.ask(f"{texts}.map((text) => text.textContent).join()")
    beyond = "(text) => text.getBoundingClientRect().right > text.closest('svg').getBoundingClientRect().right + 1"
    assert page.ask(f"{texts}.filter({beyond}).map((text) => text.textContent)") == []
