"""The report: whole, deterministic and escaped by what its source says; usable, and safe, in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from chromium import column, in_a_browser
from records import ENVIRONMENT, make_record, make_score, make_study, measured

from harness.__main__ import main
from harness.config import ROOT
from harness.record import Source, read_study, write
from harness.report.pages.commands import run_command
from harness.report.pages.page import render
from harness.report.tables.best import tables

GSM8K = ROOT / "results" / "reference" / "gsm8k"
OWN = "globalThis.owned=1"
HOSTILE = [
    f"<script>{OWN}</script>",
    f"</script><script>{OWN}</script>",
    f'"><img src=x onerror={OWN}>',
    f"'><svg onload={OWN}>",
    f"{{{{ {OWN} }}}}",
    f"]]><script>{OWN}</script>",
    f"</style><script>{OWN}</script>",
    f"-->\x00\x1b[31m<iframe srcdoc='<script>parent.{OWN}</script>'>",
    "endless" * 60,
    "\u202egnorw",
]


class Parsed(HTMLParser):
    """Tags with attributes in order, and the texts of headings, scripts and cells."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.append((self.open[-1], data))

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag):
        return [text for name, text in self.texts if name == tag]


@pytest.fixture(scope="module")
def reference():
    records, problems = read_study(GSM8K)
    assert not problems
    return render(records, GSM8K, command="python -m harness report --study gsm8k")


def hostile_records():
    """A study in which every text that a record holds is hostile somewhere."""
    records = []
    for i, name in enumerate(HOSTILE):
        environment = ENVIRONMENT | {"versions": {"torch": name}, "precision": name}
        record = make_record(
            name, 16, 32.0, 2e-4, study=HOSTILE[0], model=name, data=name, knobs={name: name}, environment=environment
        )
        record.cell.name = f"cell{i}"
        record.scores = [make_score(0.1 * (i % 5), task=name, filter=name, version=name)]
        record.source = Source(name, name, name, [name])
        records.append(measured(record))
    failed = make_record("lora", 16, 32.0, 2e-4, status="failed", study=HOSTILE[0])
    failed.failure.reason = failed.failure.phase = HOSTILE[1]
    return [*records, failed, make_record("base", study=HOSTILE[0])]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return render(hostile_records(), folder, HOSTILE, HOSTILE[0], HOSTILE[1], {HOSTILE[0]: HOSTILE[1]})


# What the source says


def test_the_same_records_make_the_same_page(reference):
    records, _ = read_study(GSM8K)
    assert render(records, GSM8K, command="python -m harness report --study gsm8k") == reference


@pytest.mark.parametrize("name", ["reference", "hostile"])
def test_the_page_is_whole_and_refers_to_itself_alone(name, request):
    text = request.getfixturevalue(name)
    source = Parsed(text)
    assert text.startswith("<!DOCTYPE html>")
    assert source.of("html") == [{"lang": "en"}]
    ids = Counter(a["id"] for _, a in source.tags if "id" in a)
    assert ids.most_common(1)[0][1] == 1
    pointing = ("aria-labelledby", "aria-describedby", "for")
    refers = [a[key] for _, a in source.tags for key in pointing if key in a]
    links = [a[key] for _, a in source.tags for key in ("href", "xlink:href") if key in a]
    assert len(refers) > 10
    assert len(links) > 9
    assert {f"#{target}" for target in refers} | set(links) <= {f"#{target}" for target in ids}
    assert not [a for _, a in source.tags if "src" in a or [key for key in a if key.startswith("on")]]
    assert not set(re.findall(r"url\((?!#)|@import|@font-face", text))


def test_headings_do_not_skip_a_level_and_tables_are_told_of(reference):
    source = Parsed(reference)
    levels = [int(tag[1]) for tag, _ in source.tags if re.fullmatch(r"h\d", tag)]
    assert levels[:2] == [1, 2]
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    count = len(source.of("table"))
    assert count == len(source.text("caption")) >= 4
    assert {a["scope"] for a in source.of("th")} == {"col", "row"}
    assert [a["role"] for a in source.of("svg")] == ["img"] * len(source.of("figcaption"))
    assert len(source.of("svg")) > 3


