"""The page's interactive part: its data in Python, and what it shows and how it is used in a real browser."""

from __future__ import annotations

import json
import re

import pytest
from chromium import in_a_browser
from records import make_record, make_score, measured

from harness import units
from harness.config import ROOT
from harness.record import read_study
from harness.report.figures.study_results import StudyResults
from harness.report.pages.commands import run_command
from harness.report.pages.curves_block import curves_block
from harness.report.pages.importance import importance
from harness.report.pages.page import LONGEST, render
from harness.report.pages.settings_block import settings_block
from harness.report.tables.entries import rate, score_style

REFERENCE = ROOT / "results" / "reference"
RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3]


def grid():
    """Two methods at six rates and two ranks: the loss depends on the rate above all, on the rank a little."""
    records = []
    for method in ("lora", "dora"):
        for rank in (8, 16):
            for i, lr in enumerate(RATES):
                record = measured(make_record(method, rank, 2.0 * rank, lr))
                record.validation[-1].loss = 1.0 + 0.2 * abs(i - 3) + 0.01 * (rank == 8)
                records.append(record)
    return records


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return render(grid(), tmp_path_factory.mktemp("grid"), runnable=lambda record: True)


@pytest.fixture(scope="module")
def memory():
    records, _ = read_study(REFERENCE / "memory")
    return records


# The data


def test_the_data_are_those_of_the_records():
    records, _ = read_study(REFERENCE / "gsm8k")
    study = StudyResults(records, REFERENCE / "gsm8k")
    data = settings_block(study)
    assert len(data["setting"]) == len(study.rows) == 8
    metrics = {metric["id"]: metric for metric in data["metrics"]}
    at = [row.method for row in study.rows].index("qlora")
    assert metrics["train_allocated_peak"]["values"][at] == pytest.approx(
        study.rows[at].mean("train_allocated_peak"), 1e-4
    )
    assert (
        metrics["mmlu/acc/none"]["low"][at]
        < metrics["mmlu/acc/none"]["values"][at]
        < metrics["mmlu/acc/none"]["high"][at]
    )
    assert sum(data["chosen"]) == 8
    assert data["capabilities"]["quantised"] == [row.method in ("base_nf4", "qlora", "qdora") for row in study.rows]
    assert data["capabilities"]["optimizer"] == [row.method in ("full", "galore") for row in study.rows]
    json.dumps(data, allow_nan=False)


def test_a_settings_command_is_that_of_its_record():
    study = StudyResults(grid(), None)
    commands = settings_block(study)["commands"]
    for row, own in zip(study.rows, commands["own"], strict=True):
        words = {*commands["shared"], *(commands["words"][i] for i in own)}
        assert words == set(run_command(row.records[0]).removeprefix("harness run ").split(" "))
    assert len(commands["shared"]) > len(commands["own"][0])


def test_the_charts_begin_with_the_score_that_decides():
    tasks = (("mmlu", "acc"), ("hellaswag", "acc"))
    records = []
    for method in ("lora", "dora"):
        scores = [make_score(0.5, task=task, metric=metric, filter="none") for task, metric in tasks]
        records.append(make_record(method, lr=1e-4, data="own", scores=scores))
    study = StudyResults(records, None)
    (contest, _) = study.answer.contests
    assert settings_block(study)["places"][0]["score"] == contest.score == "mmlu/acc/none"


def test_packages_that_not_everyone_may_use_are_known():
    record = make_record(
        "apollo", settings={"method": {"name": "apollo", "optim": {"optimizer": {"name": "apollo_torch.APOLLOAdamW"}}}}
    )
    data = settings_block(StudyResults([record, make_record("lora", 8, 16.0, 1e-4)], None))
    names = [data["methods"][i]["name"] for i in data["method"]]
    assert dict(zip(names, data["capabilities"]["free"], strict=True)) == {"apollo": False, "lora": True}


