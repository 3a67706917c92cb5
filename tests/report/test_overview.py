"""The first screen of the page: the decision, the chart beside it, and one table of a number and a bar each."""

from __future__ import annotations

import re

import pytest
from chromium import in_a_browser
from records import make_record, make_score, measured
from test_best import answers, leave

from harness.config import ROOT
from harness.record import read_study
from harness.report.figures.study_results import StudyResults
from harness.report.pages.overview import MOST, overviews
from harness.report.pages.page import render

REFERENCE = ROOT / "results" / "reference"


def study(name):
    records, _ = read_study(REFERENCE / name)
    return StudyResults(records, REFERENCE / name)


@pytest.fixture(scope="module")
def skill():
    records, _ = read_study(REFERENCE / "study_skill")
    return render(records, REFERENCE / "study_skill")


def test_each_method_has_a_number_and_a_bar_for_what_it_gains_costs_and_forgets():
    (overview,) = overviews(study("study_skill"))
    headers = [header for header, _ in overview.columns]
    assert headers == ["Skill, solved (%)", "Memory", "Tokens/s", "Forgotten"]
    assert overview.columns[-1][1] == "plain text, bits per byte against its base, + is a loss"
    assert [row.method for row in overview.rows] == ["full", "galore", "lora", "dora", "qlora", "base", "base_nf4"]
    assert [row.tinted for row in overview.rows] == [True] * 5 + [False] * 2
    full, *_, base, _ = overview.rows
    score, memory, _, forgotten = full.cells
    assert (score.text, score.interval) == ("67.5", "63.4–70.7")
    assert score.start < score.dot < score.start + score.width
    assert (memory.text, memory.width) == ("2.78 GiB", 100.0)
    assert forgotten.text == "+0.011"
    assert base.cells[0].width is None, "far below the others, it would squeeze their intervals"
    widths = [row.cells[3].width for row in overview.rows if not row.untuned]
    assert max(widths) == 100.0


def test_without_the_base_in_four_bits_what_qlora_forgets_includes_quantising():
    records = [record for record in study("study_skill").rows.records if record.cell.method != "base_nf4"]
    (overview,) = overviews(StudyResults(records, REFERENCE / "study_skill"))
    note = "plain text, bits per byte against its base, + is a loss; of qlora with what quantising costs"
    assert overview.columns[-1][1] == note


def test_without_a_score_the_validation_loss_stands_first():
    (overview,) = overviews(study("study_lr"))
    assert overview.columns[0] == ("Validation loss", "lower is better")
    assert [row.method for row in overview.rows] == ["dora", "lora", "full", "qlora"]
    assert overview.tint == ""


def test_many_experiments_are_cut_and_the_rest_is_named():
    (overview,) = overviews(study("peft_llama_3_2_3b"))
    assert len(overview.rows) == MOST
    assert overview.more == 66 - MOST
    assert overview.several


def test_a_single_method_is_better_than_nothing_and_not_tinted():
    record = measured(make_record("lora", 8, 16.0, 1e-4, scores=[make_score(0.4)]))
    (alone,) = overviews(StudyResults([record], None))
    assert (alone.tint, [row.tinted for row in alone.rows]) == ("", [False])
    base = make_record("base", scores=[make_score(0.1)])
    (beside,) = overviews(StudyResults([record, base], None))
    assert len(beside.rows) == 2