def test_every_row_is_there(reference):
    records, _ = read_study(GSM8K)
    found = [re.findall(r"<tr\b", table) for table in re.findall(r"<tbody>.*?</tbody>", reference, re.DOTALL)]
    best, settings = tables(records, GSM8K)
    assert len(found[0]) == 8, "the overview"
    assert [len(rows) for rows in found[1:3]] == [len(best.rows), len(settings.rows)] == [8, 8]
    assert len(found[-1]) == 16  # each record and its items


def test_the_summary_says_who_is_ahead_and_what_is_lacking(reference):
    summary = reference.partition('id="summary"')[2].partition("</section>")[0]
    assert "8 cells of 8 methods" in summary
    first = re.findall(r'<p class="answer">(.*?)</p>', summary)
    assert "the floor of gsm8k (at most 3 of 57 items right)" in first[0]
    assert re.findall(r'<p class="answer next">(.*?)</p>', summary)[-1].startswith(
        "To compare methods, use easier items, or more of them: a larger <code>eval.limit</code>"
    )
    assert summary.index("No method is recommended") < summary.index("8 cells of 8 methods")
    assert reference.count("No method is recommended") == 1
    assert "mmlu, accuracy: base_nf4, base, qlora, " in summary
    assert "Training needs the least memory with qlora (1.75 GiB) and the most with dora (3.23 GiB)." in summary
    assert "Single seed" in summary


def test_files_are_named_with_their_hashes(reference):
    for path in (*GSM8K.glob("*.json"), *GSM8K.glob("*.parquet")):
        row = reference.partition(f">{path.name}</th>")[2].partition("</tr>")[0]
        assert hashlib.sha256(path.read_bytes()).hexdigest() in row, path.name


def test_names_are_escaped(hostile):
    source = Parsed(hostile)
    (script,) = re.findall(r"<script>(.*?)</script>", hostile, re.DOTALL)
    data = [attributes for attributes in source.of("script") if attributes]
    assert len(data) == len(source.of("script")) - 1 > 2
    assert {attributes["type"] for attributes in data} == {"application/json"}  # which no browser runs
    assert OWN not in script
    assert not {"iframe", "img", "object", "link", "base", "form"} & {tag for tag, _ in source.tags}
    assert f"&lt;script&gt;{OWN}&lt;/script&gt;" in hostile
    assert not {"\x1b", "\x00", "\u202e"} & set(hostile)


def test_the_policy_lets_the_one_script_run_and_nothing_be_fetched(reference):
    (policy,) = [a["content"] for a in Parsed(reference).of("meta") if "http-equiv" in a]
    script = re.search(r"<script>(.*?)</script>", reference, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}';" in policy
    assert not re.search(r"script-src[^;]*unsafe|https?:|\*|connect-src", policy)