def test_curves_mark_what_was_chosen():
    curves = curves_block(StudyResults(grid(), None))
    for curve in curves["rates"]:
        assert [point["x"] for point in curve["points"]] == RATES
        assert [point["x"] for point in curve["points"] if point["chosen"]] == [1e-3]
        assert min(curve["points"], key=lambda point: point["y"])["chosen"]
    assert {point["x"] for curve in curves["ranks"] for point in curve["points"]} == {8, 16}


def test_the_forest_finds_what_matters_and_says_the_same_again():
    (axes,) = curves_block(StudyResults(grid(), None))["axes"]
    assert next(iter(axes["importance"])) == "lr"
    assert axes["importance"]["lr"] > 5 * max(axes["importance"]["method"], axes["importance"]["rank"])
    assert axes["explained"] > 0.7
    assert curves_block(StudyResults(grid(), None))["axes"] == [axes]


def test_noise_explains_nothing():
    shuffled = [((7919 * i) % 101) / 101 for i in range(60)]
    found = importance({"a": list(range(60)), "b": [i % 3 for i in range(60)]}, shuffled)
    assert found.explained < 0.3
    assert importance({"a": [1.0] * 60, "b": [i % 3 for i in range(60)]}, shuffled) is None, "one axis varies"
    assert importance({"a": list(range(9)), "b": [0, 1, 2] * 3}, shuffled[:9]) is None, "too few records"


# In a browser


@pytest.mark.long
def test_long_tables_are_data_beyond_their_first_rows(tmp_path):
    text = long_page(tmp_path)
    body = text.partition('id="settings-table"')[2].partition("</tbody>")[0]
    assert body.count("<tr>") == LONGEST + 1
    rest = json.loads(re.search(r'id="rest-data">(.*?)</script>', text)[1])
    assert len(rest["settings-table"]) == 100
    assert f"The first {LONGEST} of {LONGEST + 100} rows." in text


def long_page(folder):
    records = []
    for i in range(LONGEST + 100):
        record = measured(make_record("lora", 8, 16.0, 1e-6 * (i + 1)))
        record.validation[-1].loss = 1.0 + i / 1000
        records.append(record)
    return render(records, folder)


@pytest.mark.long
@in_a_browser
def test_a_long_table_is_sorted_as_a_whole_and_shown_in_parts(shown, tmp_path):
    page = shown(long_page(tmp_path))
    assert page.ask("document.querySelectorAll('#settings-table tbody tr').length") == 200
    buttons = "[...document.querySelectorAll('#settings-table th button')]"
    press = f"{buttons}.find((button) => button.textContent === 'Validation loss').click()"
    page.ask(f"{press}; {press}")
    first = "document.querySelector('#settings-table tbody tr').textContent"
    assert "lr=6e-4" in page.ask(first)
    page.ask("document.querySelector('#settings-table').parentElement.nextElementSibling.click()")
    rows = "document.querySelectorAll('#settings-table tbody tr').length"
    assert page.ask(rows) == 400
    page.ask(f"addEventListener('beforeprint', () => {{ window.printed = {rows}; }})")
    page.pdf()
    assert (page.ask("window.printed"), page.ask(rows)) == (LONGEST + 100, 400), "a print has all rows"


@pytest.mark.long
@in_a_browser
def test_every_chart_is_drawn_without_a_complaint(shown, page):
    browser = shown(page)
    for chart in ("score", "rates", "ranks", "memory", "axes", "importance"):
        browser.ask(f"document.getElementById('chart-{chart}').scrollIntoView()")
        browser.ask("new Promise((done) => setTimeout(done, 300))")
        assert browser.ask(f"document.querySelector('#chart-{chart} .plot svg').getBBox().width") > 300, chart
    assert browser.complaints() == []