def test_what_is_not_recommended_is_not_said_to_be_better(tmp_path):
    base = leave(tmp_path, make_record("base"), answers(0.8, 0))
    single = leave(tmp_path, make_record("lora", lr=1e-4), answers(0.4, 1))
    seeds = [leave(tmp_path, make_record("lora", lr=1e-4, seed=seed), answers(0.4, seed)) for seed in range(1, 4)]
    beside = leave(tmp_path, make_record("full", lr=1e-4), answers(0.2, 2))

    def tinted(*records):
        (overview,) = overviews(StudyResults(records, tmp_path))
        return overview.tint, [row.method for row in overview.rows if row.tinted]

    assert tinted(base, single) == ("", []), "one seed, and worse than base"
    assert tinted(single, beside) == ("", []), "one seed each: no method is recommended"
    low = [leave(tmp_path, make_record("full", lr=1e-4, seed=seed), answers(0.2, seed)) for seed in range(1, 4)]
    assert tinted(base, *seeds, *low) == ("Tinted: better than the rest.", ["base"])
    weak = leave(tmp_path, make_record("base"), answers(0.1, 0))
    assert tinted(weak, *seeds) == ("", []), "a single method has no rest"
    assert tinted(weak, *seeds, *low) == ("Tinted: better than the rest.", ["lora"])


def test_untuned_models_stay_where_tuned_ones_are_cut():
    records = [make_record(f"m{i:02}", lr=1e-4, scores=[make_score(0.5 + i / 100)]) for i in range(MOST + 1)]
    records.append(make_record("base", scores=[make_score(0.1)]))
    (overview,) = overviews(StudyResults(records, None))
    assert [row.method for row in overview.rows] == [*(f"m{i:02}" for i in range(MOST, 0, -1)), "base"]
    assert overview.more == 1


def test_scores_that_cost_points_are_lost_in_points():
    records = []
    for method, kept in (("base", 0.6), ("lora", 0.5)):
        axes = () if method == "base" else (8, 16.0, 1e-4)
        scores = [make_score(0.4), make_score(kept, task="mmlu", metric="acc", filter="none")]
        records.append(measured(make_record(method, *axes, scores=scores)))
    (overview,) = overviews(StudyResults(records, None))
    assert overview.columns[-1] == ("Forgotten", "mmlu, points against its base, − is a loss")
    assert overview.rows[0].cells[-1].text == "−10.0"


@pytest.mark.parametrize("bases", [("base",), ("base", "base_nf4")])
def test_what_quantising_costs_is_named_where_it_is_counted_as_forgotten(bases):
    records = []
    for method in (*bases, "qlora"):
        axes = () if method in bases else (8, 16.0, 1e-4)
        scores = [make_score(0.4), make_score(0.5, task="mmlu", metric="acc", filter="none")]
        load = {} if method == "base" else {"quantization_config": {"load_in_4bit": True}}
        settings = {"method": {"name": method, "load": load}}
        records.append(measured(make_record(method, *axes, scores=scores, settings=settings)))
    ((_, note),) = [overview.columns[-1] for overview in overviews(StudyResults(records, None))]
    assert note.endswith("; of qlora with what quantising costs") == ("base_nf4" not in bases)