def test_texts_stand_out_from_their_ground_in_light_and_in_dark():
    style = (ROOT / "harness" / "report" / "pages" / "page.css").read_text()
    schemes = re.findall(r"--ground: (#\w+); --raised: (#\w+); --text: (#\w+); --faint: (#\w+);.*--link: (#\w+)", style)
    assert len(schemes) == 3  # light, dark, print

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for ground, raised, *texts in schemes:
        for below in (ground, raised):
            for text in texts:
                high, low = sorted((luminance(below), luminance(text)), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (below, text)  # WCAG 2.2, 1.4.3


@pytest.mark.parametrize(
    "records",
    [
        [make_record("base")],
        [make_record("lora", 16, 32.0, 2e-4, status="oom")],
        [make_record("lora", 16, 32.0, 2e-4, scores=[])],
    ],
    ids=["base alone", "nothing finished", "no scores"],
)
def test_little_is_reported_too(records, tmp_path):
    Parsed(render(records, tmp_path))


@pytest.mark.long
def test_a_cell_is_run_again_by_its_command(cell):
    record = make_record()
    asked = [
        ["method=lora", "rank=8", "lr=1e-3", "train.max_steps=7", "eval.tasks=[wordmath,plain_text]", "eval.limit=9"],
        ["method=galore", "method.knobs.scale=0.25", "train.validate_every=2", "model=qwen3_0_6b", "speedups=off"],
        ["method=base", "infer.repeats=0", "data=facts", "seed=3"],
        [
            "data=local",
            "data.path=a.csv",
            "+data.columns.topic=t",
            r"data.prompt='{topic}: {question}'",
            "data.limit=5",
            "data.test_share=0.2",
            "data.answers=text",
        ],
        ["data=alpaca", "data.test_share=0", "eval.tasks=[]"],
        ["data=reasoning_gym"],
        [
            "data=reasoning_gym",
            "data.task=word_sorting",
            "+data.options={max_words: 4, transformation: lowercase}",
            "data.load.seed=3",
        ],
        ["method=full", "data=wordmath", "data.noise=0.25"],
        ["data=facts", "+data.load.entities=6", "+data.load.relations=3", "data.limit=100"],
        ["data=wordmath", "+data.load.train=64", "data.load.seed=2"],
        ["data=synthetic", "data.path=mine.jsonl", "data.load.share=0.5"],
        ["data=synthetic", "data.path=mine.jsonl"],
        ["method=qlora", r"model.path='a folder/with spaces, \'quotes\' and {braces}'", "alpha=64"],
    ]
    for overrides in asked:
        record.cell = cell(*overrides)
        record.study = "again"
        program, *command = shlex.split(run_command(record))
        assert [program, command[0]] == ["harness", "run"]
        assert cell(*command[1:]).id == record.cell.id
        assert command[-1] == "study=again"


def test_the_page_has_no_command_of_a_record_that_may_not_run(tmp_path):
    """Which is for its caller to say: of itself the page has none."""
    good, bad = measured(make_record("lora", seed=0)), measured(make_record("dora", seed=0))
    text = render([good, bad], tmp_path, runnable=lambda record: record is good)
    assert run_command(good) in unescape(text)
    assert run_command(bad) not in unescape(text)
    assert '"refused-data">[1]<' in text
    assert "harness run method=" not in render([good, bad], tmp_path)


def test_imported_cells_have_no_command():
    record = make_record()
    record.source = Source("peft", "file", "0" * 64, [])
    assert run_command(record) is None


# The command


def test_the_command_writes_the_page_and_names_what_is_no_record(tmp_path, capsys):
    for record in make_study():
        write(record, tmp_path / "results" / "demo" / f"{record.cell.name}.json")
    (tmp_path / "results" / "demo" / "broken.json").write_text("{")
    out = tmp_path / "deep" / "report.html"
    arguments = ["report", "--results-dir", str(tmp_path / "results"), "--out", str(out)]
    assert main(arguments) == 1
    assert "harness run method=" not in out.read_text()  # the ids of these records are not those of their settings
    assert "broken.json is not complete JSON" in capsys.readouterr().err
    text = out.read_text(encoding="utf-8")
    assert "broken.json is not complete JSON" in text
    assert "demo: fine-tuning methods compared" in text
    assert f"harness {shlex.join(arguments)}" in text
    assert f"harness table --study demo --results-dir {tmp_path / 'results'}" in text
    assert re.search(r"made with python 3[^<]* numpy [^<]* scipy [^<]* matplotlib ", text)


def test_the_command_wants_one_study_with_records(tmp_path, capsys):
    for name in ("one", "two"):
        write(make_record(study=name), tmp_path / name / "a.json")
    assert main(["report", "--results-dir", str(tmp_path)]) == 2
    assert "A report is of one study; name it with --study. There are one, two." in capsys.readouterr().err
    (tmp_path / "two" / "a.json").write_text("{")
    assert main(["report", "--results-dir", str(tmp_path), "--study", "two"]) == 2
    assert "There are no records to report on" in capsys.readouterr().err
    assert main(["report", "--results-dir", str(tmp_path), "--study", "one"]) == 0
    assert capsys.readouterr().out.startswith("<!DOCTYPE html>")


# In a browser


def focused(page):
    return page.ask("document.activeElement.textContent || document.activeElement.id")


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_complaint_and_fetches_nothing(shown, reference, scheme):
    page = shown(reference)
    page.media(scheme)
    assert page.complaints() == []
    ground = page.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}[scheme]
    assert page.ask("[...document.querySelectorAll('figure svg')].every((svg) => svg.getBBox().width > 100)")