@in_a_browser
def test_a_view_is_in_the_address_and_the_back_button_returns(shown, page):
    browser = shown(page)
    browser.ask("document.getElementById('choose-x').value = 'trainable'")
    browser.ask("document.getElementById('choose-x').dispatchEvent(new Event('change'))")
    assert browser.ask("location.hash") == "#x=trainable"
    browser.ask("document.querySelector('.chip').click()")
    assert browser.ask("location.hash") == "#x=trainable&without=lora"
    assert browser.ask("document.querySelector('#filters output').value") == "12 of 24 settings shown"
    browser.ask("new Promise((done) => { addEventListener('popstate', () => done(), {once: true}); history.back(); })")
    assert browser.ask("document.querySelector('#filters output').value") == "24 of 24 settings shown"
    assert browser.ask("state.get('x')") == "trainable"
    browser = shown(page, "x=trainable&settings-table.sort=-Method&find=dora&gib=1")
    assert browser.ask("document.getElementById('choose-x').value") == "trainable"
    assert browser.ask("document.querySelector('#filters output').value") == "12 of 24 settings shown"
    assert browser.ask("document.getElementById('card-gib').value") == "1"
    assert browser.ask("document.querySelector('#settings-table [aria-sort]').ariaSort") == "descending"


@in_a_browser
def test_an_address_with_nonsense_is_a_plain_page(shown, page):
    browser = shown(page, "x=__proto__&y=%3Cscript%3E&pick=99&at=7&settings-table.sort=zz&toString=1&without=,,,x")
    browser.ask("new Promise((done) => setTimeout(done, 300))")
    assert browser.complaints() == []


@pytest.mark.long
@in_a_browser
def test_the_card_brackets_what_was_measured_at_the_other_batch(shown, memory, tmp_path):
    """The committed records have each method at 2 and at 8 sequences, of 192 and 695 tokens in all."""
    browser = shown(render(memory, tmp_path))
    settings = browser.ask("study.settings.map((s) => [s.method.name, s.tokens, s.untuned])")
    measured_at = {}
    for i, (method, tokens, untuned) in enumerate(settings):
        if not untuned:
            measured_at[method, tokens[0]] = i
            assert tokens[1] == {2: 192, 8: 695}[tokens[0]]
    for (method, batch), i in measured_at.items():
        other = measured_at[method, 10 - batch]
        tokens = {2: 192, 8: 695}[10 - batch]
        low, high = browser.ask(
            f"(state.set({{gib: '1', batch: '1', length: '{tokens}'}}), card.need(study.settings[{i}]))"
        )
        truth = browser.ask(f"(state.set({{batch: '', length: ''}}), card.need(study.settings[{other}]))")
        assert truth[0] == truth[1]
        assert low <= truth[0] <= high, (method, batch)
        assert high < 2.5 * truth[0], "an estimate, and no excuse"


@in_a_browser
def test_what_does_not_fit_is_grey_everywhere(shown, memory, tmp_path):
    browser = shown(render(memory, tmp_path), "gib=1")
    fits = browser.ask("study.settings.map((s) => [s.method.name, s.tokens?.[0], card.fits(s)])")
    assert {(m, b): f for m, b, f in fits}["qlora", 2] == "yes"
    assert {(m, b): f for m, b, f in fits}["full", 2] == "no"
    rows = browser.ask(
        "[...document.querySelectorAll('#settings-table tbody tr')].filter((r) => r.dataset.fits === 'no').length"
    )
    assert rows == sum(f == "no" for _, _, f in fits)
    assert "do not fit" in browser.ask("document.querySelector('#card output').value")


@in_a_browser
def test_a_zero_has_no_minus(shown, page):
    browser = shown(page)
    assert browser.ask("[count(-0.5), count(-0), WRITTEN.percent(-0.0004), WRITTEN.number(-0), fixed(-0.06, 1)]") == [
        *("0", "0", "0.0%", "0.000", "-0.1"),
    ]


@in_a_browser
def test_the_chart_is_read_by_the_keyboard(shown, page):
    browser = shown(page)
    browser.ask("document.querySelector('#chart-score .plot').focus()")
    browser.ask("new Promise((done) => setTimeout(done, 300))")
    frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"  # a chart waits for one

    def described(key):
        browser.press(key)
        browser.ask(frames)
        return browser.ask("document.querySelector('#detail h4').textContent")

    first = described("ArrowRight")
    assert described("ArrowRight") != first
    assert described("ArrowLeft") == first
    assert browser.ask("document.querySelector('#detail pre').textContent").startswith("harness run method=")


