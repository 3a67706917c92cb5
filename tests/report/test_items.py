"""Single items on the page: what is embedded of them, and how a person finds those that a method lost or won."""

from __future__ import annotations

import re

import numpy as np
import pytest
from chromium import in_a_browser
from records import make_record
from rendered import HOSTILE
from test_best import leave

from harness.config import ROOT
from harness.record import read_study
from harness.report.figures.study_results import StudyResults
from harness.report.pages import items_block as block_of
from harness.report.pages.items_block import items_block
from harness.report.pages.page import render

GSM8K = ROOT / "results" / "reference" / "gsm8k"
ITEMS = 120


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "demo"


def texts(prefix):
    return [f"{prefix} {i}" for i in range(ITEMS)]


@pytest.fixture
def study(folder):
    """base is right on the first 60 items; lora with both seeds on 30 to 89, but for item 40, which one seed misses."""
    at = np.arange(ITEMS)
    own = {"question": texts("How many"), "target": texts("is"), "subject": np.where(at < 60, "algebra", "geometry")}
    records = [leave(folder, make_record("base"), (at < 60).astype(float), prediction=texts("base says"), **own)]
    for seed in range(2):
        right = (at >= 30) & (at < 90) & ((at != 40) | (seed == 0))
        made = make_record("lora", lr=1e-4, seed=seed)
        records.append(leave(folder, made, right.astype(float), prediction=texts(f"seed {seed} says"), **own))
    return records


def test_the_block_has_each_item_with_what_each_model_answered(folder, study):
    data = items_block(StudyResults(study, folder))
    (found,) = data["sets"]
    assert [(m["label"], m["untuned"], m["seeds"]) for m in found["models"]] == [("base", True, 1), ("lora", False, 2)]
    assert found["all"] == len(found["number"]) == ITEMS
    assert found["subjects"] == ["algebra", "geometry"]
    at = found["number"].index(40)
    assert [right[at] for right in found["right"]] == [1, 1]
    assert found["right"][1][found["number"].index(50)] == 2
    said = [found["question"][at], found["target"][at], *(of[at] for of in found["answers"])]
    assert [data["texts"][text] for text in said] == ["How many 40", "is 40", "base says 40", "seed 0 says 40"]


def test_published_records_have_items_without_questions():
    records, _ = read_study(GSM8K)
    data = items_block(StudyResults(records, GSM8K))
    assert [(each["score"], each["all"]) for each in data["sets"]] == [
        ("gsm8k, exact match", 57),
        ("mmlu, accuracy", 57),
    ]
    for each in data["sets"]:
        assert each["models"][0]["label"] == "base"
        assert set(each["question"]) == {None}
        for model, right in zip(each["models"], each["right"], strict=True):
            (record,) = [r for r in records if r.cell.method == model["label"]]
            score = next(
                s for s in record.scores if s.task == each["score"].split(",")[0] and s.filter != "strict-match"
            )
            assert sum(right) == pytest.approx(score.value * score.n)


def test_beyond_the_cap_the_items_on_which_models_differ_stay(folder, study, monkeypatch):
    monkeypatch.setattr(block_of, "CELLS", 130)  # of 120 items of two models
    (found,) = items_block(StudyResults(study, folder))["sets"]
    assert (found["all"], len(found["number"])) == (ITEMS, 65)
    assert {*range(30), 40, *range(60, 90)} <= {*found["number"]}
    assert found["number"] == sorted(found["number"]) or found["subject"] == sorted(found["subject"])


def test_long_texts_are_cut_and_other_scores_left_out(folder):
    record = leave(folder, make_record("lora"), np.ones(30), prediction="x" * 5000, target="y" * 5000)
    data = items_block(StudyResults([record], folder))
    assert max(map(len, data["texts"])) == block_of.ANSWER
    leave(folder, record, np.linspace(0, 1, 30))
    assert items_block(StudyResults([record], folder))["sets"] == []
    assert items_block(StudyResults([record], None))["sets"] == []


# In a browser


def rows(page):
    return page.ask(
        "[...document.querySelectorAll('#items-table tbody tr')].map(tr => [...tr.cells].map(td => td.textContent))"
    )


def choose(page, name, value):
    page.ask(
        f"(() => {{ const field = document.getElementById('items-{name}'); field.value = {value!r};"
        " field.dispatchEvent(new Event(field.tagName === 'INPUT' ? 'input' : 'change')); })()"
    )


def said(page):
    return page.ask("document.querySelector('#items-controls output').value")


@pytest.mark.long
@in_a_browser
def test_lost_and_won_items_are_found(folder, study, shown):
    page = shown(render(study, folder))
    assert page.complaints() == []
    assert said(page) == "120 of 120 items"
    assert len(rows(page)) == 50
    assert rows(page)[0] == ["algebra 0", "How many 0", "is 0", "✓ rightbase says 0", "✗ 0 of 2 rightseed 0 says 0"]
    choose(page, "kind", "lost")
    assert said(page) == "31 of 120 items"
    assert rows(page)[-1][-1] == "◐ 1 of 2 rightseed 0 says 40"
    choose(page, "kind", "won")
    assert said(page) == "30 of 120 items"
    choose(page, "group", "algebra")
    assert said(page) == "0 of 120 items"
    choose(page, "group", "")
    choose(page, "find", "says 61")
    assert [row[0] for row in rows(page)] == ["geometry 61"]
    assert "items.kind=won" in page.ask("location.hash")
    assert "items.find=says+61" in page.ask("location.hash")