@in_a_browser
def test_it_is_read_and_used_by_the_keyboard_alone(shown, reference):
    page = shown(reference)
    page.press("Tab")
    assert focused(page) == "Skip to the summary"
    page.press("Enter")
    assert page.ask("location.hash + document.activeElement.id") == "#summarysummary"
    page.ask("document.querySelector('#columns > summary').focus()")
    page.press("Enter")
    page.press("Tab")
    assert focused(page) == "best-table-filter"
    page.type("LoRA (1.00×)")  # to whose speed all others are held
    assert column(page, "best-table", "Method") == ["lora"]
    assert page.ask("document.querySelector('#columns output').value") == "1 of 8 rows"
    page.press("Tab")
    assert focused(page) == "Columns"
    page.press("Tab")  # the container, which scrolls
    page.press("Tab")
    assert focused(page) == "Method"
    page.press("Space")
    assert page.ask("document.activeElement.parentElement.ariaSort") == "ascending"
    page.press("Enter")
    assert page.ask("document.activeElement.parentElement.ariaSort") == "descending"
    assert page.complaints() == []


@in_a_browser
def test_columns_are_sorted_by_what_they_mean(shown, tmp_path):
    page = shown(render([measured(record) for record in make_study()], tmp_path))

    def sorted_by(name):
        page.ask(
            "[...document.querySelectorAll('#settings-table th button')]"
            f".find((button) => button.textContent === '{name}').click()"
        )
        return column(page, "settings-table", name)

    before = column(page, "settings-table", "Method")
    assert len(before) == 8
    weights = ["4.88M (3.50%)", "4.88M (3.50%)", "4.88M (3.50%)", "5.16M (3.69%)", "135M (100%)", "135M (100%)"]
    assert sorted_by("Trainable") == ["0 (0.00%)", "0 (0.00%)", *weights]
    sorted_by("Method")
    assert sorted_by("Method")[:2] == ["qlora", "qlora"]  # one of them has no loss
    losses = ["1.235", "1.240", "1.250", "1.260", "1.270", "2.345", "2.401"]
    assert sorted_by("Validation loss") == [*losses, "–"]
    assert sorted_by("Validation loss") == [*reversed(losses), "–"], "what is absent comes last either way"
    settings = sorted_by("Setting")
    assert settings.index("r=16 α=32 lr=2e-4") < settings.index("r=64 α=128 lr=2e-4")
    assert sorted(column(page, "settings-table", "Method")) == sorted(before)
    assert page.ask("document.querySelectorAll('#settings-table [aria-sort]').length") == 1
    first = "['> 99% (1.0)', '99%', '1%', '< 1% (5.0)', '$0.04', '$1,250.00', '≤ 2.39K tokens'].map(number)"
    above, most, least, below, *others = page.ask(first)
    assert above > most == 99
    assert below < least == 1
    assert others == [0.04, 1250, 2390]
    units = "['1.50 GiB (0.50×)', '512 MiB', '900 KiB', '513 / 19 / 0 MiB', '−1.2 points', '1,234', '2e-4'].map(number)"
    assert page.ask(units) == [1.5 * 2**30, 2**29, 900 * 2**10, 513 * 2**20, -1.2, 1234, 2e-4]


@in_a_browser
def test_a_filter_hides_and_shows_rows_of_its_table_alone(shown, reference):
    page = shown(reference)

    def wanted(text):
        page.ask(
            "(() => { const input = document.getElementById('settings-table-filter');"
            f"input.value = '{text}'; input.dispatchEvent(new Event('input')); }})()"
        )
        return column(page, "settings-table", "Method")

    assert wanted("qlora") == ["qlora"]
    assert wanted("LR=1e-4 r=16 galore") == ["galore"]
    assert wanted("no such method") == []
    page.ask("document.getElementById('columns').open = true")
    assert len(column(page, "best-table", "Method")) == 8
    assert len(wanted("")) == 8