@in_a_browser
def test_a_range_of_an_axis_holds_for_the_whole_page(shown, page):
    browser = shown(page)
    said = "document.querySelector('#filters output').value"
    lower = "[...document.querySelectorAll('#chart-axes [data-end]')].find((end) => end.dataset.end === 'lr lower')"
    drawn = "new Promise((done) => setTimeout(done, 300))"
    browser.ask(f"document.getElementById('chart-axes').scrollIntoView(); {drawn}")
    assert browser.ask(said) == "24 of 24 settings shown"

    browser.ask(f"{lower}.focus()")
    browser.press("ArrowUp")  # the lowest of six rates is out
    browser.ask(drawn)
    assert browser.ask(said) == "20 of 24 settings shown"
    assert browser.ask("document.activeElement.dataset.end") == "lr lower"
    assert browser.ask("document.activeElement.ariaValueText") == "2e-4"
    rows = browser.ask("[...document.querySelectorAll('#settings-table tbody tr')].map((row) => row.textContent)")
    assert len(rows) == 20
    assert not any("lr=1e-4" in row for row in rows)

    fragment = browser.ask("location.hash.slice(1)")
    browser.press("Escape")
    assert browser.ask(said) == "24 of 24 settings shown"
    browser = shown(page, fragment)
    assert browser.ask(said) == "20 of 24 settings shown"
    assert browser.complaints() == []


@in_a_browser
def test_a_range_is_dragged_along_an_axis(shown, page):
    browser = shown(page)
    browser.ask("document.getElementById('chart-axes').scrollIntoView()")
    browser.until("document.querySelectorAll('#chart-axes [data-end^=\"lr \"]').length === 2")
    places = browser.ask(
        "[...document.querySelectorAll('#chart-axes [data-end^=\"lr \"]')].map((end) => end.getBoundingClientRect())"
        ".map((box) => [box.x + box.width / 2, box.y])"
    )
    (x, bottom), (_, top) = places
    for kind, y in (("mousePressed", bottom + 3), ("mouseMoved", (bottom + top) / 2), ("mouseReleased", 0)):
        y = y or (bottom + top) / 2
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
    browser.until("document.querySelector('#filters output').value.startsWith('12 ')")
    assert browser.ask("document.querySelector('#filters output').value") == "12 of 24 settings shown"
    browser.ask("[...document.querySelectorAll('#chart-axes button')].find((button) => !button.hidden).click()")
    assert browser.ask("document.querySelector('#filters output').value") == "24 of 24 settings shown"