@in_a_browser
def test_a_view_of_items_can_be_sent_and_has_pages(folder, study, shown):
    page = shown(render(study, folder), "items&items.model=lora&items.page=2")
    assert len(rows(page)) == 20
    assert page.ask("document.querySelector('#items .pages span').textContent") == "Page 3 of 3"
    buttons = "[...document.querySelectorAll('#items .pages button')]"
    assert page.ask(f"{buttons}.map(button => button.disabled)") == [False, True]
    page.ask(f"{buttons}[0].focus()")
    page.press("Enter")
    assert len(rows(page)) == 50
    assert "items.page=1" in page.ask("location.hash")
    assert page.ask("document.activeElement.textContent") == "Previous"
    page.press("Enter")
    assert page.ask("document.activeElement.textContent") == "Next", "there is nothing before the first page"


@pytest.mark.long
@in_a_browser
def test_ten_thousand_items_are_usable(folder, shown):
    draw, many = np.random.default_rng(0), 10_000
    own = {"question": [f"How many is {i}, and why is it so?" for i in range(many)]}
    records = [
        leave(
            folder,
            make_record(method, lr=1e-4),
            (draw.random(many) < 0.5).astype(float),
            prediction=[f"it is {i}" for i in range(many)],
            **own,
        )
        for method in ("base", "lora", "dora", "full")
    ]
    text = render(records, folder)
    assert len(text) < 4_000_000
    page = shown(text)
    assert len(rows(page)) == 50
    took = page.ask(
        "(() => { const start = performance.now(); state.set({'items.find': 'is 777', 'items.kind': 'differ'});"
        " return performance.now() - start; })()"
    )
    assert took < 3000  # milliseconds, on a slow machine
    assert 0 < len(rows(page)) < 50
    assert all("777" in row[0] for row in rows(page))


@in_a_browser
def test_on_a_phone_an_item_is_a_card_and_long_words_break(folder, shown):
    own = {"target": texts("is"), "subject": "high_school_mathematics"}
    records = [
        leave(folder, make_record(method, lr=1e-4), np.ones(ITEMS), prediction="0" * 300, **own)
        for method in ("base", "lora")
    ]
    page = shown(render(records, folder))
    sideways = "(part => part.scrollWidth - part.clientWidth)(document.querySelector('#items .scroll'))"
    assert page.ask(sideways) == 0
    page.width(390)
    assert page.ask(sideways) == 0
    cells = "[...document.querySelectorAll('#items tbody tr:first-child td')]"
    of = f"{cells}.map(td => getComputedStyle(td, '::before').content)"
    assert page.ask(of) == ['"Expected"', '"base"', '"lora"']
    roles = {node["role"] for node in page.accessible()}
    assert {"row", "cell", "columnheader"} <= roles
    fields = "[...document.querySelectorAll('.panel :is(input[type=search], input[type=number], select)')]"
    assert page.ask(f"{fields}.every(field => field.parentElement.matches('.field') && field.labels.length === 1)")


@in_a_browser
def test_hostile_texts_of_items_are_texts(folder, shown):
    many = len(HOSTILE) * 4
    texts = [*HOSTILE, "</script><script>document.title='broken'</script>"] * 4
    record = leave(
        folder, make_record("lora"), np.ones(many), prediction=texts[:many], target=texts[:many], question=texts[-many:]
    )
    text = render([record], folder)
    assert len(re.findall(r"<script>", text)) == 1
    page = shown(text)
    assert page.complaints() == []
    assert len(rows(page)) == many
    assert page.ask("document.title") != "broken"
    assert page.ask("document.querySelectorAll('#items img, #items script').length") == 0


@in_a_browser
def test_without_items_there_is_no_such_section(tmp_path, shown):
    page = shown(render([make_record("lora"), make_record("full")], tmp_path))
    assert page.complaints() == []
    assert page.ask("document.getElementById('items')") is None
    assert page.ask("document.querySelector('a[href=\"#items\"]')") is None


@in_a_browser
def test_items_of_two_settings_are_counted_by_most_seeds(shown, folder, study, monkeypatch):
    """One of two seeds is not most: item 40 is neither. A capped page says how many items it counts."""
    monkeypatch.setattr(block_of, "CELLS", 130)
    browser = shown(render(study, folder))
    assert not browser.ask("document.getElementById('items-set').checkVisibility()"), "there is one test"
    names = browser.ask("study.settings.map((setting) => setting.method.name)")
    base, lora = (f"study.settings[{names.index(name)}]" for name in ("base", "lora"))
    table = f"[...comparer.beside({lora}, {base}, 600).querySelectorAll('table')].at(-1)"
    cells = browser.ask(f"[...{table}.rows[1].cells].map((cell) => cell.textContent)")
    assert cells == ["gsm8k, exact match, strict format (65 of 120 items)", "30", "30"]
