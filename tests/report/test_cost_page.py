"""Costs on the page: the chart of cost against score, its rate, and the sentence on the cheapest setting."""

from __future__ import annotations

import pytest
from chromium import in_a_browser
from costed import costed_study

from harness.cli.view import card_price
from harness.report import cost_fronts
from harness.report.figures.study_results import StudyResults
from harness.report.pages.costs_block import costs_block
from harness.report.pages.page import render

SENTENCE = "document.querySelector('#chart-costs .answer').textContent"
AXIS = "document.querySelector('#chart-costs [aria-label=\"x-axis label\"] text').textContent"
RATE = """(value) => {
  const field = document.getElementById('choose-rate');
  field.value = value;
  field.dispatchEvent(new Event('input', { bubbles: true }));
}"""


@pytest.fixture
def study(tmp_path):
    return costed_study(tmp_path), tmp_path


def see_costs(browser):
    """Scroll to the chart, and wait until it is drawn."""
    browser.ask("document.getElementById('chart-costs').scrollIntoView()")
    browser.ask("new Promise((done) => setTimeout(done, 400))")


def test_the_data_are_those_of_the_table(study):
    records, folder = study
    costs = costs_block(StudyResults(records, folder), 2.0)
    (front,) = costs["fronts"]
    assert (costs["price"], costs["refused"]) == (2, None)
    assert [each["hours"] for each in front["settings"]] == [1, 2, 3, 4]
    assert [each["front"] for each in front["settings"]] == [1, 0, 1, 0]
    assert front["settings"][0]["beaten"] == []
    assert front["settings"][3]["beaten"]
    assert front["cheapest"] == 0
    assert front["sentence"][1::2] == [
        1,
        3,
    ], "device-hours of the cheapest and of the best"
    assert front["settings"][0]["low"] < front["settings"][0]["value"] < front["settings"][0]["high"]
    assert front["settings"][0]["hours_low"] is None, "a single seed"


def test_the_fronts_are_computed_once(study, monkeypatch):
    records, folder = study
    own, answers = cost_fronts._fronts, []
    monkeypatch.setattr(cost_fronts, "_fronts", lambda answer: answers.append(answer) or own(answer))
    assert costs_block(StudyResults(records, folder), None)["fronts"]
    assert len(answers) == 1


def test_several_seeds_have_an_interval_of_their_cost(tmp_path):
    (front,) = costs_block(StudyResults(costed_study(tmp_path, seeds=(0, 1, 2)), tmp_path), None)["fronts"]
    assert (
        front["settings"][0]["hours_low"] < 1.01 == front["settings"][0]["hours"] < front["settings"][0]["hours_high"]
    )


def test_records_of_several_devices_have_no_front(study):
    records, folder = study
    for record, name in zip(records, ("NVIDIA L4", "Tesla T4"), strict=False):
        record.environment = {"device": {"type": "cuda", "name": name}}
    costs = costs_block(StudyResults(records, folder), None)
    assert costs["fronts"] == []
    assert costs["refused"].startswith("Cost against score requires records of one kind of device, got ")


def test_the_price_is_that_of_a_cards_file(study, tmp_path, monkeypatch):
    records, _ = study
    for record in records:
        record.environment = {"device": {"type": "cuda", "name": "NVIDIA L4"}}
    monkeypatch.chdir(tmp_path)
    assert card_price(records) is None, "shipped files have no prices"
    own = tmp_path / "conf" / "device"
    own.mkdir(parents=True)
    rates = "memory_gib: 22\nbf16_tflops: 121\nfp32_tflops: 30\nbandwidth_gb: 300\nsource: rented\n"
    (own / "broken.yaml").write_text("devices: [")
    (own / "rented.yaml").write_text(f"devices: [NVIDIA L4]\nprice: 0.8\n{rates}")
    assert card_price(records) == 0.8
    records[0].environment = {"device": "hostile"}
    assert card_price(records[:1]) is None


@pytest.mark.long
@in_a_browser
def test_without_a_rate_costs_are_times(study, shown):
    browser = shown(render(*study))
    see_costs(browser)
    assert "lora: 55% (" in browser.ask(SENTENCE)
    assert ") at 60.0 min; full scored highest" in browser.ask(SENTENCE)
    assert browser.ask(AXIS) == "device time of a cell (h), lower is better →"
    assert "Without a rate" in browser.ask("document.getElementById('chart-costs').textContent")
    assert not browser.complaints()


@pytest.mark.long
@in_a_browser
def test_a_rate_is_kept_in_the_address(study, shown):
    browser = shown(render(*study))
    see_costs(browser)
    browser.ask(f"({RATE})('2')")
    browser.ask("new Promise((done) => setTimeout(done, 400))")
    assert ") at $2.00; full scored highest" in browser.ask(SENTENCE)
    assert browser.ask(AXIS) == "cost of a cell ($), lower is better →"
    assert browser.ask("location.hash") == "#rate=2"
    browser = shown(render(*study), "rate=0.5")
    see_costs(browser)
    assert ") at $0.50; full" in browser.ask(SENTENCE)
    browser.ask(f"({RATE})('-1')")
    browser.ask("new Promise((done) => setTimeout(done, 400))")
    assert "The rate must be positive, got -1" in browser.ask("document.getElementById('chart-costs').textContent")
    assert not browser.complaints()


@in_a_browser
def test_the_cards_price_stands_in_the_field(study, shown):
    browser = shown(render(*study, price=0.07))
    see_costs(browser)
    assert browser.ask("document.getElementById('choose-rate').value") == "0.07"
    assert ") at $0.070; full scored highest" in browser.ask(SENTENCE)


@pytest.mark.long
@in_a_browser
def test_costs_leave_the_first_screen_as_it_was(study, shown):
    browser = shown(render(*study))
    for width in (390, 768, 1440):
        browser.width(width, 900)
        see_costs(browser)
        inside = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert browser.ask(inside), f"the page is wider than {width} pixels"
        after = "document.getElementById('chart-costs').compareDocumentPosition(document.querySelector('.overview'))"
        assert browser.ask(after) & 2, "the first table stands before the chart"