@in_a_browser
def test_all_of_it_fits_a_phone(shown, page):
    browser = shown(page, f"gib=24&pick={grid()[3].cell.id[:10]}")
    browser.width(390)
    browser.ask("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for chart in browser.ask("[...document.querySelectorAll('.chart')].map((chart) => chart.id)"):
        browser.ask(f"document.getElementById('{chart}').scrollIntoView()")
        browser.ask("new Promise((done) => setTimeout(done, 200))")
        assert browser.ask(f"document.querySelector('#{chart} .plot svg')?.getBBox().width ?? 0") <= 390, chart
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    assert browser.complaints() == []


@in_a_browser
def test_the_label_of_an_axis_fits_a_phone(shown, page):
    browser = shown(page)
    browser.width(390)
    browser.ask("document.getElementById('chart-score').scrollIntoView()")
    browser.ask("new Promise((done) => setTimeout(done, 500))")
    svg = "document.querySelector('#chart-score .plot svg')"
    ends = f"[...{svg}.querySelectorAll('text')].map((text) => text.getBoundingClientRect().right)"
    assert max(browser.ask(ends)) <= browser.ask(f"{svg}.getBoundingClientRect().right")
    label = browser.ask(f"{svg}.querySelector('[aria-label=\"y-axis label\"]').textContent")
    assert label == "↑ gsm8k, exact match, strict format (%)"


@in_a_browser
def test_columns_are_hidden_and_shown(shown, page):
    browser = shown(page)
    browser.ask("document.getElementById('columns').open = true")
    box = "document.querySelectorAll('#best-table-column-1')[0]"
    setting = "[...document.querySelectorAll('#best-table tr')].map((row) => row.cells[1].checkVisibility())"
    assert all(browser.ask(setting))
    browser.ask(f"{box}.click()")
    assert not any(browser.ask(setting))
    assert browser.ask("location.hash") == "#best-table.hide=Setting"
    browser.ask(f"{box}.click()")
    assert all(browser.ask(setting))


@in_a_browser
def test_ranks_are_drawn_by_the_score_of_the_place_that_is_shown(shown, tmp_path):
    records = [measured(make_record("lora", rank, 2.0 * rank, 1e-4)) for rank in (8, 16)]
    for rank in (4, 32):
        records.append(measured(make_record("lora", rank, 2.0 * rank, 1e-4, data="own", scores=[])))
    browser = shown(render(records, tmp_path))
    label = "document.querySelector('#chart-ranks svg [aria-label=\"y-axis label\"]')?.textContent"
    ticks = (
        "[...document.querySelectorAll('#chart-ranks svg [aria-label=\"x-axis tick label\"] text')]"
        ".map((text) => text.textContent)"
    )
    browser.ask("document.getElementById('chart-ranks').scrollIntoView()")
    browser.until(f"{label}?.includes('gsm8k, exact match, strict format (%)')")
    assert browser.ask(ticks) == ["8", "16"]
    browser.ask("state.set({at: study.places[1].id})")
    browser.until(f"{label}?.includes('alidation loss')")
    assert browser.ask(ticks) == ["4", "32"]
    assert browser.complaints() == []


@in_a_browser
def test_numbers_on_charts_are_written_as_in_tables(shown, page):
    browser = shown(page)
    shares = [0.5625, 0.1875, 0.3333, 0.00625, 0.0, 1.0, 0.06875]
    _, percent = score_style(make_score(), shares)
    numbers = [0.75, 12.3, 1.23456, 0.78125, 9.99996, 0.99996, 1234.5, 9999.6, 123450.0, 0.0001234, 2.5e-5, -1.5]
    rates = [99.94, 12.345, 0.5, 100.5, 1234.5, 123456.4, 2500.5]
    sizes = [1.5 * 2**30, 2.78125 * 2**30, 512 * 2**20, 10.5 * 2**20, 900 * 2**10, 0]
    counts = [999, 1000, 999_600, 4_884_480, 134_515_008, 1_000_000, 0]
    expected = {
        "percent": (shares, [f"{percent(share)}%" for share in shares]),
        "number": (numbers, [units.significant(number) for number in numbers]),
        "rate": (rates, list(map(rate, rates))),
        "bytes": (sizes, list(map(units.size, sizes))),
        "count": (counts, list(map(units.count, counts))),
    }
    for unit, (values, texts) in expected.items():
        assert browser.ask(f"{json.dumps(values)}.map(WRITTEN.{unit})") == texts, unit


@in_a_browser
def test_costs_of_two_devices_and_memory_of_two_instruments_are_not_compared(shown, tmp_path):
    """As `Row.over` refuses."""
    gpu = measured(make_record("lora", 8, 16.0, 1e-4))
    cpu = measured(make_record("dora", 8, 16.0, 1e-4))
    cpu.environment = cpu.environment | {"device": {"type": "cpu"}, "cpu": {"name": "EPYC", "cores": 8}}
    other = measured(make_record("full", lr=1e-4))
    study = StudyResults([gpu, cpu, other], None)
    one, two, three = (next(row for row in study.rows if row.method == name) for name in ("lora", "dora", "full"))
    browser = shown(render([gpu, cpu, other], tmp_path))
    names = browser.ask("study.settings.map((setting) => setting.method.name)")
    settings = {name: f"study.settings[{names.index(name)}]" for name in names}
    for first, second in ((one, two), (one, three)):
        for measure in ("train_allocated_peak", "tokens_per_second_steady", "seconds"):
            pair = f"[{settings[first.method]}, {settings[second.method]}]"
            comparable = browser.ask(f"study.comparable('{measure}', {pair})")
            assert comparable == (first.over(second, measure) is not None), (measure, second.method)
    assert browser.ask(f"study.comparable('validation_loss', [{settings['lora']}, {settings['dora']}])")
    beside = f"comparer.beside({settings['lora']}, {settings['dora']}, 600)"
    rows = f"[...{beside}.querySelectorAll('tr')].map((row) => [row.cells[0].textContent, row.cells[3]?.textContent])"
    ratios = dict(browser.ask(rows))
    assert ratios["Training tokens/s, median step"] == ratios["Peak train memory"] == "–"
    assert ratios["Validation loss"] == "1.01×"
    line = "document.querySelectorAll('#chart-score svg [aria-label=\"line\"] path').length"
    browser.ask("document.getElementById('chart-score').scrollIntoView()")
    browser.until("document.querySelector('#chart-score svg')")
    assert browser.ask(line) == 0
    browser.ask("state.set({without: 'dora'})")
    browser.until(f"{line} === 1")


@in_a_browser
def test_an_interval_below_zero_leaves_the_first_chart_on_its_logarithmic_axis(shown, tmp_path):
    perplexity = {"metric": "word_perplexity", "filter": "none", "higher_is_better": False, "task": "wikitext"}
    values = {"lora": 2.0, "dora": 80.0, "base": 900.0}
    records = []
    for method, value in values.items():
        lr = None if method == "base" else 1e-4
        records.append(measured(make_record(method, lr=lr, scores=[make_score(value, 3, **perplexity)])))
    browser = shown(render(records, tmp_path))
    browser.until("document.querySelector('#chart-first svg')")
    marks = browser.ask(
        "[...document.querySelectorAll('#chart-first svg [aria-label=\"dot\"] path')].map((path) => path.outerHTML)"
    )
    assert len(marks) == 2
    assert "NaN" not in "".join(marks)
    assert browser.complaints() == []


@in_a_browser
def test_models_beyond_the_axis_share_a_line_of_text(shown, tmp_path):
    records = [measured(make_record(name, scores=[make_score(0.01)])) for name in ("base", "base_nf4")]
    records += [measured(make_record(name, lr=1e-4, scores=[make_score(0.9)])) for name in ("lora", "dora")]
    browser = shown(render(records, tmp_path))
    browser.until("document.querySelector('#chart-first svg')")
    texts = browser.ask("[...document.querySelectorAll('#chart-first svg text')].map((text) => text.textContent)")
    assert [text for text in texts if "↓" in text] == ["↓ base 1.0%, base_nf4 1.0%"]


@in_a_browser
def test_without_a_cost_of_training_the_first_chart_shows_the_time(shown, tmp_path):
    records = [make_record(name, scores=[make_score(0.5)]) for name in ("base", "base_nf4")]
    browser = shown(render(records, tmp_path))
    browser.until("document.querySelector('#chart-first svg')")
    assert browser.ask("document.getElementById('chart-first-title').textContent") == "Quality against time of the job"


@in_a_browser
def test_a_choice_to_compare_with_keeps_the_focus_and_is_read_out_in_short(shown, page):
    browser = shown(page, f"pick={grid()[3].cell.id[:10]}")
    browser.ask("document.getElementById('chart-score').scrollIntoView()")
    browser.until("document.getElementById('choose-against')")
    browser.ask(
        "(() => { const choose = document.getElementById('choose-against'); choose.focus();"
        "choose.value = choose.options[1].value; choose.dispatchEvent(new Event('change')); })()"
    )
    browser.until("document.querySelector('.comparison')")
    assert browser.ask("document.activeElement.id") == "choose-against"
    said = browser.ask("document.querySelector('#chart-score [role=\"status\"]').textContent")
    assert said.startswith(browser.ask("document.querySelector('#detail h4').textContent"))
    assert len(said) < 200
    assert not browser.ask("document.querySelector('#detail').ariaLive")