@in_a_browser
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 1700)])
def test_the_first_screen_holds_the_decision_the_chart_and_the_table(shown, skill, width, height):
    browser = shown(skill)
    browser.width(width, height)
    browser.ask("new Promise((done) => setTimeout(done, 400))")
    boxes = {
        name: browser.ask(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
        for name, selector in (("decision", ".answer"), ("chart", "#chart-first svg"), ("table", "#overview-0"))
    }
    assert all(box["bottom"] <= height for box in boxes.values()), boxes
    assert all(box["right"] <= width for box in boxes.values()), boxes
    assert boxes["decision"]["top"] < boxes["table"]["top"]
    assert boxes["chart"]["bottom"] <= boxes["table"]["top"]
    if width > 1000:
        assert boxes["decision"]["right"] < boxes["chart"]["left"]
    assert not browser.ask("document.querySelector('#best-table').checkVisibility()")
    assert browser.complaints() == []


@pytest.mark.long
@in_a_browser
def test_a_method_is_picked_in_the_table_and_hidden_by_the_filters(shown, skill):
    browser = shown(skill)
    browser.ask("[...document.querySelectorAll('.pick')].find((b) => b.textContent === 'qlora').click()")
    assert re.fullmatch(r"#pick=[0-9a-f]{10}", browser.ask("location.hash"))
    browser.ask("new Promise((done) => setTimeout(done, 500))")
    assert browser.ask("document.querySelector('#detail h4').textContent").startswith("qlora r=32")
    browser.ask("state.set({without: 'qlora'})")
    rows = browser.ask(
        "[...document.querySelectorAll('#overview-0 tbody tr')].filter((r) => r.checkVisibility())"
        ".map((r) => r.cells[0].textContent)"
    )
    assert rows == ["full", "galore", "lora", "dora", "base", "base_nf4"]


@pytest.mark.long
@in_a_browser
def test_two_settings_are_compared_by_what_differs(shown, skill):
    browser = shown(skill)
    chosen = browser.ask("study.settings.filter((s) => s.chosen).map((s) => [s.method.name, s.id])")
    ids = dict(chosen)
    browser.ask(f"state.set({{pick: '{ids['dora']}', against: '{ids['lora']}'}})")
    browser.ask("document.getElementById('chart-score').scrollIntoView(); new Promise((r) => setTimeout(r, 600))")
    tables = browser.ask("[...document.querySelectorAll('.comparison table')].map((t) => t.innerText)")
    assert [text.split("\n")[0] for text in tables] == ["Settings that differ", "Numbers", "Items, by most seeds"]
    assert "dora\tlora" in tables[0]
    assert "0.0035\t0.0015" in tables[0]
    assert "1.40×" in tables[1]
    assert browser.ask("document.querySelectorAll('.comparison svg').length") == 1
    assert browser.complaints() == []


@pytest.mark.long
@in_a_browser
def test_an_address_survives_a_growing_study(shown, tmp_path):
    lora = [measured(make_record("lora", 8, 16.0, lr, seed=seed)) for lr in (1e-3, 2e-3) for seed in (0, 1)]
    browser = shown(render(lora, tmp_path))
    address = browser.ask("(state.set({pick: study.settings[1].id, without: 'full'}), location.hash.slice(1))")
    before = browser.ask("study.settings[1].setting")
    more = [measured(make_record("lora", 8, 16.0, 5e-4)), measured(make_record("full", lr=1e-4)), *lora]
    browser = shown(render(more, tmp_path), address)
    assert "lr=2e-3" in before
    assert "lr=2e-3" in browser.ask("study.withCell(state.get('pick')).setting")
    assert browser.ask("study.settings.filter((s) => !filters.shows(s.index)).map((s) => s.method.name)") == ["full"]


@in_a_browser
def test_a_chart_is_taken_as_a_picture_and_as_numbers(shown, skill):
    browser = shown(skill)
    svg = "document.querySelector('#chart-first svg')"
    browser.until(f"{svg}?.rows")
    picture = browser.ask(f"exporter.picture({svg})")
    assert picture.startswith("<svg")
    assert 'xmlns="http://www.w3.org/2000/svg"' in picture
    assert "var(--" not in picture
    assert browser.ask(f"exporter.png({svg}).then((blob) => [blob.type, blob.size > 5000])") == ["image/png", True]
    rows = browser.ask(f"{svg}.rows.filter((row) => row.chosen).map((row) => row.method)")
    assert sorted(rows) == ["base", "base_nf4", "dora", "full", "galore", "lora", "qlora"]
    csv = browser.ask("exporter.csv([{name: '=1+1', value: 2.5}, {name: 'a\"b', value: null}])")
    assert csv == '"name","value"\n"\'=1+1",2.5\n"a""b",\n'
    assert browser.complaints() == []


@in_a_browser
def test_a_symbol_is_the_same_in_figures_and_on_the_page(shown, skill):
    from harness.report.figures.style import looks

    browser = shown(skill)
    found = dict(browser.ask("study.methods.map((m) => [m.name, m.shape])"))
    assert len(found) == 7
    assert found == {name: look.marker for name, look in looks(found).items() if name in found}
    assert browser.ask("study.methods.every((m) => typeof m.symbol.draw === 'function')")