@in_a_browser
def test_without_scripts_every_row_is_there(browser, reference, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(reference, encoding="utf-8")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(path)
    nodes = Counter(node["role"] for node in browser.accessible())
    assert not {"button", "searchbox"} & set(nodes)
    assert nodes["table"] == 7
    assert nodes["row"] == len(Parsed(reference).of("tr"))


@in_a_browser
def test_a_screen_reader_is_told_what_everything_is(shown, reference):
    page = shown(reference)
    page.ask("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    nodes = page.accessible()
    named = {role: [node["name"] for node in nodes if node["role"] == role] for role in {n["role"] for n in nodes}}
    assert "Show rows with gsm8k: best settings" in named["searchbox"]
    assert len(set(named["searchbox"])) == len(named["table"]) == 8  # and one that filters all
    for role in ("button", "image", "table", "region", "columnheader", "rowheader", "navigation", "heading", "link"):
        assert all(named[role]), role
    assert named["heading"][:2] == ["gsm8k: fine-tuning methods compared", "Summary"]
    assert "Best settings" in named["heading"]
    assert len(named["main"]) == len(named["banner"]) == 1


@in_a_browser
@pytest.mark.parametrize("name", ["reference", "hostile"])
def test_it_fits_a_phone(shown, name, request):
    page = shown(request.getfixturevalue(name))
    page.width(390)
    page.ask("document.getElementById('columns').open = true")
    assert page.ask("document.documentElement.scrollWidth") <= 390
    assert page.ask("document.querySelector('.scroll').scrollWidth > 390"), "the table scrolls in its own container"


@pytest.mark.long
@in_a_browser
def test_it_prints_every_row_on_the_paper(shown, reference):
    page = shown(reference)
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    assert 5 < len(re.findall(rb"/Type /Page\b(?!s)", printed)) < 40
    page.call("Emulation.setEmulatedMedia", media="print")
    page.width(1032)  # 297 mm less the margins, at 96 pixels an inch
    assert page.ask("document.documentElement.scrollWidth") <= 1032
    assert page.ask("[...document.querySelectorAll('table')].every((t) => t.getBoundingClientRect().right <= 1032)")
    assert page.ask(
        "[...document.querySelectorAll('section:not(.interactive) tr')].every((row) => row.checkVisibility())"
    )
    assert not page.ask("document.querySelector('.filter').checkVisibility()")


@in_a_browser
def test_hostile_names_do_not_run_and_are_shown_as_they_are(shown, hostile):
    page = shown(hostile)
    assert page.complaints() == []
    assert page.ask("globalThis.owned") is None
    runs = "[...document.scripts].filter((script) => !script.type).length"
    assert page.ask(runs) == 1
    assert page.ask("document.title").startswith("<script>")
    methods = column(page, "settings-table", "Method")
    assert len(methods) == len(HOSTILE) + 2
    assert {HOSTILE[0], HOSTILE[1], HOSTILE[2]} <= set(methods)


@in_a_browser
def test_hostile_names_are_texts_in_charts_too(shown, hostile):
    page = shown(hostile)
    page.ask("state.set({pick: study.settings[0].id, gib: '1'})")
    drawn = page.ask("[...document.querySelectorAll('.chart')].map((chart) => chart.id)")
    assert {"chart-score", "chart-memory"} <= set(drawn)
    for chart in drawn:
        page.ask(f"document.getElementById('{chart}').scrollIntoView()")
        page.ask("new Promise((done) => setTimeout(done, 200))")
        assert page.ask(f"document.querySelector('#{chart} .plot').childElementCount") == 1
    assert page.ask("document.querySelector('#detail h4').textContent") == page.ask("study.settings[0].label")
    assert page.ask("globalThis.owned") is None
    assert not page.ask("document.querySelectorAll('#explore :is(img, iframe, script, [onload], [onerror])').length")
    assert page.complaints() == []


@in_a_browser
def test_what_got_past_the_escaping_would_still_not_run(shown, reference):
    smuggled = (
        f"<script>{OWN}</script><img src=x onerror={OWN}><iframe srcdoc='<script>parent.{OWN}</script>'></iframe>"
    )
    page = shown(reference.replace("</main>", f"{smuggled}<img src='https://example.org/x'></main>"))
    page.ask("new Promise((done) => setTimeout(done, 100))")
    assert page.ask("globalThis.owned") is None
    assert sum("Content Security Policy" in line for line in page.complaints()) >= 3
